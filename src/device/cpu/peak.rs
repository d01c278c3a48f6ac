//! The speed of the product that everything stands on: one 1×1 convolution per thread, all threads at once.

use pulp::Arch;

use super::super::ConvShape;
use super::conv::{Pass, Term};
use super::kernel::Widths;
use super::memory::Lend;
use super::multiply::Input;
use super::view::Views;
use super::{Cpu, Float, Mem, Plan, Rounding};
use crate::Result;

/// Pixels and filters.
const SIDE: usize = 64;
/// Channels: with so many the operands stay in a core's L2 cache and the depth is that of a convolution.
const DEPTH: usize = 256;
/// Values of the result, of both operands.
const VALUES: (usize, usize) = (SIDE * SIDE, 2 * SIDE * DEPTH);

const SHAPE: ConvShape = ConvShape {
    n: 1,
    h: 1,
    w: SIDE as i32,
    c: DEPTH as i32,
    k: SIDE as i32,
    r: 1,
    s: 1,
    stride: 1,
    pad: 0,
};

/// What the product is compiled to.
pub(super) fn instruction(arch: Arch) -> &'static str {
    match arch {
        #[cfg(target_arch = "x86_64")]
        Arch::V4(_) => "AVX-512 multiply-add",
        #[cfg(target_arch = "x86_64")]
        Arch::V3(_) => "AVX2 multiply-add",
        _ => "as compiled for any processor of this kind",
    }
}

pub(super) fn bytes<T: Float>(cpu: &Cpu<T>) -> usize {
    cpu.threads() * (VALUES.0 + VALUES.1) * size_of::<T>()
}

pub(super) fn peak<T: Float>(cpu: &Cpu<T>, memory: Mem<Cpu<T>>, rounds: usize) -> Result<f64> {
    let values = bytes(cpu) / size_of::<T>();
    let memory = Lend::new("peak").write::<T>("memory", memory, values)?;
    let plan = Plan::new::<T>(&SHAPE, Widths::of::<T>(cpu.arch), 1)?;
    let pass = Pass {
        cpu,
        plan: &plan,
        rounding: Rounding::None,
        views: Views::forward(&SHAPE),
        pieces: plan.forward,
        outputs: SIDE,
        bias: None,
    };
    cpu.threads
        .each(usize::MAX, memory.chunks_mut(VALUES.0 + VALUES.1), |chunk| {
            let (out, operands) = chunk.split_at_mut(VALUES.0);
            for (i, value) in operands.iter_mut().enumerate() {
                *value = T::from_f64((i * 7919 % 1009) as f64 / 504.5 - 1.0);
            }
            let (x, filter) = operands.split_at(SIDE * DEPTH);
            let input = Input::Stored(x);
            for _ in 0..rounds {
                pass.piece(0..1, out, false, &[Term { input, filter }], &mut []);
            }
        });
    Ok(SHAPE.flops() * (rounds * cpu.threads()) as f64)
}
