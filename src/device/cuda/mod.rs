//! NVIDIA GPUs (and the emulator that stands in for one), through cudarc's driver API and the kernels of `kernels/*.cu`.
//! Act = Real = f32.
//!
//! Everything runs on one stream, in the order of the calls; nothing is allocated, waited for or read back inside an
//! operation, so any sequence of operations can be recorded as a [`Graph`].
//!
//! | file | holds |
//! |---|---|
//! | `driver` | which driver the process talks to; the embedded kernels; errors |
//! | `memory` | arenas; operands as checked kernel arguments |
//! | `kernels` | the table of loaded kernels; launching |
//! | `conv`, `norm`, `rows`, `loss`, `optim` | one launch function per kernel: lengths, launch shape, arguments |
//! | `graph` | recording and replaying |
//! | `timer`, `peak` | measuring: marks in the stream, the rate of the multiply-add units |
//! | `list` | driver and GPUs for `l2b devices` |

mod conv;
pub mod driver;
mod graph;
mod kernels;
mod list;
mod loss;
mod memory;
mod norm;
mod optim;
mod peak;
mod rows;
mod timer;

pub use conv::Plan;
pub use graph::Graph;
pub use list::{Gpu, Listing, bus_id, devices};
pub use memory::Arena;
pub use peak::Operands;
pub use timer::Mark;

use std::sync::Arc;

use cudarc::driver::sys::{CUresult, CUstreamCaptureStatus};
use cudarc::driver::{CudaContext, CudaStream, result};
use cudarc::nvrtc::Ptx;

use super::{
    AugmentShape, Conv, ConvShape, Device, Epilogue, Geometry, LossShape, Mem, Norm, Normalise, PoolShape,
    Prepared, Rows, Source, Statistics, StepParams, Tangent, Targets, Write,
};
use crate::{Error, Result};
use driver::device_error;
use kernels::{Kernels, grid, launch, limit};
use memory::{address, input, output};

/// Oldest compute capability that the kernels are compiled for.
const CAPABILITY: (i32, i32) = (8, 0);
/// CUDA version of the compiler that made the embedded kernels: older drivers do not load them.
const DRIVER: (i32, i32) = (13, 0);

/// One GPU, or the emulator.
#[derive(Debug)]
pub struct Cuda {
    name: String,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    kernels: Kernels,
}

impl Cuda {
    /// The GPU number `ordinal`, in the driver's count.
    ///
    /// # Errors
    /// `Device`: no driver, no such GPU, one that is too old, a driver that is too old, or a binary without kernels.
    pub fn new(ordinal: usize) -> Result<Self> {
        let what = format!("cuda:{ordinal}");
        if !driver::present() {
            return Err(Error::device(
                what,
                "no NVIDIA driver (libcuda.so) found",
                "use --device cpu",
            ));
        }
        let emulated = driver::emulator_symbol(c"l2b_emulator_last_error").is_some();
        let fail = |error| device_error(what.as_str(), error);
        let count = CudaContext::device_count().map_err(fail)?;
        if i32::try_from(ordinal).map_or(true, |ordinal| ordinal >= count) {
            return Err(Error::device(
                what,
                format!("the driver sees {count} GPUs"),
                "`l2b devices` lists them",
            ));
        }
        let device = result::device::get(ordinal as i32).map_err(fail)?;
        let gpu = result::device::get_name(device).map_err(fail)?;
        check_support(&what, &gpu, list::capability(device)?, list::driver_version()?)?;
        if driver::FATBIN.is_empty() && !emulated {
            let hint = "run scripts/cuda-toolchain, or put nvcc of CUDA 13.0 on PATH, and build again";
            return Err(Error::device(
                what,
                "this binary holds no kernels: it was built without nvcc",
                hint,
            ));
        }

        let context = CudaContext::new(ordinal).map_err(fail)?;
        // SAFETY: nothing is allocated yet. Without events, cudarc leaves the order of work to us: there is one stream.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(fail)?;
        let module = context
            .load_module(Ptx::from_binary(driver::FATBIN.to_vec()))
            .map_err(|error| device_error(format!("loading the kernels on {what}"), error))?;
        Ok(Cuda {
            name: if emulated {
                "emulator".into()
            } else {
                format!("{what} ({gpu})")
            },
            kernels: Kernels::load(&module)?,
            context,
            stream,
        })
    }

