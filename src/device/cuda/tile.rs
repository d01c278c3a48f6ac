//! Which kernel a convolution gets: by shape and operands, decided once, before memory is planned.

use cudarc::driver::LaunchConfig;

use super::format::Operands;
use super::kernels::{Kernel, Kernels, grid2, limit};
use super::norm::TILE_ROWS;
use super::weight_wgmma::{self, SLAB_PIXELS};
use super::wgmma::{self, Fields};
use crate::device::ConvShape;
use crate::{Error, Result};

/// Blocks that a large GPU runs at once: two on each of an H100's 132 multiprocessors.
const SLOTS: usize = 264;

/// What the models below expect of an H100 whose every slot has a block, in TFLOP/s: blocks of warps, and of warpgroups,
/// one a multiprocessor.
const WARPS: f64 = 500.0;
const WARPGROUPS: f64 = 600.0;

/// Size of a block's part of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    Large,
    Small,
}

/// Twins of LargeTile, SmallTile (kernels/conv_tile.cuh), LargeMma, SmallMma (mma_tile.cuh) and PixelStage (conv_weight_mma.cu).
struct Edges {
    rows: usize,
    columns: usize,
    threads: u32,
    /// Bytes of dynamic shared memory: backward to the filters, all others.
    shared: (u32, u32),
}

impl Tile {
    fn edges(self, operands: Operands) -> Edges {
        let (columns, threads, shared) = match (operands, self) {
            (Operands::F32, Tile::Large) => (64, 256, (0, 0)),
            (Operands::F32, Tile::Small) => (32, 128, (0, 0)),
            (Operands::Tf32 | Operands::Bf16, Tile::Large) => (128, 256, (69_632, 69_632)),
            (Operands::Tf32 | Operands::Bf16, Tile::Small) => (64, 128, (53_248, 49_152)),
        };
        Edges {
            rows: TILE_ROWS,
            columns,
            threads,
            shared,
        }
    }

    /// Blocks that cover an output.
    fn blocks(self, operands: Operands, rows: usize, columns: usize) -> usize {
        let edges = self.edges(operands);
        rows.div_ceil(edges.rows) * columns.div_ceil(edges.columns)
    }

    /// The large tile where it leaves a GPU full, `slices` times, and is itself more than half filled.
    fn choose(operands: Operands, rows: usize, columns: usize, slices: usize) -> Tile {
        let filled = columns > Tile::Small.edges(operands).columns;
        let full = Tile::Large.blocks(operands, rows, columns) * slices >= 128;
        if filled && full { Tile::Large } else { Tile::Small }
    }
}

/// Pixels in a halo; twin of PIXELS in kernels/conv_halo.cuh.
const HALO_PIXELS: i32 = 208;
/// Bytes of shared memory of the halo kernels, large tile and small: twins of HaloMemory::BYTES for forward and tangent.
pub(super) const HALO_FORWARD: [u32; 2] = [69_632, 39_936];
pub(super) const HALO_TANGENT: [u32; 2] = [78_848, 66_560];

/// Whether the kernels of conv_halo.cu take a convolution on tensor cores: tiles are whole rows or whole images.
fn halo(shape: &ConvShape, operands: Operands) -> bool {
    let window = (shape.r, shape.s, shape.stride, shape.pad) == (3, 3, 1, 1);
    let tile = TILE_ROWS as i32;
    // In narrower images a tap's eight pixels would not be in different banks, nor at the places that it computes.
    if operands == Operands::F32 || !window || shape.w < 4 || tile % shape.w != 0 {
        return false;
    }
    let rows = tile / shape.w;
    let whole = rows % shape.h == 0 || shape.h % rows == 0;
    // A row of padding above each image, one below the last.
    let padding = (rows / shape.h).max(1) + 1;
    whole && (rows + padding) * (shape.w + 1) < HALO_PIXELS
}

/// What [`super::Cuda`] decides for a node. It depends on the geometry and the kind of GPU alone, so that the bits of a run do
/// not depend on what else the GPU is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub(super) operands: Operands,
    /// How the wgmma kernels divide the pixels, where one takes forward and tangent, where it takes backward-input
    /// ([`fields`]), and where the other takes the weight gradient, in slabs of so many pixels of an image: what allows
    /// 16-byte accesses then goes there, the rest by the tiles below.
    pub(super) forward_fields: Option<Fields>,
    pub(super) backward_fields: Option<Fields>,
    pub(super) weight_slabs: Option<i32>,
    /// Whether forward and tangent, on their tile, else go to the halo kernels where all allows 16-byte accesses.
    pub(super) halo: bool,
    pub(super) forward: Tile,
    pub(super) backward_input: Tile,
    pub(super) backward_weight: Tile,
    /// Output pixels of one slice of the backward pass to the filters.
    pub(super) slice_pixels: usize,
}

