//! Launches of kernels/join.cu and pool.cu.

use super::kernels::{launch, limit, strided};
use super::memory::{Aligned, input, mask, optional, output, source, tangent};
use super::{Arena, Cuda, norm};
use crate::Result;
use crate::device::{Epilogue, Mem, PoolShape, Rows, Source, Tangent, Write};

/// Elements that one thread handles at a time.
fn width(shape: Rows, operands: &[&dyn Aligned]) -> usize {
    let vector = shape.channels % 4 == 0 && operands.iter().all(|operand| operand.aligned());
    if vector { 4 } else { 1 }
}

#[allow(clippy::too_many_arguments)]
pub(super) fn source_backward(
    cuda: &Cuda,
    shape: Rows,
    dx: Mem<Cuda>,
    write: Write,
    d: Mem<Cuda>,
    x: Source<Arena>,
    slope: Option<Mem<Cuda>>,
    epilogue: Epilogue<Arena>,
) -> Result<()> {
    let out = output::<f32>("dx", dx, shape.len())?;
    let d = input::<f32>("d", d, shape.len())?;
    let x = source("x", x, shape)?;
    let slope = optional::<f32>("slope", slope, 2 * shape.channels as usize)?;
    let mask = mask(&epilogue, shape)?;
    let width = width(shape, &[&out, &d, &x, &slope, &mask]);
    let kernels = &cuda.kernels;
    let kernel = if width == 4 {
        &kernels.source_backward_four
    } else {
        &kernels.source_backward_odd
    };
    let add = i32::from(write == Write::Add);
    // SAFETY: types as in join.cu; lengths checked above.
    unsafe {
        launch!(
            cuda,
            *kernel,
            strided(shape.len() / width),
            out,
            d,
            x,
            slope,
            mask,
            shape,
            add
        )
    }?;
    norm::sums(cuda, shape, dx, epilogue.sums)
}

pub(super) fn join_forward(
    cuda: &Cuda,
    shape: Rows,
    y: Mem<Cuda>,
    a: Source<Arena>,
    b: Source<Arena>,
    epilogue: Epilogue<Arena>,
) -> Result<()> {
    let out = output::<f32>("y", y, shape.len())?;
    let (a, b) = (source("a", a, shape)?, source("b", b, shape)?);
    let mask = mask(&epilogue, shape)?;
    let width = width(shape, &[&out, &a, &b, &mask]);
    let kernels = &cuda.kernels;
    let kernel = if width == 4 {
        &kernels.join_forward_four
    } else {
        &kernels.join_forward_odd
    };
    // SAFETY: types as in join.cu; lengths checked above.
    unsafe {
        launch!(
            cuda,
            *kernel,
            strided(shape.len() / width),
            out,
            a,
            b,
            mask,
            shape
        )
    }?;
    norm::sums(cuda, shape, y, epilogue.sums)
}

pub(super) fn join_tangent(
    cuda: &Cuda,
    shape: Rows,
    ty: Mem<Cuda>,
    (a, ta): (Source<Arena>, Tangent<Arena>),
    (b, tb): (Source<Arena>, Tangent<Arena>),
    epilogue: Epilogue<Arena>,
) -> Result<()> {
    let out = output::<f32>("ty", ty, shape.len())?;
    let (a, b) = (source("a", a, shape)?, source("b", b, shape)?);
    let (ta, tb) = (tangent(ta, shape)?, tangent(tb, shape)?);
    let mask = mask(&epilogue, shape)?;
    let width = width(shape, &[&out, &a, &ta, &b, &tb, &mask]);
    let kernels = &cuda.kernels;
    let kernel = if width == 4 {
        &kernels.join_tangent_four
    } else {
        &kernels.join_tangent_odd
    };
    // SAFETY: types as in join.cu; lengths checked above.
    unsafe {
        launch!(
            cuda,
            *kernel,
            strided(shape.len() / width),
            out,
            a,
            ta,
            b,
            tb,
            mask,
            shape
        )
    }?;
    norm::sums(cuda, shape, ty, epilogue.sums)
}

/// The input of a pooling as rows.
pub(super) fn pool_rows(shape: &PoolShape) -> Result<Rows> {
    limit("pooling", "N·H·W·C", shape.x_len())?;
    Ok(Rows {
        rows: shape.n * shape.h * shape.w,
        channels: shape.c,
    })
}

pub(super) fn pool_forward(cuda: &Cuda, shape: PoolShape, y: Mem<Cuda>, x: Source<Arena>) -> Result<()> {
    let x = source("x", x, pool_rows(&shape)?)?;
    let y = output::<f32>("y", y, shape.y_len())?;
    // SAFETY: types as in pool.cu; lengths checked above.
    unsafe {
        launch!(
            cuda,
            cuda.kernels.pool_forward,
            strided(shape.y_len()),
            y,
            x,
            shape
        )
    }
}

pub(super) fn pool_tangent(
    cuda: &Cuda,
    shape: PoolShape,
    ty: Mem<Cuda>,
    x: Source<Arena>,
    tx: Tangent<Arena>,
) -> Result<()> {
    let rows = pool_rows(&shape)?;
    let (x, tx) = (source("x", x, rows)?, tangent(tx, rows)?);
    let ty = output::<f32>("ty", ty, shape.y_len())?;
    // SAFETY: types as in pool.cu; lengths checked above.
    unsafe {
        launch!(
            cuda,
            cuda.kernels.pool_tangent,
            strided(shape.y_len()),
            ty,
            x,
            tx,
            shape
        )
    }
}

pub(super) fn pool_backward(
    cuda: &Cuda,
    shape: PoolShape,
    d: Mem<Cuda>,
    write: Write,
    dy: Mem<Cuda>,
    epilogue: Epilogue<Arena>,
) -> Result<()> {
    let rows = pool_rows(&shape)?;
    let out = output::<f32>("d", d, shape.x_len())?;
    let dy = input::<f32>("dy", dy, shape.y_len())?;
    let (mask, add) = (mask(&epilogue, rows)?, i32::from(write == Write::Add));
    // SAFETY: types as in pool.cu; lengths checked above.
    unsafe {
        launch!(
            cuda,
            cuda.kernels.pool_backward,
            strided(shape.x_len()),
            out,
            dy,
            mask,
            shape,
            add
        )
    }?;
    norm::sums(cuda, rows, d, epilogue.sums)
}
