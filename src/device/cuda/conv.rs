//! Launches of kernels/conv.cu, conv_mma.cu, conv_halo.cu, conv_weight.cu, conv_weight_mma.cu and per_sample.cu. The
//! kernels of one operation take the same arguments whatever they multiply; those on tensor cores want their filters arranged
//! (`filters`).

use super::format::Operands;
use super::kernels::{Sm90Kernels, grid, launch, strided};
use super::launcher::Launcher;
use super::memory::{
    self, KernelSource, KernelTangent, NONE, epilogue, optional, output, scratch, source, stored,
    stored_output, wide,
};
use super::norm::{self, TILE_ROWS};
use super::tile::{HALO_FORWARD, HALO_TANGENT, Plan};
use super::wgmma;
use super::{Arena, Cuda, filters, weight_wgmma};
use crate::Result;
use crate::device::{Conv, ConvShape, Epilogue, Filters, Mem, Prepared, Rows, Sums, Tangent, Write};

/// `multiprocessors` of a GPU that has the kernels of sm_90a.
pub(super) fn prepare(
    shape: &ConvShape,
    operands: Operands,
    multiprocessors: Option<u32>,
) -> Result<Prepared<Plan>> {
    let plan = Plan::new(shape, operands, multiprocessors)?;
    let slices = plan.slices(shape);
    let weight = if slices > 1 { slices * shape.w_len() } else { 0 };
    let bias = norm::partials_len(y_rows(shape));
    let contract = shape.y_rows() * (shape.k as usize).div_ceil(32);
    let bytes = size_of::<f32>();
    Ok(Prepared {
        scratch_bytes: weight.max(bias).max(contract) * bytes,
        arranged: filters::bytes(shape, operands),
        algorithm: plan,
    })
}

fn x_rows(shape: &ConvShape) -> Rows {
    Rows {
        rows: shape.x_rows() as i32,
        channels: shape.c,
    }
}

fn y_rows(shape: &ConvShape) -> Rows {
    Rows {
        rows: shape.y_rows() as i32,
        channels: shape.k,
    }
}

/// The kernels of sm_90a and how they divide the pixels where they take a convolution: by plan, and if its operands allow
/// 16-byte accesses (`vector`).
fn on_sm90<T>(cuda: &Launcher, division: Option<T>, vector: bool) -> Option<(&Sm90Kernels, T)> {
    cuda.sm90.as_ref().zip(division.filter(|_| vector))
}

/// N, H, W.
fn pixels(shape: &ConvShape) -> (i32, i32, i32) {
    (shape.n, shape.h, shape.w)
}

// ---- the operations

pub(super) fn forward(
    cuda: &Launcher,
    conv: Conv<Cuda>,
    y: Mem<Cuda>,
    w: Filters<Arena>,
    bias: Option<Mem<Cuda>>,
    end: Epilogue<Arena>,
) -> Result<()> {
    let (shape, plan) = (*conv.shape, conv.prepared.algorithm);
    let storage = plan.operands.storage();
    let out = stored_output(storage, "y", y, shape.y_len())?;
    let x = source(storage, "x", conv.x, x_rows(&shape))?;
    let w = filters::forward("w", &conv, w)?;
    let bias = optional::<f32>("bias", bias, shape.k as usize)?;
    let end = epilogue(storage, &end, y_rows(&shape), &out, Write::Set)?;
    let vector = wide(storage, shape.c, &[&x, &w]) && (plan.operands == Operands::F32 || end.wide());
    if let Some((kernels, fields)) = on_sm90(cuda, plan.forward_fields, vector) {
        return wgmma::convolve(
            cuda,
            kernels,
            pixels(&shape),
            (shape.c, shape.k),
            fields,
            &[w],
            (x, KernelTangent::NONE),
            false,
            out,
            bias,
            end,
        );
    }
    let halo = (&cuda.kernels.conv_forward_halo, HALO_FORWARD);
    let (kernel, grid) = plan.windows(&shape, vector, &cuda.kernels.conv_forward, halo)?;
    // SAFETY: types as in conv.cu, conv_mma.cu, conv_halo.cu; lengths checked above and sizes by `prepare`, the kernel stays
    // inside both.
    unsafe { launch!(cuda, kernel, grid, out, x, w, bias, end, shape) }
}

