//! Launch of kernels/peak.cu.

use cudarc::driver::sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;

use super::Cuda;
use super::driver::device_error;
use super::kernels::{grid, launch};
use super::memory::output;
use crate::Result;
use crate::device::Mem;

const THREADS: usize = 256;
/// Multiply-adds of one thread in one round of peak_f32.
const MULTIPLY_ADDS: usize = 8 * 32;

/// Two blocks of 256 threads a multiprocessor: enough warps for every scheduler, few enough for their registers.
fn blocks(cuda: &Cuda) -> Result<usize> {
    let count = cuda
        .context
        .attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
        .map_err(|error| device_error("peak", error))?;
    Ok(2 * count.max(1) as usize)
}

pub(super) fn bytes(cuda: &Cuda) -> usize {
    // An attribute that cannot be read here fails in `peak`.
    blocks(cuda).unwrap_or(1) * THREADS * size_of::<f32>()
}

pub(super) fn peak(cuda: &Cuda, memory: Mem<Cuda>, rounds: usize) -> Result<f64> {
    let blocks = blocks(cuda)?;
    let out = output::<f32>("memory", memory, blocks * THREADS)?;
    // SAFETY: types as in peak.cu; one value per thread.
    unsafe {
        launch!(
            cuda,
            cuda.kernels.peak_f32,
            grid(blocks, THREADS as u32)?,
            out,
            rounds as i32
        )
    }?;
    Ok(2.0 * (blocks * THREADS * rounds * MULTIPLY_ADDS) as f64)
}
