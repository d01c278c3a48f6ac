//! Launches of kernels/join.cu.

use super::format::Storage;
use super::kernels::launch;
use super::launcher::Launcher;
use super::memory::{
    Aligned, KernelEpilogue, Out, epilogue, optional, source, stored, stored_output, tangent, wide,
};
use super::norm::tiled;
use super::{Arena, Cuda};
use crate::device::{Epilogue, Mem, Rows, Source, Tangent, Write};
use crate::{Error, Result};

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

/// A join is a sum already: its kernels take no addend.
fn end_of_sum(storage: Storage, end: &Epilogue<Arena>, shape: Rows, out: &Out) -> Result<KernelEpilogue> {
    if end.addend.is_some() {
        return Err(Error::Internal("a residual beside a join".into()));
    }
    epilogue(storage, end, shape, out, Write::Set)
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
    let end = end_of_sum(storage, &end, shape, &out)?;
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
    let end = end_of_sum(storage, &end, shape, &out)?;
    let wide = end.wide() && wide(storage, shape.channels, &[&a, &ta, &b, &tb]);
    let kernel = storage.pick_width(wide, &cuda.kernels.join_tangent);
    let grid = tiled(storage, wide, shape)?;
    // SAFETY: types as in join.cu; lengths checked above.
    unsafe { launch!(cuda, kernel, grid, out, a, ta, b, tb, end, shape) }
}
