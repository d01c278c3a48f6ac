//! The table of kernels, one field per function, filled when the device is made: a missing symbol fails then, and a
//! launch looks nothing up.

use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaModule, LaunchConfig, sys};

use super::driver::device_error;
use crate::{Error, Result};

/// A loaded kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    pub name: &'static str,
    pub function: CudaFunction,
    /// Size of each parameter, as compiled.
    parameters: Vec<usize>,
}

impl Kernel {
    fn load(module: &Arc<CudaModule>, name: &'static str) -> Result<Self> {
        let function = module
            .load_function(name)
            .map_err(|e| device_error(format!("kernel {name}"), e))?;
        let mut parameters = Vec::new();
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the function is loaded and both results are ours; past the last parameter the call fails.
        while unsafe {
            sys::cuFuncGetParamInfo(function.cu_function(), parameters.len(), &mut offset, &mut size)
        } == sys::CUresult::CUDA_SUCCESS
        {
            parameters.push(size);
        }
        Ok(Kernel {
            name,
            function,
            parameters,
        })
    }

    /// Fails unless the arguments of a launch have the sizes of the kernel's parameters.
    pub fn check(&self, arguments: &[usize]) -> Result<()> {
        if arguments != self.parameters {
            let (name, parameters) = (self.name, &self.parameters);
            let detail =
                format!("kernel {name}: parameters of {parameters:?} bytes, arguments of {arguments:?}");
            return Err(Error::Internal(detail));
        }
        Ok(())
    }
}

macro_rules! kernels {
    ($($name:ident)+) => {
        /// Every kernel of `kernels/*.cu`.
        #[derive(Debug)]
        pub(super) struct Kernels {
            $(pub $name: Kernel,)+
        }

        impl Kernels {
            #[cfg(test)]
            pub const NAMES: &[&str] = &[$(stringify!($name)),+];

            pub fn load(module: &Arc<CudaModule>) -> Result<Self> {
                Ok(Kernels { $($name: Kernel::load(module, stringify!($name))?,)+ })
            }
        }
    };
}

kernels! {
    conv_forward_large conv_forward_small conv_forward_odd
    conv_tangent_large conv_tangent_small conv_tangent_odd
    conv_backward_input_large conv_backward_input_small conv_backward_input_odd
    conv_backward_weight_large conv_backward_weight_small conv_backward_weight_odd sum_slices
    conv_contract_large conv_contract_small conv_contract_odd sum_samples
    moments_partial dot_partial column_sums
    norm_forward_batch norm_forward_running norm_tangent norm_backward norm_contract
    join_forward_four join_forward_odd join_tangent_four join_tangent_odd source_backward_four source_backward_odd
    pool_forward pool_tangent pool_backward
    pseudo_labels cross_entropy cross_entropy_backward tangent_dot weights
    lookahead squares_partial norm_finish sgd
    augment echo_shapes
    peak_f32 peak_tf32 peak_bf16
}

/// Launches a kernel: `launch!(cuda, kernel, config, arguments…)`, arguments by value in the kernel's order.
/// Their sizes are compared with the kernel's parameters.
///
/// # Safety
/// The arguments have the types of the kernel's parameters, its limits hold, and operands that it writes overlap no other.
macro_rules! launch {
    ($cuda:expr, $kernel:expr, $config:expr, $($argument:expr),+ $(,)?) => {{
        use cudarc::driver::PushKernelArg;
        let (stream, kernel, config) = (&$cuda.stream, &$kernel, $config);
        kernel.check(&[$(std::mem::size_of_val(&$argument)),+]).and_then(|()| {
            stream
                .launch_builder(&kernel.function)
                $(.arg(&$argument))+
                .launch(config)
                .map(drop)
                .map_err(|error| $crate::device::cuda::driver::device_error(format!("kernel {}", kernel.name), error))
        })
    }};
}
pub(super) use launch;

/// Fails where a number that kernels count in an int exceeds the limit in their headers: less than 2^31, because the
/// threads of the last block look as many numbers further as a block has threads.
pub(super) fn limit(operation: &str, what: &str, value: usize) -> Result<()> {
    const LIMIT: usize = (1 << 31) - 256;
    if value < LIMIT {
        return Ok(());
    }
    let detail = format!("{what} = {value}, kernels count to {}", LIMIT - 1);
    Err(Error::device(operation, detail, "use a smaller batch or image"))
}

/// A one-dimensional grid of `blocks` blocks. Fails when there are too many.
pub(super) fn grid(blocks: usize, threads: u32) -> Result<LaunchConfig> {
    grid2(blocks, 1, (threads, 1))
}

/// A grid of x·y blocks.
pub(super) fn grid2(x: usize, y: usize, block: (u32, u32)) -> Result<LaunchConfig> {
    let too_many = |_| Error::Internal(format!("a grid of {x} x {y} blocks"));
    let (columns, rows) = (
        i32::try_from(x).map_err(too_many)?,
        u16::try_from(y).map_err(too_many)?,
    );
    Ok(LaunchConfig {
        grid_dim: (columns as u32, rows.into(), 1),
        block_dim: (block.0, block.1, 1),
        shared_mem_bytes: 0,
    })
}

/// A grid that strides over `work` items, each a thread's: no more blocks than fill a large GPU several times over.
pub(super) fn strided(work: usize) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (work.div_ceil(256).clamp(1, 4096) as u32, 1, 1),
        block_dim: (256, 1, 1),
        shared_mem_bytes: 0,
    }
}
