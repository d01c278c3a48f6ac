//! Launches of kernels/conv.cu, conv_weight.cu and per_sample.cu.

use super::kernels::{Kernel, grid2, launch, limit, strided};
use super::memory::{Aligned, input, mask, optional, output, scratch, source, tangent};
use super::{Arena, Cuda, norm};
use crate::device::{Conv, ConvShape, Epilogue, Mem, Prepared, Rows, Tangent, Write};
use crate::{Error, Result};

/// Size of a block's part of the output; twins of LargeTile and SmallTile in kernels/conv_tile.cuh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    /// 128 x 64.
    Large,
    /// 64 x 32.
    Small,
}

impl Tile {
    fn edges(self) -> (usize, usize) {
        match self {
            Tile::Large => (128, 64),
            Tile::Small => (64, 32),
        }
    }

    /// Blocks that cover an output.
    fn blocks(self, rows: usize, columns: usize) -> usize {
        let (m, n) = self.edges();
        rows.div_ceil(m) * columns.div_ceil(n)
    }

    /// The large tile where it leaves a GPU full and is itself filled.
    fn choose(rows: usize, columns: usize, slices: usize) -> Tile {
        let full = columns > 32 && Tile::Large.blocks(rows, columns) * slices >= 128;
        if full { Tile::Large } else { Tile::Small }
    }

    fn threads(self) -> (u32, u32) {
        match self {
            Tile::Large => (256, 1),
            Tile::Small => (128, 1),
        }
    }
}

/// What [`Cuda`] decides for a node. It depends on the geometry alone, so that the bits of a run do not depend on what
/// else the GPU is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    forward: Tile,
    backward_input: Tile,
    backward_weight: Tile,
    /// Output pixels of one slice of the backward pass to the filters.
    slice_pixels: usize,
}

impl Plan {
    /// For nodes without a choice.
    pub(super) const NONE: Plan = Plan {
        forward: Tile::Small,
        backward_input: Tile::Small,
        backward_weight: Tile::Small,
        slice_pixels: 0,
    };

    fn slices(&self, shape: &ConvShape) -> usize {
        shape.y_rows().div_ceil(self.slice_pixels)
    }
}

/// Filter elements (r, s, c): the rows of the weight gradient's tiles.
fn elements(shape: &ConvShape) -> usize {
    shape.taps() * shape.c as usize
}

