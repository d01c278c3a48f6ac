//! The speed of the GEMM that everything stands on: one sequential product per thread, all threads at once.

use super::gemm::{Matrix, gemm};
use super::memory::Lend;
use super::{Cpu, Float, Mem};
use crate::Result;

/// Side of the square matrices: three of them stay in a core's L2 cache in f32, and the depth is that of a convolution.
const SIDE: usize = 256;
const VALUES: usize = SIDE * SIDE;

pub(super) fn bytes<T: Float>(cpu: &Cpu<T>) -> usize {
    cpu.threads() * 3 * VALUES * size_of::<T>()
}

pub(super) fn peak<T: Float>(cpu: &Cpu<T>, memory: Mem<Cpu<T>>, rounds: usize) -> Result<f64> {
    let values = bytes(cpu) / size_of::<T>();
    let memory = Lend::new("peak").write::<T>("memory", memory, values)?;
    let flops = 2.0 * (SIDE * VALUES * rounds * cpu.threads()) as f64;
    cpu.threads
        .each(usize::MAX, memory.chunks_mut(3 * VALUES), |chunk| {
            let (dst, operands) = chunk.split_at_mut(VALUES);
            for (i, value) in operands.iter_mut().enumerate() {
                *value = T::from_f64((i * 7919 % 1009) as f64 / 504.5 - 1.0);
            }
            let (a, b) = operands.split_at(VALUES);
            for _ in 0..rounds {
                gemm(
                    dst,
                    false,
                    Matrix::rows(a, SIDE),
                    Matrix::columns(b, SIDE),
                    (SIDE, SIDE, SIDE),
                );
            }
        });
    Ok(flops)
}
