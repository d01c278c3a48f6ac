//! Launches of kernels/batchnorm.cu: per-channel sums and what batch-norm makes of them.

use super::kernels::{grid, grid2, launch, limit};
use super::memory::{In, NONE, input, output, scratch};
use super::{Arena, Cuda};
use crate::device::{Mem, Norm, Rows, Span, Statistics, Sums, Write};
use crate::{Error, Result};

/// Threads of a block: 32 channels x 8 lanes.
const BLOCK: (u32, u32) = (32, 8);
/// Most tiles of a tensor: enough blocks to fill a large GPU, few enough to merge in one block per 32 channels.
const TILES: usize = 512;

/// Rows of a tile: 64, or more where that made too many tiles.
fn tile_rows(rows: i32) -> usize {
    (rows as usize).div_ceil(TILES).next_multiple_of(64)
}

fn tiles(rows: i32) -> usize {
    (rows as usize).div_ceil(tile_rows(rows))
}

/// Values of a tensor's partial sums: [tiles][2][channels].
pub(super) fn partials_len(shape: Rows) -> usize {
    tiles(shape.rows) * 2 * shape.channels as usize
}

fn channel_blocks(channels: i32) -> usize {
    (channels as usize).div_ceil(BLOCK.0 as usize)
}

/// The sums that end an epilogue, of the values u that the operation has just stored.
pub(super) fn sums(cuda: &Cuda, shape: Rows, u: Mem<Cuda>, sums: Sums<Arena>) -> Result<()> {
    match sums {
        Sums::None => Ok(()),
        Sums::Moments { partials } => {
            let partials = output::<f32>("partials", partials, partials_len(shape))?;
            let u = input::<f32>("u", u, shape.len())?;
            let rows = tile_rows(shape.rows) as i32;
            let grid = grid2(channel_blocks(shape.channels), tiles(shape.rows), BLOCK)?;
            // SAFETY: types as in batchnorm.cu; lengths checked above, one tile per blockIdx.y.
            unsafe { launch!(cuda, cuda.kernels.moments_partial, grid, partials, u, shape, rows) }
        }
        Sums::Dot {
            x,
            statistics,
            partials,
        } => {
            let x = input::<f32>("x", x, shape.len())?;
            let statistics = input::<f32>("statistics", statistics, 2 * shape.channels as usize)?;
            dot_partial(cuda, shape, partials, u, x, statistics)
        }
    }
}

fn dot_partial(
    cuda: &Cuda,
    shape: Rows,
    partials: Span<Arena>,
    u: Mem<Cuda>,
    x: In,
    statistics: In,
) -> Result<()> {
    let partials = output::<f32>("partials", partials, partials_len(shape))?;
    let u = input::<f32>("u", u, shape.len())?;
    let rows = tile_rows(shape.rows) as i32;
    let grid = grid2(channel_blocks(shape.channels), tiles(shape.rows), BLOCK)?;
    // SAFETY: types as in batchnorm.cu; lengths checked above and by the caller, one tile per blockIdx.y.
    unsafe {
        launch!(
            cuda,
            cuda.kernels.dot_partial,
            grid,
            partials,
            u,
            x,
            statistics,
            shape,
            rows
        )
    }
}

/// out [C] ← or += Σ of u's rows, through scratch.
pub(super) fn column_sums(
    cuda: &Cuda,
    shape: Rows,
    out: Mem<Cuda>,
    u: Mem<Cuda>,
    space: Mem<Cuda>,
    write: Write,
) -> Result<()> {
    let out = output::<f32>("sums", out, shape.channels as usize)?;
    let len = partials_len(shape);
    let partials = scratch::<f32>("scratch", space, len)?.read();
    dot_partial(cuda, shape, space.slice(0, len * size_of::<f32>()), u, NONE, NONE)?;
    let (channels, tiles, add) = (
        shape.channels,
        tiles(shape.rows) as i32,
        i32::from(write == Write::Add),
    );
    let grid = grid2(channel_blocks(channels), 1, BLOCK)?;
    // SAFETY: types as in batchnorm.cu; partials holds the tiles that dot_partial has just written.
    unsafe {
        launch!(
            cuda,
            cuda.kernels.column_sums,
            grid,
            out,
            partials,
            channels,
            tiles,
            add
        )
    }
}

/// A norm without rows has no statistics.
fn check(norm: &Norm<Arena>) -> Result<()> {
    if norm.shape.rows < 1 || norm.shape.channels < 1 {
        return Err(Error::Internal(format!("batch-norm over {:?}", norm.shape)));
    }
    Ok(())
}

pub(super) fn forward(cuda: &Cuda, norm: Norm<Arena>, mode: Statistics) -> Result<()> {
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
            let (rows, momentum) = (tile_rows(norm.shape.rows) as i32, norm.momentum as f32);
            let (shape, update) = (norm.shape, i32::from(update));
            let grid = grid2(channel_blocks(shape.channels), 1, BLOCK)?;
            // SAFETY: types as in batchnorm.cu; lengths checked above.
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
                    rows,
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
            // SAFETY: types as in batchnorm.cu; lengths checked above.
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
    cuda: &Cuda,
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
    let (shape, rows, batch) = (norm.shape, tile_rows(norm.shape.rows) as i32, is_batch(mode));
    let grid = grid2(channel_blocks(shape.channels), 1, BLOCK)?;
    // SAFETY: types as in batchnorm.cu; lengths checked above.
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
            rows,
            batch
        )
    }
}

pub(super) fn backward(
    cuda: &Cuda,
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
    let (shape, rows, batch) = (norm.shape, tile_rows(norm.shape.rows) as i32, is_batch(mode));
    let add = i32::from(write == Write::Add);
    let grid = grid2(channel_blocks(shape.channels), 1, BLOCK)?;
    // SAFETY: types as in batchnorm.cu; lengths checked above.
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
            rows,
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
    cuda: &Cuda,
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
    let x = input::<f32>("x", x, norm.shape.len())?;
    let d = input::<f32>("d", d, norm.shape.len())?;
    let statistics = input::<f32>("statistics", norm.statistics, 2 * channels)?;
    let tgamma = input::<f32>("tgamma", tgamma, channels)?;
    let tbeta = input::<f32>("tbeta", tbeta, channels)?;
    let (sample_rows, channels) = ((rows / samples) as i32, norm.shape.channels);
    let grid = grid(samples, 256)?;
    // SAFETY: types as in batchnorm.cu; lengths checked above, samples·sample_rows = rows.
    unsafe {
        launch!(
            cuda,
            cuda.kernels.norm_contract,
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