    /// The emulator, which runs the same kernels on the CPU (cargo feature `emulator`).
    ///
    /// # Errors
    /// `Device`: this build holds no emulator, or the process already uses a GPU.
    pub fn emulator() -> Result<Self> {
        driver::load_emulator()?;
        Cuda::new(0)
    }

    /// Sends the structs that cross to the device through a kernel and returns their fields, in the order of the
    /// parameters and of declaration, StepParams first. For the test of their layout.
    #[doc(hidden)]
    pub fn echo_shapes(
        &self,
        step: StepParams,
        (conv, rows, pool): (ConvShape, Rows, PoolShape),
        (loss, augment): (LossShape, AugmentShape),
    ) -> Result<Vec<f64>> {
        let mut fields = vec![0.0f64; 35];
        let bytes = size_of_val(&fields[..]);
        let (fields_arena, step_arena) = (self.alloc(bytes)?, self.alloc(size_of::<StepParams>())?);
        let span = |arena, bytes| super::Span {
            arena,
            offset: 0,
            bytes,
        };
        let step_mem = span(&step_arena, size_of::<StepParams>());
        self.upload(step_mem, bytemuck::bytes_of(&step))?;
        let out = output::<f64>("fields", span(&fields_arena, bytes), fields.len())?;
        let step = input::<StepParams>("step", step_mem, 1)?;
        // SAFETY: types as in shapes.cu; out holds its 35 fields.
        unsafe {
            launch!(
                self,
                self.kernels.echo_shapes,
                grid(1, 1)?,
                out,
                step,
                conv,
                rows,
                pool,
                loss,
                augment
            )
        }?;
        self.download(bytemuck::cast_slice_mut(&mut fields), span(&fields_arena, bytes))?;
        Ok(fields)
    }

    fn bind(&self) -> Result<()> {
        self.context
            .bind_to_thread()
            .map_err(|error| device_error(self.name.as_str(), error))
    }
}

// SAFETY: plain integers and floats, laid out as their twins in kernels/shapes.cuh, which a test compares.
unsafe impl cudarc::driver::DeviceRepr for ConvShape {}
unsafe impl cudarc::driver::DeviceRepr for Rows {}
unsafe impl cudarc::driver::DeviceRepr for PoolShape {}
unsafe impl cudarc::driver::DeviceRepr for LossShape {}
unsafe impl cudarc::driver::DeviceRepr for AugmentShape {}

/// Refuses a GPU or a driver that the embedded kernels do not run on.
fn check_support(what: &str, gpu: &str, capability: (i32, i32), driver: (i32, i32)) -> Result<()> {
    if capability < CAPABILITY {
        let detail = format!(
            "{gpu} has compute capability {}.{}, the kernels need {}.{}",
            capability.0, capability.1, CAPABILITY.0, CAPABILITY.1
        );
        return Err(Error::device(what, detail, "use --device cpu"));
    }
    if driver < DRIVER {
        let detail = format!(
            "the NVIDIA driver supports CUDA {}.{}, the kernels need {}.{}",
            driver.0, driver.1, DRIVER.0, DRIVER.1
        );
        return Err(Error::device(what, detail, "install driver 580 or later"));
    }
    Ok(())
}

/// Fails unless both sides of a transfer have the same length.
fn same_length(what: &str, dst: usize, src: usize) -> Result<()> {
    if dst != src {
        return Err(Error::Internal(format!("{what} of {src} bytes into {dst}")));
    }
    Ok(())
}

impl Device for Cuda {
    type Act = f32;
    type Real = f32;
    type Arena = Arena;
    type Algorithm = Plan;
    type Mark = Mark;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn free_bytes(&self) -> Option<usize> {
        self.context.mem_get_info().ok().map(|(free, _)| free)
    }