#[allow(clippy::too_many_arguments)]
pub(super) fn tangent(
    cuda: &Launcher,
    conv: Conv<Cuda>,
    ty: Mem<Cuda>,
    tx: Tangent<Arena>,
    w: Filters<Arena>,
    tw: Filters<Arena>,
    tbias: Option<Mem<Cuda>>,
    end: Epilogue<Arena>,
) -> Result<()> {
    let (shape, plan) = (*conv.shape, conv.prepared.algorithm);
    let storage = plan.operands.storage();
    let out = stored_output(storage, "ty", ty, shape.y_len())?;
    let x = source(storage, "x", conv.x, x_rows(&shape))?;
    let tx = memory::tangent(storage, tx, x_rows(&shape))?;
    let w = filters::forward("w", &conv, w)?;
    let tw = filters::forward("tw", &conv, tw)?;
    let tbias = optional::<f32>("tbias", tbias, shape.k as usize)?;
    let end = epilogue(storage, &end, y_rows(&shape), &out, Write::Set)?;
    let vector =
        wide(storage, shape.c, &[&x, &tx, &w, &tw]) && (plan.operands == Operands::F32 || end.wide());
    if let Some((kernels, fields)) = on_sm90(cuda, plan.forward_fields, vector) {
        let both = [w, tw];
        let filters = if tx.is_zero() { &both[1..] } else { &both[..] };
        return wgmma::convolve(
            cuda,
            kernels,
            pixels(&shape),
            (shape.c, shape.k),
            fields,
            filters,
            (x, tx),
            false,
            out,
            tbias,
            end,
        );
    }
    let halo = (&cuda.kernels.conv_tangent_halo, HALO_TANGENT);
    let (kernel, grid) = plan.windows(&shape, vector, &cuda.kernels.conv_tangent, halo)?;
    // SAFETY: types as in conv.cu, conv_mma.cu, conv_halo.cu; lengths checked above and sizes by `prepare`, the kernel stays
    // inside both.
    unsafe { launch!(cuda, kernel, grid, out, x, tx, w, tw, tbias, end, shape) }
}

pub(super) fn backward_input(
    cuda: &Launcher,
    conv: Conv<Cuda>,
    d: Mem<Cuda>,
    write: Write,
    dy: Mem<Cuda>,
    w: Filters<Arena>,
    mut end: Epilogue<Arena>,
) -> Result<()> {
    let (shape, plan) = (*conv.shape, conv.prepared.algorithm);
    let storage = plan.operands.storage();
    let out = stored_output(storage, "d", d, shape.x_len())?;
    let dy = stored(storage, "dy", dy, shape.y_len())?;
    let w = filters::backward("w", &conv, w)?;
    // Sums of parity classes without whole tiles take a pass of their own.
    let mut later = Sums::None;
    if !tiles_are_whole(&shape) {
        std::mem::swap(&mut later, &mut end.sums);
    }
    let end = epilogue(storage, &end, x_rows(&shape), &out, write)?;
    let vector = (shape.c as usize).is_multiple_of(storage.wide())
        && wide(storage, shape.k, &[&dy, &w])
        && (plan.operands == Operands::F32 || end.wide());
    if let Some((kernels, fields)) = on_sm90(cuda, plan.backward_fields, vector) {
        return wgmma::convolve(
            cuda,
            kernels,
            pixels(&shape),
            (shape.k, shape.c),
            fields,
            &[w],
            (KernelSource::plain(dy), KernelTangent::NONE),
            true,
            out,
            NONE,
            end,
        );
    }
    let (kernel, tile) = plan.pick(plan.backward_input, vector, &cuda.kernels.conv_backward_input);
    // Parity class 0 is the largest.
    let class_edge = |edge: i32| (edge as usize).div_ceil(shape.stride as usize);
    let pixels = shape.n as usize * class_edge(shape.h) * class_edge(shape.w);
    let classes = (shape.stride * shape.stride) as usize;
    let grid = plan.grid(tile, (pixels, shape.c as usize), classes)?;
    // SAFETY: types as in conv.cu, conv_mma.cu; lengths checked above and sizes by `prepare`, the kernel stays inside both.
    unsafe { launch!(cuda, kernel, grid, out, dy, w, end, shape) }?;
    norm::sums(cuda, storage, x_rows(&shape), d, later)
}

/// Whether the tiles of backward-input's parity classes, one class after the other, are as many and as long as those that
/// the tensor's sums are made of.
fn tiles_are_whole(shape: &ConvShape) -> bool {
    let pixels = (shape.n * (shape.h / shape.stride) * (shape.w / shape.stride)) as usize;
    let equal = shape.h % shape.stride == 0 && shape.w % shape.stride == 0;
    shape.stride == 1 || equal && pixels.is_multiple_of(TILE_ROWS)
}