pub(super) fn prepare(shape: &ConvShape) -> Result<Prepared<Plan>> {
    let (pixels, filters) = (shape.y_rows(), shape.k as usize);
    if shape.x_len() == 0 || shape.y_len() == 0 || shape.taps() == 0 {
        return Err(Error::Internal(format!("convolution over {shape:?}")));
    }
    for (what, value) in [
        ("N·H·W", shape.x_rows()),
        ("N·P·Q", pixels),
        ("R·S·C", elements(shape)),
        ("R·S·K", shape.taps() * filters),
    ] {
        limit("convolution", what, value)?;
    }
    // Enough slices that every multiprocessor of a large GPU has several blocks, none shorter than 64 pixels.
    let slices_of = |tile: Tile| {
        512usize
            .div_ceil(tile.blocks(elements(shape), filters))
            .min(pixels.div_ceil(64))
    };
    let backward_weight = Tile::choose(elements(shape), filters, slices_of(Tile::Large));
    let slice_pixels = pixels.div_ceil(slices_of(backward_weight)).next_multiple_of(16);
    let plan = Plan {
        forward: Tile::choose(pixels, filters, 1),
        backward_input: Tile::choose(shape.x_rows(), shape.c as usize, 1),
        backward_weight,
        slice_pixels,
    };
    let slices = plan.slices(shape);
    let weight = if slices > 1 { slices * shape.w_len() } else { 0 };
    let bias = norm::partials_len(y_rows(shape));
    let contract = shape.y_rows() * filters.div_ceil(32);
    Ok(Prepared {
        saved_bytes: 0,
        scratch_bytes: weight.max(bias).max(contract) * size_of::<f32>(),
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

/// The three kernels of one operation.
struct Variants<'a> {
    large: &'a Kernel,
    small: &'a Kernel,
    odd: &'a Kernel,
}

impl<'a> Variants<'a> {
    /// The kernel for a tile, and the tile it really has: four channels at a time need aligned operands.
    fn pick(&self, tile: Tile, vector: bool) -> (&'a Kernel, Tile) {
        match (vector, tile) {
            (true, Tile::Large) => (self.large, Tile::Large),
            (true, Tile::Small) => (self.small, Tile::Small),
            (false, _) => (self.odd, Tile::Small),
        }
    }
}

macro_rules! variants {
    ($cuda:expr, $large:ident, $small:ident, $odd:ident) => {{
        let kernels = &$cuda.kernels;
        Variants {
            large: &kernels.$large,
            small: &kernels.$small,
            odd: &kernels.$odd,
        }
    }};
}

fn fours(channels: i32) -> bool {
    channels % 4 == 0
}

pub(super) fn forward(
    cuda: &Cuda,
    conv: Conv<Cuda>,
    y: Mem<Cuda>,
    w: Mem<Cuda>,
    bias: Option<Mem<Cuda>>,
    epilogue: Epilogue<Arena>,
) -> Result<()> {
    let shape = *conv.shape;
    let out = output::<f32>("y", y, shape.y_len())?;
    let x = source("x", conv.x, x_rows(&shape))?;
    let w = input::<f32>("w", w, shape.w_len())?;
    let bias = optional::<f32>("bias", bias, shape.k as usize)?;
    let mask = mask(&epilogue, y_rows(&shape))?;
    let vector = fours(shape.c) && out.aligned() && x.aligned() && w.aligned() && mask.aligned();
    let variants = variants!(cuda, conv_forward_large, conv_forward_small, conv_forward_odd);
    let (kernel, tile) = variants.pick(conv.prepared.algorithm.forward, vector);
    let grid = grid2(tile.blocks(shape.y_rows(), shape.k as usize), 1, tile.threads())?;
    // SAFETY: types as in conv.cu; lengths checked above and sizes by `prepare`, the kernel stays inside both.
    unsafe { launch!(cuda, *kernel, grid, out, x, w, bias, mask, shape) }?;
    norm::sums(cuda, y_rows(&shape), y, epilogue.sums)
}

#[allow(clippy::too_many_arguments)]
pub(super) fn forward_tangent(
    cuda: &Cuda,
    conv: Conv<Cuda>,
    ty: Mem<Cuda>,
    tx: Tangent<Arena>,
    w: Mem<Cuda>,
    tw: Mem<Cuda>,
    tbias: Option<Mem<Cuda>>,
    epilogue: Epilogue<Arena>,
) -> Result<()> {
    let shape = *conv.shape;
    let out = output::<f32>("ty", ty, shape.y_len())?;
    let x = source("x", conv.x, x_rows(&shape))?;
    let tx = tangent(tx, x_rows(&shape))?;
    let w = input::<f32>("w", w, shape.w_len())?;
    let tw = input::<f32>("tw", tw, shape.w_len())?;
    let tbias = optional::<f32>("tbias", tbias, shape.k as usize)?;
    let mask = mask(&epilogue, y_rows(&shape))?;
    let operands: [&dyn Aligned; 6] = [&out, &x, &tx, &w, &tw, &mask];
    let vector = fours(shape.c) && operands.iter().all(|operand| operand.aligned());
    let variants = variants!(cuda, conv_tangent_large, conv_tangent_small, conv_tangent_odd);
    let (kernel, tile) = variants.pick(conv.prepared.algorithm.forward, vector);
    let grid = grid2(tile.blocks(shape.y_rows(), shape.k as usize), 1, tile.threads())?;
    // SAFETY: types as in conv.cu; lengths checked above and sizes by `prepare`, the kernel stays inside both.
    unsafe { launch!(cuda, *kernel, grid, out, x, tx, w, tw, tbias, mask, shape) }?;
    norm::sums(cuda, y_rows(&shape), ty, epilogue.sums)
}

pub(super) fn backward_input(
    cuda: &Cuda,
    conv: Conv<Cuda>,
    d: Mem<Cuda>,
    write: Write,
    dy: Mem<Cuda>,
    w: Mem<Cuda>,
    epilogue: Epilogue<Arena>,
) -> Result<()> {
    let shape = *conv.shape;
    let out = output::<f32>("d", d, shape.x_len())?;
    let dy = input::<f32>("dy", dy, shape.y_len())?;
    let w = input::<f32>("w", w, shape.w_len())?;
    let mask = mask(&epilogue, x_rows(&shape))?;
    let operands: [&dyn Aligned; 4] = [&out, &dy, &w, &mask];
    let vector = fours(shape.c) && fours(shape.k) && operands.iter().all(|operand| operand.aligned());
    let variants = variants!(
        cuda,
        conv_backward_input_large,
        conv_backward_input_small,
        conv_backward_input_odd
    );
    let (kernel, tile) = variants.pick(conv.prepared.algorithm.backward_input, vector);
    // Parity class 0 is the largest.
    let class_edge = |edge: i32| (edge as usize).div_ceil(shape.stride as usize);
    let pixels = shape.n as usize * class_edge(shape.h) * class_edge(shape.w);
    let classes = (shape.stride * shape.stride) as usize;
    let grid = grid2(tile.blocks(pixels, shape.c as usize), classes, tile.threads())?;
    let add = i32::from(write == Write::Add);
    // SAFETY: types as in conv.cu; lengths checked above and sizes by `prepare`, the kernel stays inside both.
    unsafe { launch!(cuda, *kernel, grid, out, dy, w, mask, shape, add) }?;
    norm::sums(cuda, x_rows(&shape), d, epilogue.sums)
}

pub(super) fn backward_weight(
    cuda: &Cuda,
    conv: Conv<Cuda>,
    dw: Mem<Cuda>,
    dbias: Option<Mem<Cuda>>,
    write: Write,
    dy: Mem<Cuda>,
) -> Result<()> {
    let (shape, plan) = (*conv.shape, conv.prepared.algorithm);
    let out = output::<f32>("dw", dw, shape.w_len())?;
    let x = source("x", conv.x, x_rows(&shape))?;
    let adjoint = input::<f32>("dy", dy, shape.y_len())?;
    let slices = plan.slices(&shape);
    let add = i32::from(write == Write::Add);
    // One slice writes dw itself; several write partial filters.
    let partial = if slices > 1 {
        scratch::<f32>("scratch", conv.scratch, slices * shape.w_len())?
    } else {
        out.again()
    };
    let partial_add = if slices > 1 { 0 } else { add };
    let vector = fours(shape.c) && fours(shape.k) && x.aligned() && adjoint.aligned() && partial.aligned();
    let variants = variants!(
        cuda,
        conv_backward_weight_large,
        conv_backward_weight_small,
        conv_backward_weight_odd
    );
    let (kernel, tile) = variants.pick(plan.backward_weight, vector);
    let grid = grid2(
        tile.blocks(elements(&shape), shape.k as usize),
        slices,
        tile.threads(),
    )?;
    let slice_pixels = plan.slice_pixels as i32;
    // SAFETY: types as in conv_weight.cu; the slices cover the pixels exactly once and their filters fit the scratch.
    unsafe {
        launch!(
            cuda,
            *kernel,
            grid,
            partial,
            x,
            adjoint,
            shape,
            slice_pixels,
            partial_add
        )
    }?;
    if slices > 1 {
        let (partial, len, slices) = (partial.read(), shape.w_len() as i64, slices as i32);
        // SAFETY: types as in conv_weight.cu; partial holds `slices` filters, out one.
        unsafe {
            launch!(
                cuda,
                cuda.kernels.sum_slices,
                strided(shape.w_len()),
                out,
                partial,
                len,
                slices,
                add
            )
        }?;
    }
    match dbias {
        Some(dbias) => norm::column_sums(cuda, y_rows(&shape), dbias, dy, conv.scratch, write),
        None => Ok(()),
    }
}

pub(super) fn contract(
    cuda: &Cuda,
    conv: Conv<Cuda>,
    out: Mem<Cuda>,
    dy: Mem<Cuda>,
    tw: Mem<Cuda>,
    tbias: Option<Mem<Cuda>>,
) -> Result<()> {
    let shape = *conv.shape;
    let out = output::<f32>("out", out, shape.n as usize)?;
    let x = source("x", conv.x, x_rows(&shape))?;
    let dy = input::<f32>("dy", dy, shape.y_len())?;
    let tw = input::<f32>("tw", tw, shape.w_len())?;
    let tbias = optional::<f32>("tbias", tbias, shape.k as usize)?;
    let vector = fours(shape.c) && x.aligned() && tw.aligned();
    let variants = variants!(cuda, conv_contract_large, conv_contract_small, conv_contract_odd);
    let (kernel, tile) = variants.pick(conv.prepared.algorithm.forward, vector);
    let tiles = (shape.k as usize).div_ceil(tile.edges().1);
    let partial = scratch::<f32>("scratch", conv.scratch, tiles * shape.y_rows())?;
    let grid = grid2(tile.blocks(shape.y_rows(), shape.k as usize), 1, tile.threads())?;
    // SAFETY: types as in per_sample.cu; lengths checked above, scratch for one value per filter tile and pixel.
    unsafe { launch!(cuda, *kernel, grid, partial, x, dy, tw, tbias, shape) }?;
    let (partial, pixels, tiles) = (partial.read(), shape.p() * shape.q(), tiles as i32);
    let grid = super::kernels::grid(shape.n as usize, 256)?;
    // SAFETY: types as in per_sample.cu; partial holds tiles·n·pixels values, out n.
    unsafe {
        launch!(
            cuda,
            cuda.kernels.sum_samples,
            grid,
            out,
            partial,
            shape.n,
            pixels,
            tiles
        )
    }
}