impl Plan {
    /// For nodes without a choice.
    pub(super) const NONE: Plan = Plan {
        operands: Operands::F32,
        forward_fields: None,
        backward_fields: None,
        weight_slabs: None,
        halo: false,
        forward: Tile::Small,
        backward_input: Tile::Small,
        backward_weight: Tile::Small,
        slice_pixels: 0,
    };

    /// `multiprocessors` of a GPU that has the wgmma kernel.
    ///
    /// # Errors
    /// `Device` for a convolution larger than the kernels count.
    pub(super) fn new(shape: &ConvShape, operands: Operands, multiprocessors: Option<u32>) -> Result<Plan> {
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
        let most = pixels.div_ceil(64);
        let slices_of = |tile: Tile| slices(tile, operands, shape).clamp(1, most);
        let backward_weight = Tile::choose(operands, elements(shape), filters, slices_of(Tile::Large));
        let forward = Tile::choose(operands, pixels, filters, 1);
        let backward_input = Tile::choose(operands, shape.x_rows(), shape.c as usize, 1);
        let fields = |tile: Tile, channels: i32| {
            multiprocessors.and_then(|count| fields(shape, operands, tile, channels, count as usize))
        };
        let weight_slabs = multiprocessors.and_then(|_| weight_wgmma::slab_width(shape, operands));
        let slice_pixels = match weight_slabs {
            Some(_) => slab_slice_pixels(shape),
            None => pixels.div_ceil(slices_of(backward_weight)).next_multiple_of(32),
        };
        Ok(Plan {
            operands,
            forward_fields: fields(forward, shape.k),
            backward_fields: fields(backward_input, shape.c),
            weight_slabs,
            halo: halo(shape, operands),
            forward,
            backward_input,
            backward_weight,
            slice_pixels,
        })
    }

    pub(super) fn slices(&self, shape: &ConvShape) -> usize {
        shape.y_rows().div_ceil(self.slice_pixels)
    }

    /// The kernel of a convolution's nine for a tile, and the tile it really has: `vector` says that the operands allow
    /// 16-byte accesses.
    pub(super) fn pick<'a>(&self, tile: Tile, vector: bool, kernels: &'a [Kernel; 9]) -> (&'a Kernel, Tile) {
        let (variant, tile) = match (vector, tile) {
            (true, Tile::Large) => (0, Tile::Large),
            (true, Tile::Small) => (1, Tile::Small),
            (false, _) => (2, Tile::Small),
        };
        (&kernels[self.operands as usize * 3 + variant], tile)
    }

    /// The kernel and grid of forward or tangent: of the nine, or where the plan has a halo and `vector` allows it, of the
    /// four on halos, which take the bytes `shared`.
    pub(super) fn windows<'a>(
        &self,
        shape: &ConvShape,
        vector: bool,
        kernels: &'a [Kernel; 9],
        (halo, shared): (&'a [Kernel; 4], [u32; 2]),
    ) -> Result<(&'a Kernel, LaunchConfig)> {
        let (kernel, tile) = self.pick(self.forward, vector, kernels);
        let mut grid = self.grid(tile, (shape.y_rows(), shape.k as usize), 1)?;
        if !(self.halo && vector) {
            return Ok((kernel, grid));
        }
        grid.shared_mem_bytes = shared[tile as usize];
        let bf16 = usize::from(self.operands == Operands::Bf16);
        Ok((&halo[2 * bf16 + tile as usize], grid))
    }

    /// Columns of a tile.
    pub(super) fn columns(&self, tile: Tile) -> usize {
        tile.edges(self.operands).columns
    }

    /// A grid with a block for each tile of an output, `layers` times.
    pub(super) fn grid(
        &self,
        tile: Tile,
        (rows, columns): (usize, usize),
        layers: usize,
    ) -> Result<LaunchConfig> {
        let edges = tile.edges(self.operands);
        let mut grid = grid2(
            tile.blocks(self.operands, rows, columns),
            layers,
            (edges.threads, 1),
        )?;
        grid.shared_mem_bytes = edges.shared.1;
        Ok(grid)
    }

    /// As [`Plan::grid`], for the backward pass to the filters.
    pub(super) fn weight_grid(&self, tile: Tile, shape: &ConvShape) -> Result<LaunchConfig> {
        let extent = (elements(shape), shape.k as usize);
        let mut grid = self.grid(tile, extent, self.slices(shape))?;
        grid.shared_mem_bytes = tile.edges(self.operands).shared.0;
        Ok(grid)
    }
}