pub(super) fn backward_weight(
    cuda: &Launcher,
    conv: Conv<Cuda>,
    dw: Mem<Cuda>,
    dbias: Option<Mem<Cuda>>,
    write: Write,
    dy: Mem<Cuda>,
) -> Result<()> {
    let (shape, plan) = (*conv.shape, conv.prepared.algorithm);
    let storage = plan.operands.storage();
    let out = output::<f32>("dw", dw, shape.w_len())?;
    let x = source(storage, "x", conv.x, x_rows(&shape))?;
    let adjoint = stored(storage, "dy", dy, shape.y_len())?;
    let slices = plan.slices(&shape);
    let add = i32::from(write == Write::Add);
    // One slice writes dw itself; several write partial filters.
    let partial = if slices > 1 {
        scratch::<f32>("scratch", conv.scratch, slices * shape.w_len())?
    } else {
        out.again()
    };
    let partial_add = if slices > 1 { 0 } else { add };
    let vector = (shape.c as usize).is_multiple_of(storage.wide())
        && wide(storage, shape.k, &[&x, &adjoint, &partial]);
    let slice_pixels = plan.slice_pixels as i32;
    if let Some((kernels, width)) = on_sm90(cuda, plan.weight_slabs, vector) {
        let slices = (slices, slice_pixels);
        weight_wgmma::backward_weight(
            cuda,
            kernels,
            &shape,
            width,
            slices,
            partial.again(),
            x,
            adjoint,
            partial_add,
        )?;
    } else {
        let (kernel, tile) = plan.pick(plan.backward_weight, vector, &cuda.kernels.conv_backward_weight);
        let grid = plan.weight_grid(tile, &shape)?;
        // SAFETY: types as in conv_weight.cu, conv_weight_mma.cu; the slices cover the pixels exactly once and their filters
        // fit the scratch.
        unsafe {
            launch!(
                cuda,
                kernel,
                grid,
                partial,
                x,
                adjoint,
                shape,
                slice_pixels,
                partial_add
            )
        }?;
    }
    if slices > 1 {
        let (partial, len, slices) = (partial.read(), shape.w_len() as i64, slices as i32);
        let (kernel, grid) = (&cuda.kernels.sum_slices, strided(shape.w_len()));
        // SAFETY: types as in conv_weight.cu; partial holds `slices` filters, out one.
        unsafe { launch!(cuda, kernel, grid, out, partial, len, slices, add) }?;
    }
    match dbias {
        Some(dbias) => norm::column_sums(cuda, storage, y_rows(&shape), dbias, dy, conv.scratch, write),
        None => Ok(()),
    }
}

pub(super) fn contract(
    cuda: &Launcher,
    conv: Conv<Cuda>,
    out: Mem<Cuda>,
    dy: Mem<Cuda>,
    tw: Filters<Arena>,
    tbias: Option<Mem<Cuda>>,
) -> Result<()> {
    let (shape, plan) = (*conv.shape, conv.prepared.algorithm);
    let storage = plan.operands.storage();
    let out = output::<f32>("out", out, shape.n as usize)?;
    let x = source(storage, "x", conv.x, x_rows(&shape))?;
    let dy = stored(storage, "dy", dy, shape.y_len())?;
    let tw = filters::forward("tw", &conv, tw)?;
    let tbias = optional::<f32>("tbias", tbias, shape.k as usize)?;
    let vector = wide(storage, shape.c, &[&x, &tw]);
    let (kernel, tile) = plan.pick(plan.forward, vector, &cuda.kernels.conv_contract);
    let tiles = (shape.k as usize).div_ceil(plan.columns(tile));
    let partial = scratch::<f32>("scratch", conv.scratch, tiles * shape.y_rows())?;
    let tiled = plan.grid(tile, (shape.y_rows(), shape.k as usize), 1)?;
    // SAFETY: types as in per_sample.cu; lengths checked above, scratch for one value per filter tile and pixel.
    unsafe { launch!(cuda, kernel, tiled, partial, x, dy, tw, tbias, shape) }?;
    let (partial, pixels, tiles) = (partial.read(), shape.p() * shape.q(), tiles as i32);
    let (kernel, grid) = (&cuda.kernels.sum_samples, grid(shape.n as usize, 256)?);
    // SAFETY: types as in per_sample.cu; partial holds tiles·n·pixels values, out n.
    unsafe { launch!(cuda, kernel, grid, out, partial, shape.n, pixels, tiles) }
}
