//! One GPU as the operations see it: its kernels, its stream, its memory.

use std::sync::Arc;

use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaContext, CudaModule, CudaSlice, CudaStream, result};
use cudarc::nvrtc::Ptx;

use super::driver::{self, device_error};
use super::format::{Operands, Storage};
use super::graph::{Blocks, Recording, refuse_recording};
use super::kernels::{Kernels, Sm90Kernels};
use super::memory::{Arena, address};
use super::transfer::{Incoming, Outgoing};
use super::{Cuda, list, tile, weight_wgmma, wgmma};
use crate::device::Mem;
use crate::{Error, Result};

/// Oldest compute capability that the kernels are compiled for.
const CAPABILITY: (i32, i32) = (8, 0);
/// CUDA version of the compiler that made the embedded kernels: older drivers do not load them.
const DRIVER: (i32, i32) = (13, 0);

/// What every operation works with; [`Cuda`] without the type of its activations.
#[derive(Debug)]
pub struct Launcher {
    name: String,
    pub(super) context: Arc<CudaContext>,
    pub(super) stream: Arc<CudaStream>,
    /// Uploads beside the kernels.
    transfers: Arc<CudaStream>,
    blocks: Blocks,
    module: Arc<CudaModule>,
    pub(super) kernels: Kernels,
    /// Where the GPU has them.
    pub(super) sm90: Option<Sm90Kernels>,
    /// What convolutions multiply.
    pub(super) operands: Operands,
}

impl Launcher {
    /// The GPU number `ordinal`, in the driver's count.
    ///
    /// # Errors
    /// `Device`: no driver, no such GPU, one that is too old, a driver that is too old, or a binary without kernels.
    pub fn open(ordinal: usize, operands: Operands) -> Result<Self> {
        let what = format!("cuda:{ordinal}");
        if !driver::present() {
            return Err(Error::device(
                what,
                "no NVIDIA driver (libcuda.so) found",
                "--device auto takes a GPU where there is one, else the CPU",
            ));
        }
        let emulated = driver::emulator_symbol(c"l2b_emulator_last_error").is_some();
        let fail = |error| device_error(what.as_str(), error);
        let count = CudaContext::device_count().map_err(fail)?;
        if i32::try_from(ordinal).map_or(true, |ordinal| ordinal >= count) {
            return Err(Error::device(
                what,
                format!("the driver sees {count} GPUs"),
                "`l2b devices` lists them; --device auto takes what there is",
            ));
        }
        let device = result::device::get(ordinal as i32).map_err(fail)?;
        let gpu = result::device::get_name(device).map_err(fail)?;
        let capability = list::capability(device)?;
        check_support(&what, &gpu, capability, list::driver_version()?)?;
        if driver::FATBIN.is_empty() && !emulated {
            let hint = "run scripts/cuda-toolchain, or put nvcc of CUDA 13.0 on PATH, and build again";
            return Err(Error::device(
                what,
                "this binary holds no kernels: it was built without nvcc",
                hint,
            ));
        }

        let context = CudaContext::new(ordinal).map_err(fail)?;
        // SAFETY: nothing is allocated yet. Without events, cudarc leaves the order of work to us: one stream for all kernels,
        // and `transfer` orders the other one by events of its own.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(fail)?;
        let transfers = context.new_stream().map_err(fail)?;
        let module = context
            .load_module(Ptx::from_binary(driver::FATBIN.to_vec()))
            .map_err(|error| device_error(format!("loading the kernels on {what}"), error))?;
        let kernels = Kernels::load(&module)?;
        tile::allow_shared(&kernels)?;
        let sm90 = Sm90Kernels::load(&module, capability, list::multiprocessors(device)?)?;
        sm90.as_ref().map_or(Ok(()), wgmma::allow_shared)?;
        sm90.as_ref().map_or(Ok(()), weight_wgmma::allow_shared)?;
        Ok(Launcher {
            name: if emulated {
                "emulator".into()
            } else {
                format!("{what} ({gpu})")
            },
            kernels,
            sm90,
            operands,
            context,
            stream,
            transfers,
            blocks: Blocks::default(),
            module,
        })
    }

