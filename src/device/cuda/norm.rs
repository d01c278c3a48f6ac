//! Launches of kernels/norm.cu: per-channel sums and what batch-norm makes of them.

use cudarc::driver::LaunchConfig;

use super::format::Storage;
use super::kernels::{grid, grid2, launch, limit};
use super::launcher::Launcher;
use super::memory::{self, In, KernelSums, input, output, scratch, stored, wide};
use super::{Arena, Cuda};
use crate::device::{Mem, Norm, Rows, Statistics, Sums, Write};
use crate::{Error, Result};

/// Threads of a block of the kernels that merge tiles: 8 channels x 128 lanes.
const BLOCK: (u32, u32) = (8, 128);
/// Rows of a tensor whose sums make one partial; twin of TILE_ROWS in kernels/epilogue.cuh.
pub(super) const TILE_ROWS: usize = 128;

/// Values of a tensor's partial sums: [tiles][2][channels].
pub(super) fn partials_len(shape: Rows) -> usize {
    (shape.rows as usize).div_ceil(TILE_ROWS) * 2 * shape.channels as usize
}

/// A block of 256 threads for every tile of rows and 8 times 16 bytes of channels (not `wide`: 8 channels): twin of
/// finish_rows_of in kernels/epilogue.cuh.
pub(super) fn tiled(storage: Storage, wide: bool, shape: Rows) -> Result<LaunchConfig> {
    let columns = 8 * if wide { storage.wide() } else { 1 };
    let tiles = (shape.rows as usize).div_ceil(TILE_ROWS);
    grid2(tiles, (shape.channels as usize).div_ceil(columns), (256, 1))
}

/// A grid that merges the tiles of `channels` channels.
fn merging(channels: i32) -> Result<LaunchConfig> {
    grid2((channels as usize).div_ceil(BLOCK.0 as usize), 1, BLOCK)
}

/// The sums that end an epilogue, of the values u that the operation has just stored, by a pass of their own.
pub(super) fn sums(
    cuda: &Launcher,
    storage: Storage,
    shape: Rows,
    u: Mem<Cuda>,
    wanted: Sums<Arena>,
) -> Result<()> {
    if matches!(wanted, Sums::None) {
        return Ok(());
    }
    let u = stored(storage, "u", u, shape.len())?;
    let sums = memory::sums(storage, wanted, shape, partials_len(shape))?;
    channel_sums(cuda, storage, shape, u, sums)
}

fn channel_sums(cuda: &Launcher, storage: Storage, shape: Rows, u: In, sums: KernelSums) -> Result<()> {
    let wide = wide(storage, shape.channels, &[&u, &sums]);
    let kernel = storage.pick_width(wide, &cuda.kernels.channel_sums);
    let grid = tiled(storage, wide, shape)?;
    // SAFETY: types as in norm.cu; lengths checked by the caller.
    unsafe { launch!(cuda, kernel, grid, u, sums, shape) }
}

/// out [C] ← or += Σ of u's rows, through scratch.
pub(super) fn column_sums(
    cuda: &Launcher,
    storage: Storage,
    shape: Rows,
    out: Mem<Cuda>,
    u: Mem<Cuda>,
    space: Mem<Cuda>,
    write: Write,
) -> Result<()> {
    let out = output::<f32>("sums", out, shape.channels as usize)?;
    let partials = scratch::<f32>("scratch", space, partials_len(shape))?;
    let u = stored(storage, "u", u, shape.len())?;
    channel_sums(cuda, storage, shape, u, KernelSums::total(partials.again()))?;
    let (partials, add) = (partials.read(), i32::from(write == Write::Add));
    let grid = merging(shape.channels)?;
    // SAFETY: types as in norm.cu; partials holds the tiles that channel_sums has just written.
    unsafe { launch!(cuda, cuda.kernels.column_sums, grid, out, partials, shape, add) }
}

/// A norm without rows has no statistics.
fn check(norm: &Norm<Arena>) -> Result<()> {
    if norm.shape.rows < 1 || norm.shape.channels < 1 {
        return Err(Error::Internal(format!("batch-norm over {:?}", norm.shape)));
    }
    Ok(())
}

pub(super) fn forward(cuda: &Launcher, norm: Norm<Arena>, mode: Statistics) -> Result<()> {
    check(&norm)?;
    let channels = norm.shape.channels as usize;
    let statistics = output::<f32>("statistics", norm.statistics, 2 * channels)?;
    let affine = output::<f32>("affine", norm.affine, 3 * channels)?;
    let gamma = input::<f32>("gamma", norm.gamma, channels)?;
    let beta = input::<f32>("beta", norm.beta, channels)?;
    let eps = norm.eps as f32;
    match mode {
        Statistics::Batch { update } => {
            let running_mean = output::<f32>("running_mean", norm.running_mean, channels)?;
            let running_var = output::<f32>("running_var", norm.running_var, channels)?;
            let partials = input::<f32>("partials", norm.partials, partials_len(norm.shape))?;
            let momentum = norm.momentum as f32;
            let (shape, update) = (norm.shape, i32::from(update));
            let grid = merging(shape.channels)?;
            // SAFETY: types as in norm.cu; lengths checked above.
            unsafe {
                launch!(
                    cuda,
                    cuda.kernels.norm_forward_batch,
                    grid,
                    statistics,
                    affine,
                    running_mean,
                    running_var,
                    partials,
                    gamma,
                    beta,
                    shape,
                    eps,
                    momentum,
                    update
                )
            }
        }
        Statistics::Running => {
            let running_mean = input::<f32>("running_mean", norm.running_mean, channels)?;
            let running_var = input::<f32>("running_var", norm.running_var, channels)?;
            let grid = grid(channels.div_ceil(256), 256)?;
            let channels = norm.shape.channels;
            // SAFETY: types as in norm.cu; lengths checked above.
            unsafe {
                launch!(
                    cuda,
                    cuda.kernels.norm_forward_running,
                    grid,
                    statistics,
                    affine,
                    running_mean,
                    running_var,
                    gamma,
                    beta,
                    channels,
                    eps
                )
            }
        }
    }
}