    fn alloc(&self, bytes: usize) -> Result<Arena> {
        // SAFETY: contents are unspecified by contract; every byte pattern is a valid u8.
        let memory = unsafe { self.stream.alloc::<u8>(bytes.max(1)) };
        memory.map(Arena::new).map_err(|error| {
            if error.0 != CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                return device_error("allocation", error);
            }
            let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
            let free = self
                .context
                .mem_get_info()
                .map_or("an unknown amount".into(), |(free, total)| {
                    format!("{:.1} of {:.1} MiB", mib(free), mib(total))
                });
            let detail = format!("out of memory: {:.1} MiB needed, {free} free", mib(bytes));
            Error::device(self.name.as_str(), detail, "use a smaller batch")
        })
    }

    fn upload(&self, dst: Mem<Self>, src: &[u8]) -> Result<()> {
        same_length("upload", dst.bytes, src.len())?;
        let capturing = self
            .stream
            .capture_status()
            .map_err(|error| device_error("upload", error))?;
        if capturing != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
            return Err(Error::Internal(
                "an upload cannot be recorded: every replay would read the host's memory again".into(),
            ));
        }
        // SAFETY: dst is `bytes` long and alive. Outside of a capture the driver has read pageable host memory when the
        // call returns.
        unsafe { result::memcpy_htod_async(address(dst), src, self.stream.cu_stream()) }
            .map_err(|error| device_error("upload", error))
    }

    fn download(&self, dst: &mut [u8], src: Mem<Self>) -> Result<()> {
        same_length("download", dst.len(), src.bytes)?;
        self.bind()?;
        // SAFETY: src is `bytes` long and alive; dst is borrowed until the wait below has ended the copy.
        unsafe { result::memcpy_dtoh_async(dst, address(src), self.stream.cu_stream()) }
            .map_err(|error| device_error("download", error))?;
        self.synchronize()
    }

    fn copy(&self, dst: Mem<Self>, src: Mem<Self>) -> Result<()> {
        same_length("copy", dst.bytes, src.bytes)?;
        self.bind()?;
        // SAFETY: both are `bytes` long, alive, and do not overlap by the seam's contract.
        unsafe { result::memcpy_dtod_async(address(dst), address(src), src.bytes, self.stream.cu_stream()) }
            .map_err(|error| device_error("copy", error))
    }

    fn fill(&self, dst: Mem<Self>, value: u8) -> Result<()> {
        self.bind()?;
        // SAFETY: dst is `bytes` long and alive.
        unsafe { result::memset_d8_async(address(dst), value, dst.bytes, self.stream.cu_stream()) }
            .map_err(|error| device_error("fill", error))
    }

    fn synchronize(&self) -> Result<()> {
        self.stream
            .synchronize()
            .map_err(|error| device_error(self.name.as_str(), error))?;
        // Errors of drops surface here.
        self.context
            .check_err()
            .map_err(|error| device_error(self.name.as_str(), error))
    }

    fn prepare(&self, node: &Geometry) -> Result<Prepared<Plan>> {
        match node {
            Geometry::Conv(shape) | Geometry::Linear(shape) => return conv::prepare(shape),
            Geometry::Join(shape) => limit("join", "rows", shape.rows as usize)?,
            Geometry::Pool(shape) => rows::pool_rows(shape).map(drop)?,
        }
        Ok(Prepared {
            saved_bytes: 0,
            scratch_bytes: 0,
            algorithm: Plan::NONE,
        })
    }

    fn partials_bytes(&self, shape: Rows) -> usize {
        norm::partials_len(shape) * size_of::<f32>()
    }

    fn gradient_norm_scratch_bytes(&self, len: usize) -> usize {
        optim::norm_blocks(len) * size_of::<f32>()
    }

    fn conv_forward(
        &self,
        conv: Conv<Self>,
        y: Mem<Self>,
        w: Mem<Self>,
        bias: Option<Mem<Self>>,
        epilogue: Epilogue<Arena>,
    ) -> Result<()> {
        conv::forward(self, conv, y, w, bias, epilogue)
    }

    fn conv_tangent(
        &self,
        conv: Conv<Self>,
        ty: Mem<Self>,
        tx: Tangent<Arena>,
        w: Mem<Self>,
        tw: Mem<Self>,
        tbias: Option<Mem<Self>>,
        epilogue: Epilogue<Arena>,
    ) -> Result<()> {
        conv::forward_tangent(self, conv, ty, tx, w, tw, tbias, epilogue)
    }

    fn conv_backward_input(
        &self,
        conv: Conv<Self>,
        d: Mem<Self>,
        write: Write,
        dy: Mem<Self>,
        w: Mem<Self>,
        epilogue: Epilogue<Arena>,
    ) -> Result<()> {
        conv::backward_input(self, conv, d, write, dy, w, epilogue)
    }

    fn conv_backward_weight(
        &self,
        conv: Conv<Self>,
        dw: Mem<Self>,
        dbias: Option<Mem<Self>>,
        write: Write,
        dy: Mem<Self>,
    ) -> Result<()> {
        conv::backward_weight(self, conv, dw, dbias, write, dy)
    }

    fn conv_contract(
        &self,
        conv: Conv<Self>,
        out: Mem<Self>,
        dy: Mem<Self>,
        tw: Mem<Self>,
        tbias: Option<Mem<Self>>,
    ) -> Result<()> {
        conv::contract(self, conv, out, dy, tw, tbias)
    }

    fn norm_forward(&self, norm: Norm<Arena>, statistics: Statistics) -> Result<()> {
        norm::forward(self, norm, statistics)
    }

    fn norm_tangent(
        &self,
        norm: Norm<Arena>,
        statistics: Statistics,
        tgamma: Mem<Self>,
        tbeta: Mem<Self>,
    ) -> Result<()> {
        norm::tangent(self, norm, statistics, tgamma, tbeta)
    }

    fn norm_backward(
        &self,
        norm: Norm<Arena>,
        statistics: Statistics,
        dgamma: Mem<Self>,
        dbeta: Mem<Self>,
        write: Write,
    ) -> Result<()> {
        norm::backward(self, norm, statistics, dgamma, dbeta, write)
    }

    fn norm_contract(
        &self,
        norm: Norm<Arena>,
        samples: usize,
        out: Mem<Self>,
        x: Mem<Self>,
        d: Mem<Self>,
        tgamma: Mem<Self>,
        tbeta: Mem<Self>,
    ) -> Result<()> {
        norm::contract(self, norm, samples, out, x, d, tgamma, tbeta)
    }

    fn source_backward(
        &self,
        shape: Rows,
        dx: Mem<Self>,
        write: Write,
        d: Mem<Self>,
        x: Source<Arena>,
        slope: Option<Mem<Self>>,
        epilogue: Epilogue<Arena>,
    ) -> Result<()> {
        rows::source_backward(self, shape, dx, write, d, x, slope, epilogue)
    }

    fn join_forward(
        &self,
        shape: Rows,
        y: Mem<Self>,
        a: Source<Arena>,
        b: Source<Arena>,
        epilogue: Epilogue<Arena>,
    ) -> Result<()> {
        rows::join_forward(self, shape, y, a, b, epilogue)
    }

    fn join_tangent(
        &self,
        shape: Rows,
        ty: Mem<Self>,
        a: (Source<Arena>, Tangent<Arena>),
        b: (Source<Arena>, Tangent<Arena>),
        epilogue: Epilogue<Arena>,
    ) -> Result<()> {
        rows::join_tangent(self, shape, ty, a, b, epilogue)
    }

    fn pool_forward(&self, shape: PoolShape, y: Mem<Self>, x: Source<Arena>) -> Result<()> {
        rows::pool_forward(self, shape, y, x)
    }

    fn pool_tangent(
        &self,
        shape: PoolShape,
        ty: Mem<Self>,
        x: Source<Arena>,
        tx: Tangent<Arena>,
    ) -> Result<()> {
        rows::pool_tangent(self, shape, ty, x, tx)
    }

    fn pool_backward(
        &self,
        shape: PoolShape,
        d: Mem<Self>,
        write: Write,
        dy: Mem<Self>,
        epilogue: Epilogue<Arena>,
    ) -> Result<()> {
        rows::pool_backward(self, shape, d, write, dy, epilogue)
    }

    fn pseudo_labels(&self, shape: LossShape, labels: Mem<Self>, z: Mem<Self>) -> Result<()> {
        loss::pseudo_labels(self, shape, labels, z)
    }

    fn cross_entropy(
        &self,
        shape: LossShape,
        loss: Mem<Self>,
        z: Mem<Self>,
        targets: Targets<Arena>,
    ) -> Result<()> {
        loss::cross_entropy(self, shape, loss, z, targets)
    }

    fn cross_entropy_backward(
        &self,
        shape: LossShape,
        dz: Mem<Self>,
        z: Mem<Self>,
        first: (Targets<Arena>, Mem<Self>),
        second: Option<(Targets<Arena>, Mem<Self>)>,
    ) -> Result<()> {
        loss::cross_entropy_backward(self, shape, dz, z, first, second)
    }

    fn tangent_dot(
        &self,
        shape: LossShape,
        raw: Mem<Self>,
        z: Mem<Self>,
        tz: Mem<Self>,
        targets: Targets<Arena>,
    ) -> Result<()> {
        loss::tangent_dot(self, shape, raw, z, tz, targets)
    }

    fn weights(
        &self,
        weights: Mem<Self>,
        raw: Mem<Self>,
        normalise: Normalise,
        step: Mem<Self>,
    ) -> Result<()> {
        loss::weights(self, weights, raw, normalise, step)
    }

    fn lookahead(&self, out: Mem<Self>, theta: Mem<Self>, buf: Mem<Self>, step: Mem<Self>) -> Result<()> {
        optim::lookahead(self, out, theta, buf, step)
    }

    fn gradient_norm(&self, norm: Mem<Self>, g: Mem<Self>, scratch: Mem<Self>) -> Result<()> {
        optim::gradient_norm(self, norm, g, scratch)
    }

    fn sgd(
        &self,
        theta: Mem<Self>,
        buf: Mem<Self>,
        g: Mem<Self>,
        norm: Mem<Self>,
        step: Mem<Self>,
    ) -> Result<()> {
        optim::sgd(self, theta, buf, g, norm, step)
    }

    fn augment(
        &self,
        shape: AugmentShape,
        out: Mem<Self>,
        images: Mem<Self>,
        ids: Mem<Self>,
        table: Mem<Self>,
        step: Mem<Self>,
    ) -> Result<()> {
        optim::augment(self, shape, out, images, ids, table, step)
    }

    fn mark(&self) -> Result<Mark> {
        timer::mark(self)
    }

    fn seconds(&self, from: &Mark, to: &Mark) -> Result<f64> {
        timer::seconds(from, to)
    }

    fn peak_bytes(&self) -> usize {
        peak::bytes(self)
    }

    fn peak(&self, memory: Mem<Self>, rounds: usize) -> Result<f64> {
        self.peak_of(Operands::F32, memory, rounds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_hardware_and_drivers_are_refused_by_number() {
        assert!(check_support("cuda:0", "NVIDIA A100", (8, 0), (13, 0)).is_ok());
        let old = check_support("cuda:0", "NVIDIA T4", (7, 5), (13, 0))
            .unwrap_err()
            .to_string();
        assert!(
            old.contains("NVIDIA T4") && old.contains("7.5") && old.contains("8.0"),
            "{old}"
        );
        let old = check_support("cuda:0", "NVIDIA A100", (8, 0), (12, 8))
            .unwrap_err()
            .to_string();
        assert!(old.contains("12.8") && old.contains("13.0"), "{old}");
    }

    /// The table has every kernel of kernels/*.cu and no other.
    #[test]
    fn table_is_complete() {
        let mut table = Kernels::NAMES.to_vec();
        let mut sources = driver::KERNEL_NAMES.to_vec();
        table.sort_unstable();
        sources.sort_unstable();
        assert_eq!(table, sources);
    }
}
