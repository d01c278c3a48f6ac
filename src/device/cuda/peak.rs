//! Launches of kernels/peak.cu.

use cudarc::driver::sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;

use super::Cuda;
use super::driver::device_error;
use super::format::Operands;
use super::kernels::{grid, launch};
use super::launcher::Launcher;
use super::memory::output;
use crate::Result;
use crate::device::Mem;

const THREADS: usize = 256;

/// Two blocks of 256 threads a multiprocessor: enough warps for every scheduler, few enough for their registers.
fn blocks(cuda: &Launcher) -> Result<usize> {
    let count = cuda
        .context
        .attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
        .map_err(|error| device_error("peak", error))?;
    Ok(2 * count.max(1) as usize)
}

pub(super) fn bytes(cuda: &Launcher) -> usize {
    // An attribute that cannot be read here fails in `peak`.
    blocks(cuda).unwrap_or(1) * THREADS * size_of::<f32>()
}

/// On what the device's convolutions multiply.
pub(super) fn peak(cuda: &Launcher, memory: Mem<Cuda>, rounds: usize) -> Result<f64> {
    let [single, tf32, bf16] = &cuda.kernels.peak;
    // Multiply-adds of one thread in one round: 8 on each of 32 chains; 16 matrix products shared by 32 threads.
    let (kernel, multiply_adds) = match cuda.operands {
        Operands::F32 => (single, 8 * 32),
        Operands::Tf32 => (tf32, 16 * 16 * 8 * 8 / 32),
        Operands::Bf16 => (bf16, 16 * 16 * 8 * 16 / 32),
    };
    let blocks = blocks(cuda)?;
    let out = output::<f32>("memory", memory, blocks * THREADS)?;
    // SAFETY: types as in peak.cu; one value per thread.
    unsafe { launch!(cuda, kernel, grid(blocks, THREADS as u32)?, out, rounds as i32) }?;
    Ok(2.0 * (blocks * THREADS * rounds * multiply_adds) as f64)
}
