//! Launches of kernels/optim.cu.

use super::Cuda;
use super::kernels::{grid, launch, strided};
use super::launcher::Launcher;
use super::memory::{Aligned, In, NONE, input, output, scratch};
use crate::device::{Mem, StepParams, WATCHED};
use crate::{Error, Result};

/// Values of a parameter vector.
fn length(mem: &Mem<Cuda>) -> usize {
    mem.bytes / size_of::<f32>()
}

/// Parameters are laid out at multiples of 256 bytes.
fn require_aligned(operands: &[&dyn Aligned]) -> Result<()> {
    if operands.iter().all(|operand| operand.aligned()) {
        return Ok(());
    }
    Err(Error::Internal(
        "a parameter vector that is not 16-byte aligned".into(),
    ))
}

pub(super) fn lookahead(
    cuda: &Launcher,
    out: Mem<Cuda>,
    theta: Mem<Cuda>,
    buf: Mem<Cuda>,
    step: Mem<Cuda>,
) -> Result<()> {
    let len = length(&theta);
    let out = output::<f32>("out", out, len)?;
    let theta = input::<f32>("theta", theta, len)?;
    let buf = input::<f32>("buf", buf, len)?;
    let step = input::<StepParams>("step", step, 1)?;
    require_aligned(&[&out, &theta, &buf])?;
    let (grid, len) = (strided(len.div_ceil(4)), len as i64);
    // SAFETY: types as in optim.cu; lengths and alignment checked above.
    unsafe { launch!(cuda, cuda.kernels.lookahead, grid, out, theta, buf, step, len) }
}

/// Blocks, and so partial sums, of the gradient norm.
pub(super) fn norm_blocks(len: usize) -> usize {
    strided(len.div_ceil(4)).grid_dim.0.min(1024) as usize
}

pub(super) fn gradient_norm(cuda: &Launcher, norm: Mem<Cuda>, g: Mem<Cuda>, space: Mem<Cuda>) -> Result<()> {
    let len = length(&g);
    let blocks = norm_blocks(len);
    let norm = output::<f32>("norm", norm, 1)?;
    let g = input::<f32>("g", g, len)?;
    let partial = scratch::<f32>("scratch", space, blocks)?;
    require_aligned(&[&g])?;
    let len = len as i64;
    // SAFETY: types as in optim.cu; lengths and alignment checked above, one partial sum per block.
    unsafe {
        launch!(
            cuda,
            cuda.kernels.squares_partial,
            grid(blocks, 256)?,
            partial,
            g,
            len
        )
    }?;
    let (partial, count) = (partial.read(), blocks as i32);
    // SAFETY: types as in optim.cu; partial holds `count` values.
    unsafe {
        launch!(
            cuda,
            cuda.kernels.norm_finish,
            grid(1, 256)?,
            norm,
            partial,
            count
        )
    }
}

/// Twin of Watched in kernels/optim.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Watched {
    values: [In; WATCHED],
    len: [i64; WATCHED],
}

// SAFETY: plain old data without padding, laid out as its twin.
unsafe impl cudarc::driver::DeviceRepr for Watched {}

pub(super) fn watch(
    cuda: &Launcher,
    stopped: Mem<Cuda>,
    values: &[Mem<Cuda>],
    step: Mem<Cuda>,
) -> Result<()> {
    if values.len() > WATCHED {
        return Err(Error::Internal(format!("{} operands to watch", values.len())));
    }
    let stopped = output::<u32>("stopped", stopped, 1)?;
    let step = input::<StepParams>("step", step, 1)?;
    let mut watched = Watched {
        values: [NONE; WATCHED],
        len: [0; WATCHED],
    };
    for (i, &value) in values.iter().enumerate() {
        let len = length(&value);
        watched.values[i] = input::<f32>("values", value, len)?;
        watched.len[i] = len as i64;
    }
    // SAFETY: types as in optim.cu; lengths checked above.
    unsafe { launch!(cuda, cuda.kernels.watch, grid(1, 256)?, stopped, watched, step) }
}

pub(super) fn sgd(
    cuda: &Launcher,
    theta: Mem<Cuda>,
    buf: Mem<Cuda>,
    g: Mem<Cuda>,
    norm: Mem<Cuda>,
    stopped: Mem<Cuda>,
    step: Mem<Cuda>,
) -> Result<()> {
    let len = length(&theta);
    let theta = output::<f32>("theta", theta, len)?;
    let buf = output::<f32>("buf", buf, len)?;
    let g = input::<f32>("g", g, len)?;
    let norm = input::<f32>("norm", norm, 1)?;
    let stopped = input::<u32>("stopped", stopped, 1)?;
    let step = input::<StepParams>("step", step, 1)?;
    require_aligned(&[&theta, &buf, &g])?;
    let (grid, len) = (strided(len.div_ceil(4)), len as i64);
    // SAFETY: types as in optim.cu; lengths and alignment checked above.
    unsafe {
        launch!(
            cuda,
            cuda.kernels.sgd,
            grid,
            theta,
            buf,
            g,
            norm,
            stopped,
            step,
            len
        )
    }
}