pub(super) fn tangent(
    cuda: &Launcher,
    norm: Norm<Arena>,
    mode: Statistics,
    tgamma: Mem<Cuda>,
    tbeta: Mem<Cuda>,
) -> Result<()> {
    check(&norm)?;
    let channels = norm.shape.channels as usize;
    let slope = output::<f32>("slope", norm.slope, 2 * channels)?;
    let partials = input::<f32>("partials", norm.partials, partials_len(norm.shape))?;
    let statistics = input::<f32>("statistics", norm.statistics, 2 * channels)?;
    let affine = input::<f32>("affine", norm.affine, 3 * channels)?;
    let tgamma = input::<f32>("tgamma", tgamma, channels)?;
    let tbeta = input::<f32>("tbeta", tbeta, channels)?;
    let (shape, batch) = (norm.shape, is_batch(mode));
    let grid = merging(shape.channels)?;
    // SAFETY: types as in norm.cu; lengths checked above.
    unsafe {
        launch!(
            cuda,
            cuda.kernels.norm_tangent,
            grid,
            slope,
            partials,
            statistics,
            affine,
            tgamma,
            tbeta,
            shape,
            batch
        )
    }
}

pub(super) fn backward(
    cuda: &Launcher,
    norm: Norm<Arena>,
    mode: Statistics,
    dgamma: Mem<Cuda>,
    dbeta: Mem<Cuda>,
    write: Write,
) -> Result<()> {
    check(&norm)?;
    let channels = norm.shape.channels as usize;
    let slope = output::<f32>("slope", norm.slope, 2 * channels)?;
    let dgamma = output::<f32>("dgamma", dgamma, channels)?;
    let dbeta = output::<f32>("dbeta", dbeta, channels)?;
    let partials = input::<f32>("partials", norm.partials, partials_len(norm.shape))?;
    let statistics = input::<f32>("statistics", norm.statistics, 2 * channels)?;
    let affine = input::<f32>("affine", norm.affine, 3 * channels)?;
    let (shape, batch) = (norm.shape, is_batch(mode));
    let add = i32::from(write == Write::Add);
    let grid = merging(shape.channels)?;
    // SAFETY: types as in norm.cu; lengths checked above.
    unsafe {
        launch!(
            cuda,
            cuda.kernels.norm_backward,
            grid,
            slope,
            dgamma,
            dbeta,
            partials,
            statistics,
            affine,
            shape,
            batch,
            add
        )
    }
}

fn is_batch(mode: Statistics) -> i32 {
    match mode {
        Statistics::Batch { .. } => 1,
        Statistics::Running => 0,
    }
}

#[allow(clippy::too_many_arguments)]
pub(super) fn contract(
    cuda: &Launcher,
    norm: Norm<Arena>,
    samples: usize,
    out: Mem<Cuda>,
    x: Mem<Cuda>,
    d: Mem<Cuda>,
    tgamma: Mem<Cuda>,
    tbeta: Mem<Cuda>,
) -> Result<()> {
    check(&norm)?;
    let (rows, channels) = (norm.shape.rows as usize, norm.shape.channels as usize);
    if samples == 0 || !rows.is_multiple_of(samples) {
        return Err(Error::Internal(format!("{rows} rows in {samples} samples")));
    }
    limit("batch-norm", "values of a sample", rows / samples * channels)?;
    let out = output::<f32>("out", out, samples)?;
    let x = stored(cuda.storage(), "x", x, norm.shape.len())?;
    let d = stored(cuda.storage(), "d", d, norm.shape.len())?;
    let statistics = input::<f32>("statistics", norm.statistics, 2 * channels)?;
    let tgamma = input::<f32>("tgamma", tgamma, channels)?;
    let tbeta = input::<f32>("tbeta", tbeta, channels)?;
    let (sample_rows, channels) = ((rows / samples) as i32, norm.shape.channels);
    let grid = grid(samples, 256)?;
    // SAFETY: types as in norm.cu; lengths checked above, samples·sample_rows = rows.
    unsafe {
        launch!(
            cuda,
            cuda.storage().pick(&cuda.kernels.norm_contract),
            grid,
            out,
            x,
            d,
            statistics,
            tgamma,
            tbeta,
            sample_rows,
            channels
        )
    }
}