/// How the wgmma kernel divides an output of `channels` channels, where that kernel can take it and is expected to be faster
/// than blocks of warps with this tile: its tiles are four or two times as large, and few of them would leave multiprocessors
/// idle. By the time of their waves, to which what is common to both does not matter (the depth, the second product of a
/// tangent).
fn fields(
    shape: &ConvShape,
    operands: Operands,
    tile: Tile,
    channels: i32,
    multiprocessors: usize,
) -> Option<Fields> {
    let fields = wgmma::fields(shape, operands, channels)?;
    let tiles = wgmma::tiles((shape.n, shape.h, shape.w), channels) as usize;
    let slots = multiprocessors * 2;
    let edges = tile.edges(operands);
    let blocks = tile.blocks(operands, shape.x_rows(), channels as usize);
    let warpgroups = (tiles.div_ceil(multiprocessors) * wgmma::TILE) as f64 / (2.0 * WARPGROUPS);
    let warps = (blocks.div_ceil(slots) * edges.rows * edges.columns) as f64 / WARPS;
    (warpgroups <= warps).then_some(fields)
}

/// Filter elements (r, s, c): the rows of the weight gradient's tiles.
fn elements(shape: &ConvShape) -> usize {
    shape.taps() * shape.c as usize
}

/// Slices of the pixels in the backward pass to the filters: enough to fill a large GPU.
fn slices(tile: Tile, operands: Operands, shape: &ConvShape) -> usize {
    let blocks = tile.blocks(operands, elements(shape), shape.k as usize);
    if operands == Operands::F32 {
        return 512usize.div_ceil(blocks);
    }
    // The fastest by this model, in µs: every wave of blocks takes a slot's share of WARPS, every slice is written and read
    // at 3 TB/s.
    let edges = tile.edges(operands);
    let flops = 2.0 * (edges.rows * edges.columns) as f64 * shape.y_rows() as f64;
    let time = |slices: usize| {
        let waves = (blocks * slices).div_ceil(SLOTS) as f64;
        waves / slices as f64 * flops / (WARPS * 1e6 / SLOTS as f64)
            + (8 * slices * shape.w_len()) as f64 / 3e6
    };
    let most = SLOTS.div_ceil(blocks) * 2 + 2;
    (1..=most)
        .min_by(|&a, &b| time(a).total_cmp(&time(b)))
        .unwrap_or(1)
}

/// Pixels of a slice of the weight gradient by slabs, the fastest by this model, in µs: every wave of blocks, one on each
/// multiprocessor, takes 0.85 for a slab and 4 besides; every slice but a single one is written and read at 3 TB/s.
fn slab_slice_pixels(shape: &ConvShape) -> usize {
    let multiprocessors = SLOTS / 2;
    let slabs = shape.y_rows() / SLAB_PIXELS as usize;
    let blocks = (shape.c / weight_wgmma::EDGE * (shape.k / weight_wgmma::EDGE)) as usize;
    let time = |slices: usize| {
        let waves = (blocks * slices).div_ceil(multiprocessors) as f64;
        let sum = if slices > 1 { 8 * slices * shape.w_len() } else { 0 };
        waves * (0.85 * slabs.div_ceil(slices) as f64 + 4.0) + sum as f64 / 3e6
    };
    let most = (multiprocessors.div_ceil(blocks) * 2).min(slabs);
    let slices = (1..=most).min_by(|&a, &b| time(a).total_cmp(&time(b)));
    slabs.div_ceil(slices.unwrap_or(1)) * SLAB_PIXELS as usize
}

