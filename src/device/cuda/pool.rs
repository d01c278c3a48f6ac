//! Launches of kernels/pool.cu.

use super::kernels::{launch, limit, strided};
use super::launcher::Launcher;
use super::memory::{Aligned, epilogue, input, output, source, stored_output, tangent};
use super::norm::tiled;
use super::{Arena, Cuda};
use crate::Result;
use crate::device::{Epilogue, Mem, PoolShape, Rows, Source, Tangent, Write};

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
