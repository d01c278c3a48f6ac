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

    /// Lets a launch ask for `bytes` bytes of dynamic shared memory: above 48 KiB the driver wants to be told.
    pub fn allow_shared(&self, bytes: u32) -> Result<()> {
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        self.function
            .set_attribute(attribute, bytes as i32)
            .map_err(|error| device_error(format!("kernel {}", self.name), error))
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
    ($($name:ident)+; $($group:ident: $($member:ident)+;)+) => {
        /// Every kernel of `kernels/*.cu`; variants of one operation as an array, in the order of the table below.
        #[derive(Debug)]
        pub(super) struct Kernels {
            $(pub $name: Kernel,)+
            $(pub $group: [Kernel; [$(stringify!($member)),+].len()],)+
        }

        impl Kernels {
            #[cfg(test)]
            pub const NAMES: &[&str] = &[$(stringify!($name),)+ $($(stringify!($member),)+)+];

            pub fn load(module: &Arc<CudaModule>) -> Result<Self> {
                Ok(Kernels {
                    $($name: Kernel::load(module, stringify!($name))?,)+
                    $($group: [$(Kernel::load(module, stringify!($member))?),+],)+
                })
            }
        }
    };
}

kernels! {
    sum_slices sum_samples column_sums
    norm_forward_batch norm_forward_running norm_tangent norm_backward
    pseudo_labels cross_entropy cross_entropy_backward tangent_dot weights
    lookahead squares_partial norm_finish watch sgd echo_shapes;

    // Operands f32, tf32, bf16 x tile large, small, any operands: `Plan::pick`.
    conv_forward:
        conv_forward_large conv_forward_small conv_forward_odd
        conv_forward_large_tf32 conv_forward_small_tf32 conv_forward_odd_tf32
        conv_forward_large_bf16 conv_forward_small_bf16 conv_forward_odd_bf16;
    conv_tangent:
        conv_tangent_large conv_tangent_small conv_tangent_odd
        conv_tangent_large_tf32 conv_tangent_small_tf32 conv_tangent_odd_tf32
        conv_tangent_large_bf16 conv_tangent_small_bf16 conv_tangent_odd_bf16;
    conv_backward_input:
        conv_backward_input_large conv_backward_input_small conv_backward_input_odd
        conv_backward_input_large_tf32 conv_backward_input_small_tf32 conv_backward_input_odd_tf32
        conv_backward_input_large_bf16 conv_backward_input_small_bf16 conv_backward_input_odd_bf16;
    conv_backward_weight:
        conv_backward_weight_large conv_backward_weight_small conv_backward_weight_odd
        conv_backward_weight_large_tf32 conv_backward_weight_small_tf32 conv_backward_weight_odd_tf32
        conv_backward_weight_large_bf16 conv_backward_weight_small_bf16 conv_backward_weight_odd_bf16;
    conv_contract:
        conv_contract_large conv_contract_small conv_contract_odd
        conv_contract_large_tf32 conv_contract_small_tf32 conv_contract_odd_tf32
        conv_contract_large_bf16 conv_contract_small_bf16 conv_contract_odd_bf16;

    // Operands tf32, bf16 x tile large, small: `Plan::halo`.
    conv_forward_halo:
        conv_forward_halo_large_tf32 conv_forward_halo_small_tf32
        conv_forward_halo_large_bf16 conv_forward_halo_small_bf16;
    conv_tangent_halo:
        conv_tangent_halo_large_tf32 conv_tangent_halo_small_tf32
        conv_tangent_halo_large_bf16 conv_tangent_halo_small_bf16;

    // Operands tf32, bf16.
    arrange_filters: arrange_filters_tf32 arrange_filters_bf16;

    // Storage f32, bf16 x 16 bytes at a time, any operands: `Storage::pick_width`.
    channel_sums: channel_sums_wide channel_sums_odd channel_sums_wide_bf16 channel_sums_odd_bf16;
    join_forward: join_forward_wide join_forward_odd join_forward_wide_bf16 join_forward_odd_bf16;
    join_tangent: join_tangent_wide join_tangent_odd join_tangent_wide_bf16 join_tangent_odd_bf16;
    source_backward: source_backward_wide source_backward_odd source_backward_wide_bf16 source_backward_odd_bf16;
    pool_backward: pool_backward_wide pool_backward_odd pool_backward_wide_bf16 pool_backward_odd_bf16;

    // Storage f32, bf16: `Storage::pick`.
    pool_forward: pool_forward pool_forward_bf16;
    pool_tangent: pool_tangent pool_tangent_bf16;
    norm_contract: norm_contract norm_contract_bf16;
    augment: augment augment_bf16;

    // Operands f32, tf32, bf16.
    peak: peak_f32 peak_tf32 peak_bf16;
}

/// Kernels of `kernels/*_sm90.cu`.
#[derive(Debug)]
pub(super) struct Sm90Kernels {
    pub conv_weight_wgmma: Kernel,
    /// Filters of a tile: 64, 128.
    pub conv_wgmma: [Kernel; 2],
    pub peak: Kernel,
    /// Resident blocks: the GPU's number of multiprocessors.
    pub multiprocessors: u32,
}

impl Sm90Kernels {
    pub const NAMES: [&str; 4] = [
        "conv_weight_wgmma",
        "conv_wgmma_64",
        "conv_wgmma_128",
        "peak_wgmma",
    ];

    /// `None` where the GPU is of another architecture, or the binary without code for this one.
    pub fn load(
        module: &Arc<CudaModule>,
        capability: (i32, i32),
        multiprocessors: u32,
    ) -> Result<Option<Self>> {
        let [weight, small, large, peak] = Self::NAMES;
        if capability != (9, 0) || module.load_function(small).is_err() {
            return Ok(None);
        }
        Ok(Some(Sm90Kernels {
            conv_weight_wgmma: Kernel::load(module, weight)?,
            conv_wgmma: [Kernel::load(module, small)?, Kernel::load(module, large)?],
            peak: Kernel::load(module, peak)?,
            multiprocessors,
        }))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The table has every kernel of kernels/*.cu and no other.
    #[test]
    fn table_is_complete() {
        let mut table = Kernels::NAMES.to_vec();
        let mut sources = super::super::driver::KERNEL_NAMES.to_vec();
        table.sort_unstable();
        sources.sort_unstable();
        assert_eq!(table, sources);
        assert_eq!(Sm90Kernels::NAMES, super::super::driver::SM90_KERNEL_NAMES);
    }
}