/// Lets the kernels on tensor cores have their shared memory.
pub(super) fn allow_shared(kernels: &Kernels) -> Result<()> {
    let operations = [
        (&kernels.conv_forward, false),
        (&kernels.conv_tangent, false),
        (&kernels.conv_backward_input, false),
        (&kernels.conv_backward_weight, true),
        (&kernels.conv_contract, false),
    ];
    for (family, shared) in [
        (&kernels.conv_forward_halo, HALO_FORWARD),
        (&kernels.conv_tangent_halo, HALO_TANGENT),
    ] {
        for (kernel, bytes) in family.iter().zip(shared.into_iter().cycle()) {
            kernel.allow_shared(bytes)?;
        }
    }
    for (family, weight) in operations {
        for operands in [Operands::Tf32, Operands::Bf16] {
            for (variant, tile) in [Tile::Large, Tile::Small, Tile::Small].into_iter().enumerate() {
                let shared = tile.edges(operands).shared;
                family[operands as usize * 3 + variant].allow_shared(if weight {
                    shared.0
                } else {
                    shared.1
                })?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: ConvShape = ConvShape {
        n: 512,
        h: 32,
        w: 32,
        c: 64,
        k: 64,
        r: 3,
        s: 3,
        stride: 1,
        pad: 1,
    };

    /// That of `n` square images of `channels` channels on an H100.
    fn plan(n: i32, edge: i32, channels: (i32, i32)) -> (ConvShape, Plan) {
        let shape = ConvShape {
            n,
            h: edge,
            w: edge,
            c: channels.0,
            k: channels.1,
            ..SHAPE
        };
        let plan = Plan::new(&shape, Operands::Bf16, Some(132));
        (shape, plan.expect("a plan"))
    }

    /// Whether forward and backward-input go to warpgroups.
    fn to_warpgroups(n: i32, edge: i32, channels: (i32, i32)) -> (bool, bool) {
        let (_, plan) = plan(n, edge, channels);
        (plan.forward_fields.is_some(), plan.backward_fields.is_some())
    }

    #[test]
    fn warpgroups_take_what_fills_the_gpu() {
        let (both, none) = ((true, true), (false, false));
        for (edge, channels) in [(32, 64), (16, 128), (8, 256), (4, 512)] {
            assert_eq!(to_warpgroups(512, edge, (channels, channels)), both, "{edge}");
            assert_eq!(to_warpgroups(16, edge, (channels, channels)), none, "{edge}");
        }
        // Of tests/gpu/sm90.rs.
        for (n, edge, channels) in [
            (16, 32, 128),
            (64, 32, 64),
            (64, 32, 128),
            (128, 16, 128),
            (512, 8, 128),
        ] {
            assert_eq!(to_warpgroups(n, edge, (channels, channels)), both, "{n}, {edge}");
        }
        // Waves: 1 of 64 tiles against 1 of 128 large blocks; 1 of 48 tiles against 1 of 192 small blocks.
        assert_eq!(to_warpgroups(256, 4, (512, 512)), both);
        assert_eq!(to_warpgroups(192, 4, (512, 512)), none);
        // 4 waves of tiles against 4 of blocks; no tile of 64 filters is of images so small.
        assert_eq!(to_warpgroups(128, 8, (64, 2048)), (true, false));
    }

    /// Slabs four pixels wide at least; blocks for all but a few multiprocessors, in one wave.
    #[test]
    fn slices_of_slabs_fill_the_gpu() {
        for (edge, channels, slices) in [
            (32, 64, 131),
            (16, 128, 33),
            (8, 256, 8),
            (4, 512, 2),
            (2, 512, 0),
        ] {
            let (shape, plan) = plan(512, edge, (channels, channels));
            assert_eq!(plan.weight_slabs, (edge >= 4).then_some(edge));
            if edge >= 4 {
                assert_eq!(
                    (plan.slices(&shape), plan.slice_pixels % 64),
                    (slices, 0),
                    "{edge}"
                );
            }
        }
    }

    #[test]
    fn warpgroups_take_what_they_can() {
        let taken = |shape: ConvShape, operands| {
            let plan = Plan::new(&shape, operands, Some(132)).expect("a plan");
            plan.forward_fields.is_some()
        };
        assert!(taken(SHAPE, Operands::Bf16));
        assert!(!taken(SHAPE, Operands::Tf32));
        for other in [
            ConvShape { stride: 2, ..SHAPE },
            ConvShape { c: 72, ..SHAPE },
            ConvShape { h: 31, ..SHAPE },
            ConvShape {
                w: 31,
                n: 500,
                ..SHAPE
            },
        ] {
            assert!(!taken(other, Operands::Bf16), "{other:?}");
        }
        let elsewhere = Plan::new(&SHAPE, Operands::Bf16, None).expect("a plan");
        assert_eq!(elsewhere.forward_fields, None);
    }
}
