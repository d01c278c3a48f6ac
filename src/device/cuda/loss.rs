//! Launches of kernels/loss.cu.

use super::kernels::{grid, launch, limit};
use super::launcher::Launcher;
use super::memory::{NONE, input, output, targets};
use super::{Arena, Cuda};
use crate::device::{LossShape, Mem, Targets};
use crate::{Error, Result};

/// Entries, logits, and a grid with a warp for each entry.
fn extent(shape: LossShape) -> Result<(usize, usize, cudarc::driver::LaunchConfig)> {
    let (entries, classes) = (shape.entries as usize, shape.classes as usize);
    if shape.entries < 1 || shape.classes < 1 {
        return Err(Error::Internal(format!("loss over {shape:?}")));
    }
    limit("loss", "entries", entries)?;
    Ok((entries, entries * classes, grid(entries.div_ceil(8), 256)?))
}

pub(super) fn pseudo_labels(
    cuda: &Launcher,
    shape: LossShape,
    labels: Mem<Cuda>,
    z: Mem<Cuda>,
) -> Result<()> {
    let (entries, len, grid) = extent(shape)?;
    let labels = output::<i32>("labels", labels, entries)?;
    let z = input::<f32>("z", z, len)?;
    // SAFETY: types as in loss.cu; lengths checked above.
    unsafe { launch!(cuda, cuda.kernels.pseudo_labels, grid, labels, z, shape) }
}

pub(super) fn cross_entropy(
    cuda: &Launcher,
    shape: LossShape,
    loss: Mem<Cuda>,
    z: Mem<Cuda>,
    target: Targets<Arena>,
) -> Result<()> {
    let (entries, len, grid) = extent(shape)?;
    let loss = output::<f32>("loss", loss, entries)?;
    let z = input::<f32>("z", z, len)?;
    let target = targets(target, entries, shape.classes as usize)?;
    // SAFETY: types as in loss.cu; lengths checked above.
    unsafe { launch!(cuda, cuda.kernels.cross_entropy, grid, loss, z, target, shape) }
}

pub(super) fn cross_entropy_backward(
    cuda: &Launcher,
    shape: LossShape,
    dz: Mem<Cuda>,
    z: Mem<Cuda>,
    (first, first_weights): (Targets<Arena>, Mem<Cuda>),
    second: Option<(Targets<Arena>, Mem<Cuda>)>,
) -> Result<()> {
    let (entries, len, grid) = extent(shape)?;
    let dz = output::<f32>("dz", dz, len)?;
    let z = input::<f32>("z", z, len)?;
    let first = targets(first, entries, shape.classes as usize)?;
    let first_weights = input::<f32>("first weights", first_weights, entries)?;
    let (second, second_weights) = match second {
        Some((target, weights)) => (
            targets(target, entries, shape.classes as usize)?,
            input::<f32>("second weights", weights, entries)?,
        ),
        None => (first, NONE),
    };
    // SAFETY: types as in loss.cu; lengths checked above.
    unsafe {
        launch!(
            cuda,
            cuda.kernels.cross_entropy_backward,
            grid,
            dz,
            z,
            first,
            first_weights,
            second,
            second_weights,
            shape
        )
    }
}

pub(super) fn tangent_dot(
    cuda: &Launcher,
    shape: LossShape,
    raw: Mem<Cuda>,
    z: Mem<Cuda>,
    tz: Mem<Cuda>,
    target: Targets<Arena>,
) -> Result<()> {
    let (entries, len, grid) = extent(shape)?;
    let raw = output::<f32>("raw", raw, entries)?;
    let (z, tz) = (input::<f32>("z", z, len)?, input::<f32>("tz", tz, len)?);
    let target = targets(target, entries, shape.classes as usize)?;
    // SAFETY: types as in loss.cu; lengths checked above.
    unsafe { launch!(cuda, cuda.kernels.tangent_dot, grid, raw, z, tz, target, shape) }
}
