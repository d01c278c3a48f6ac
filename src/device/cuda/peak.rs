//! Launches of kernels/peak.cu and kernels/peak_sm90.cu.

use cudarc::driver::LaunchConfig;
use cudarc::driver::sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;

use super::Cuda;
use super::driver::device_error;
use super::format::Operands;
use super::kernels::{Kernel, grid, launch};
use super::launcher::Launcher;
use super::memory::output;
use crate::Result;
use crate::device::Mem;

const THREADS: usize = 256;

/// The fastest way to multiply what the device's convolutions multiply.
struct Way<'a> {
    kernel: &'a Kernel,
    instruction: &'static str,
    /// Of one thread in one round.
    multiply_adds: usize,
    /// Blocks a multiprocessor: enough warps for every scheduler, few enough for their registers.
    blocks: usize,
    shared_bytes: u32,
}

fn way(cuda: &Launcher) -> Way<'_> {
    let [single, tf32, bf16] = &cuda.kernels.peak;
    let plain = |kernel, instruction, multiply_adds| Way {
        kernel,
        instruction,
        multiply_adds,
        blocks: 2,
        shared_bytes: 0,
    };
    match (cuda.operands, &cuda.sm90) {
        // 8 on each of 32 chains; 16 products shared by 32 threads.
        (Operands::F32, _) => plain(single, "fma.f32", 8 * 32),
        (Operands::Tf32, _) => plain(tf32, "mma.sync.m16n8k8.tf32", 16 * 16 * 8 * 8 / 32),
        (Operands::Bf16, None) => plain(bf16, "mma.sync.m16n8k16.bf16", 16 * 16 * 8 * 16 / 32),
        // 8 products shared by 128 threads, operands in 48 KB.
        (Operands::Bf16, Some(kernels)) => Way {
            kernel: &kernels.peak,
            instruction: "wgmma.m64n128k16.bf16",
            multiply_adds: 8 * 64 * 128 * 16 / 128,
            blocks: 1,
            shared_bytes: 48 << 10,
        },
    }
}

fn blocks(cuda: &Launcher) -> Result<usize> {
    let count = cuda
        .context
        .attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
        .map_err(|error| device_error("peak", error))?;
    Ok(way(cuda).blocks * count.max(1) as usize)
}

pub(super) fn bytes(cuda: &Launcher) -> usize {
    // An attribute that cannot be read here fails in `peak`.
    blocks(cuda).unwrap_or(1) * THREADS * size_of::<f32>()
}

pub(super) fn instruction(cuda: &Launcher) -> &'static str {
    way(cuda).instruction
}

pub(super) fn peak(cuda: &Launcher, memory: Mem<Cuda>, rounds: usize) -> Result<f64> {
    let way = way(cuda);
    let blocks = blocks(cuda)?;
    let out = output::<f32>("memory", memory, blocks * THREADS)?;
    let config = LaunchConfig {
        shared_mem_bytes: way.shared_bytes,
        ..grid(blocks, THREADS as u32)?
    };
    // SAFETY: types as in peak.cu and peak_sm90.cu; one value per thread.
    unsafe { launch!(cuda, way.kernel, config, out, rounds as i32) }?;
    Ok(2.0 * (blocks * THREADS * rounds * way.multiply_adds) as f64)
}
