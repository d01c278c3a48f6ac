//! Launches of kernels/join.cu and pool.cu.

use cudarc::driver::LaunchConfig;

use super::format::Storage;
use super::kernels::{grid2, launch, limit, strided};
use super::launcher::Launcher;
use super::memory::{
    Aligned, epilogue, input, optional, output, source, stored, stored_output, tangent, wide,
};
use super::norm::TILE_ROWS;
use super::{Arena, Cuda};
use crate::Result;
use crate::device::{Epilogue, Mem, PoolShape, Rows, Source, Tangent, Write};

/// A block of 256 threads for every tile of rows and every 8 runs of channels: twin of finish_rows_of in
/// kernels/epilogue.cuh.
pub(super) fn tiled(storage: Storage, wide: bool, shape: Rows) -> Result<LaunchConfig> {
    let columns = 8 * if wide { storage.wide() } else { 1 };
    let tiles = (shape.rows as usize).div_ceil(TILE_ROWS);
    grid2(tiles, (shape.channels as usize).div_ceil(columns), (256, 1))
}

#[allow(clippy::too_many_arguments)]
pub(super) fn source_backward(
    cuda: &Launcher,
    shape: Rows,
    dx: Mem<Cuda>,
    write: Write,
    d: Mem<Cuda>,
    x: Source<Arena>,
    slope: Option<Mem<Cuda>>,
    end: Epilogue<Arena>,
) -> Result<()> {
    let storage = cuda.storage();
    let out = stored_output(storage, "dx", dx, shape.len())?;
    let d = stored(storage, "d", d, shape.len())?;
    let x = source(storage, "x", x, shape)?;
    let slope = optional::<f32>("slope", slope, 2 * shape.channels as usize)?;
    let end = epilogue(storage, &end, shape, &out, write)?;
    let operands: [&dyn Aligned; 3] = [&d, &x, &slope];
    let wide = end.wide() && wide(storage, shape.channels, &operands);
    let kernel = storage.pick_width(wide, &cuda.kernels.source_backward);
    let grid = tiled(storage, wide, shape)?;
    // SAFETY: types as in join.cu; lengths checked above.
    unsafe { launch!(cuda, kernel, grid, out, d, x, slope, end, shape) }
}

pub(super) fn join_forward(
    cuda: &Launcher,
    shape: Rows,
    y: Mem<Cuda>,
    a: Source<Arena>,
    b: Source<Arena>,
    end: Epilogue<Arena>,
) -> Result<()> {
    let storage = cuda.storage();
    let out = stored_output(storage, "y", y, shape.len())?;
    let (a, b) = (source(storage, "a", a, shape)?, source(storage, "b", b, shape)?);
    let end = epilogue(storage, &end, shape, &out, Write::Set)?;
    let wide = end.wide() && wide(storage, shape.channels, &[&a, &b]);
    let kernel = storage.pick_width(wide, &cuda.kernels.join_forward);
    let grid = tiled(storage, wide, shape)?;
    // SAFETY: types as in join.cu; lengths checked above.
    unsafe { launch!(cuda, kernel, grid, out, a, b, end, shape) }
}

pub(super) fn join_tangent(
    cuda: &Launcher,
    shape: Rows,
    ty: Mem<Cuda>,
    (a, ta): (Source<Arena>, Tangent<Arena>),
    (b, tb): (Source<Arena>, Tangent<Arena>),
    end: Epilogue<Arena>,
) -> Result<()> {
    let storage = cuda.storage();
    let out = stored_output(storage, "ty", ty, shape.len())?;
    let (a, b) = (source(storage, "a", a, shape)?, source(storage, "b", b, shape)?);
    let (ta, tb) = (tangent(storage, ta, shape)?, tangent(storage, tb, shape)?);
    let end = epilogue(storage, &end, shape, &out, Write::Set)?;
    let wide = end.wide() && wide(storage, shape.channels, &[&a, &ta, &b, &tb]);
    let kernel = storage.pick_width(wide, &cuda.kernels.join_tangent);
    let grid = tiled(storage, wide, shape)?;
    // SAFETY: types as in join.cu; lengths checked above.
    unsafe { launch!(cuda, kernel, grid, out, a, ta, b, tb, end, shape) }
}

/// The input of a pooling as rows.
pub(super) fn pool_rows(shape: &PoolShape) -> Result<Rows> {
    limit("pooling", "N·H·W·C", shape.x_len())?;
    Ok(Rows {
        rows: shape.n * shape.h * shape.w,
        channels: shape.c,
    })
}

pub(super) fn pool_forward(cuda: &Launcher, shape: PoolShape, y: Mem<Cuda>, x: Source<Arena>) -> Result<()> {
    let storage = cuda.storage();
    let x = source(storage, "x", x, pool_rows(&shape)?)?;
    let y = output::<f32>("y", y, shape.y_len())?;
    let kernel = storage.pick(&cuda.kernels.pool_forward);
    // SAFETY: types as in pool.cu; lengths checked above.
    unsafe { launch!(cuda, kernel, strided(shape.y_len()), y, x, shape) }
}

pub(super) fn pool_tangent(
    cuda: &Launcher,
    shape: PoolShape,
    ty: Mem<Cuda>,
    x: Source<Arena>,
    tx: Tangent<Arena>,
) -> Result<()> {
    let (storage, rows) = (cuda.storage(), pool_rows(&shape)?);
    let (x, tx) = (source(storage, "x", x, rows)?, tangent(storage, tx, rows)?);
    let ty = output::<f32>("ty", ty, shape.y_len())?;
    let kernel = storage.pick(&cuda.kernels.pool_tangent);
    // SAFETY: types as in pool.cu; lengths checked above.
    unsafe { launch!(cuda, kernel, strided(shape.y_len()), ty, x, tx, shape) }
}

pub(super) fn pool_backward(
    cuda: &Launcher,
    shape: PoolShape,
    d: Mem<Cuda>,
    write: Write,
    dy: Mem<Cuda>,
    end: Epilogue<Arena>,
) -> Result<()> {
    let (storage, rows) = (cuda.storage(), pool_rows(&shape)?);
    let out = stored_output(storage, "d", d, shape.x_len())?;
    let dy = input::<f32>("dy", dy, shape.y_len())?;
    let end = epilogue(storage, &end, rows, &out, write)?;
    let wide = end.wide() && dy.aligned();
    let kernel = storage.pick_width(wide, &cuda.kernels.pool_backward);
    let grid = tiled(storage, wide, rows)?;
    // SAFETY: types as in pool.cu; lengths checked above.
    unsafe { launch!(cuda, kernel, grid, out, dy, end, shape) }
}