    /// How activations are stored.
    pub(super) fn storage(&self) -> Storage {
        self.operands.storage()
    }

    /// Multiprocessors of a GPU that has the kernels of sm_90a.
    pub(super) fn sm90_count(&self) -> Option<u32> {
        self.sm90.as_ref().map(|kernels| kernels.multiprocessors)
    }

    pub fn name(&self) -> String {
        self.name.clone()
    }

    pub fn free_bytes(&self) -> Option<usize> {
        self.context.mem_get_info().ok().map(|(free, _)| free)
    }

    pub fn alloc(&self, bytes: usize) -> Result<Arena> {
        let block = Arc::new(self.block(bytes)?);
        self.blocks.add(&block);
        Ok(Arena::new(block))
    }

    fn block(&self, bytes: usize) -> Result<CudaSlice<u8>> {
        // SAFETY: contents are unspecified by contract; every byte pattern is a valid u8.
        let memory = unsafe { self.stream.alloc::<u8>(bytes.max(1)) };
        memory.map_err(|error| {
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

    pub fn upload(&self, dst: Mem<Cuda>, src: &[u8]) -> Result<()> {
        same_length("upload", dst.bytes, src.len())?;
        refuse_recording(&self.stream, "an upload")?;
        // SAFETY: dst is `bytes` long and alive; src is borrowed until the wait below has ended the copy. Mostly the driver has
        // read pageable memory when this call returns, but it promises that nowhere.
        unsafe { result::memcpy_htod_async(address(dst), src, self.stream.cu_stream()) }
            .map_err(|error| device_error("upload", error))?;
        self.synchronize()
    }

    pub fn download(&self, dst: &mut [u8], src: Mem<Cuda>) -> Result<()> {
        same_length("download", dst.len(), src.bytes)?;
        self.bind()?;
        // SAFETY: src is `bytes` long and alive; dst is borrowed until the wait below has ended the copy.
        unsafe { result::memcpy_dtoh_async(dst, address(src), self.stream.cu_stream()) }
            .map_err(|error| device_error("download", error))?;
        self.synchronize()
    }

    pub fn copy(&self, dst: Mem<Cuda>, src: Mem<Cuda>) -> Result<()> {
        same_length("copy", dst.bytes, src.bytes)?;
        self.bind()?;
        // SAFETY: both are `bytes` long, alive, and do not overlap by the seam's contract.
        unsafe { result::memcpy_dtod_async(address(dst), address(src), src.bytes, self.stream.cu_stream()) }
            .map_err(|error| device_error("copy", error))
    }

    pub fn fill(&self, dst: Mem<Cuda>, value: u8) -> Result<()> {
        self.bind()?;
        // SAFETY: dst is `bytes` long and alive.
        unsafe { result::memset_d8_async(address(dst), value, dst.bytes, self.stream.cu_stream()) }
            .map_err(|error| device_error("fill", error))
    }

    pub fn synchronize(&self) -> Result<()> {
        self.stream
            .synchronize()
            .map_err(|error| device_error(self.name.as_str(), error))?;
        // Errors of drops surface here.
        self.context
            .check_err()
            .map_err(|error| device_error(self.name.as_str(), error))
    }

    pub fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Recording> {
        Recording::new(&self.stream, &self.module, &self.blocks, work)
    }

    pub fn outgoing(&self, bytes: usize) -> Result<Outgoing> {
        Outgoing::new(self.transfers.clone(), self.block(bytes)?)
    }

    pub fn incoming(&self, bytes: usize) -> Result<Incoming> {
        Incoming::new(&self.context, bytes)
    }

    fn bind(&self) -> Result<()> {
        self.context
            .bind_to_thread()
            .map_err(|error| device_error(self.name.as_str(), error))
    }
}

impl Drop for Launcher {
    /// Nothing says that a driver keeps kernels which still run when their module is unloaded.
    fn drop(&mut self) {
        // What went wrong on the device has been reported, or nobody asked.
        let _ = self.stream.synchronize();
    }
}

/// Refuses a GPU or a driver that the embedded kernels do not run on.
pub(super) fn check_support(what: &str, gpu: &str, capability: (i32, i32), driver: (i32, i32)) -> Result<()> {
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
}
