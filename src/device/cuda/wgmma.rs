//! Launches of kernels/conv_wgmma_sm90.cu: 3x3 convolutions of stride 1 in bf16 on GPUs of compute capability 9.0. Its
//! filters reach shared memory by bulk copies, which tensor maps describe.

use cudarc::driver::{DeviceRepr, LaunchConfig};

use super::format::Operands;
use super::kernels::{Sm90Kernels, launch};
use super::launcher::Launcher;
use super::memory::{In, KernelEpilogue, KernelSource, KernelTangent, Out};
use super::tensor_map::TensorMap;
use crate::Result;
use crate::device::ConvShape;

/// Pixels of a patch, the columns of a product; twin of PATCH_PIXELS in kernels/conv_wgmma.cuh.
const PATCH_PIXELS: i32 = 64;
/// Patches of a tile of 64 filters, the most that one has.
const MOST_PATCHES: usize = 8;
/// Channels of a stage; twin of DEPTH.
const DEPTH: u32 = 32;
/// Threads of a block; twin of THREADS.
const THREADS: u32 = 512;
/// Output elements of a tile.
pub(super) const TILE: usize = MOST_PATCHES * PATCH_PIXELS as usize * 64;

/// Filters of a tile and the most slots of its halos: twins of the instances in conv_wgmma_sm90.cu and of MOST_SLOTS.
const TILES: [(i32, i32); 2] = [(64, 648), (128, 576)];

/// Bytes of shared memory; twin of SHARED_BYTES.
const fn shared((filters, slots): (i32, i32)) -> u32 {
    (5 * filters * 64 + 4 * slots * 64 + 8 * 2 * 2176 + slots * 4) as u32
}

/// Lets the kernels have their shared memory.
pub(super) fn allow_shared(kernels: &Sm90Kernels) -> Result<()> {
    (kernels.conv_wgmma.iter().zip(TILES)).try_for_each(|(kernel, tile)| kernel.allow_shared(shared(tile)))
}

/// Place in [`TILES`] of an output of `channels` channels.
fn tile_of(channels: i32) -> usize {
    usize::from(channels % 128 == 0)
}

/// Patches of a tile of an output of `channels` channels; twin of TILE_PATCHES.
fn tile_patches(channels: i32) -> i32 {
    MOST_PATCHES as i32 * 64 / TILES[tile_of(channels)].0
}

/// How the pixels of a tile lie in the images: fields of `across` x `down` patches, each with its halo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fields {
    /// Of a patch: one, of which it has 8 x 8 pixels, or 16, of which it has 1 x 4.
    images: i32,
    across: i32,
    down: i32,
}

impl Fields {
    /// Height and width of a patch.
    fn patch(self) -> (i32, i32) {
        if self.images == 1 { (8, 8) } else { (1, 4) }
    }

    /// Height and width of a field, without its halo.
    fn edges(self) -> (i32, i32) {
        let (height, width) = self.patch();
        (self.down * height, self.across * width)
    }

    fn per_tile(self, patches: i32) -> i32 {
        patches / (self.across * self.down)
    }

    /// Slots of the halos of a tile of so many patches: pixels, with the padding around them.
    fn slots(self, patches: i32) -> i32 {
        let (height, width) = self.edges();
        self.per_tile(patches) * (height + 2) * (width + 2) * self.images
    }

    /// Those with the smallest halos, then the widest, of which tiles are whole in an output [n,h,w,channels]: the epilogue's
    /// sums are of 128 pixels each.
    fn choose((n, h, w): (i32, i32, i32), channels: i32) -> Option<Fields> {
        let (_, most) = TILES[tile_of(channels)];
        let patches = tile_patches(channels);
        let powers = [1, 2, 4, 8];
        let all = [1, 16].into_iter().flat_map(|images| {
            let sizes = powers
                .into_iter()
                .flat_map(|across| powers.map(|down| (across, down)));
            sizes.map(move |(across, down)| Fields { images, across, down })
        });
        all.filter(|fields| fields.across * fields.down <= patches)
            .filter(|fields| {
                let (height, width) = fields.edges();
                let images = fields.per_tile(patches) * fields.images;
                h % height == 0 && w % width == 0 && n % images == 0 && fields.slots(patches) <= most
            })
            .min_by_key(|fields| (fields.slots(patches), fields.down))
    }
}

/// How the kernel lays its tiles for an output of `channels` channels, where it takes a convolution: that of `shape` or the one
/// backward to its input, which is of the same kind.
pub(super) fn fields(shape: &ConvShape, operands: Operands, channels: i32) -> Option<Fields> {
    if !takes_window(shape, operands) {
        return None;
    }
    Fields::choose((shape.n, shape.h, shape.w), channels)
}

/// Whether the kernels of warpgroup products are for such a window, channels and operands.
pub(super) fn takes_window(shape: &ConvShape, operands: Operands) -> bool {
    let window = (shape.r, shape.s, shape.stride, shape.pad) == (3, 3, 1, 1);
    operands == Operands::Bf16 && window && shape.c % 64 == 0 && shape.k % 64 == 0
}

/// Twin of WgmmaPatch in kernels/conv_wgmma.cuh.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct WgmmaPatch {
    slot: i32,
    pixel: i32,
}

/// Twin of WgmmaShape.
#[repr(C)]
#[derive(Clone, Copy)]
struct WgmmaShape {
    h: i32,
    w: i32,
    c: i32,
    k: i32,
    tiles: i32,
    height: i32,
    width: i32,
    images: i32,
    tile_images: i32,
    halo_row: i32,
    halo: i32,
    slots: i32,
    matrix: i32,
    products: i32,
    mirrored: i32,
    reserved: i32,
    patches: [WgmmaPatch; MOST_PATCHES],
}
// SAFETY: plain old data without padding, laid out as its twin in the kernels.
unsafe impl DeviceRepr for WgmmaShape {}

impl WgmmaShape {
    fn new((n, h, w): (i32, i32, i32), (c, k): (i32, i32), fields: Fields) -> Self {
        let count = tile_patches(k);
        let Fields { images, across, down } = fields;
        let ((patch_height, patch_width), (height, width)) = (fields.patch(), fields.edges());
        let halo_row = (width + 2) * images;
        let halo = (height + 2) * halo_row;
        let patch = |number: i32| {
            let (field, row, column) = (number / across / down, number / across % down, number % across);
            let (y, x) = (row * patch_height, column * patch_width);
            WgmmaPatch {
                slot: field * halo + y * halo_row + x * images,
                pixel: (field * images * h + y) * w + x,
            }
        };
        let mut patches = [WgmmaPatch::default(); MOST_PATCHES];
        for (number, place) in (0..count).zip(&mut patches) {
            *place = patch(number);
        }
        WgmmaShape {
            h,
            w,
            c,
            k,
            tiles: tiles((n, h, w), k),
            height,
            width,
            images,
            tile_images: fields.per_tile(count) * images,
            halo_row,
            halo,
            slots: fields.slots(count),
            // The patch's rows, or without gaps.
            matrix: if images == 1 { halo_row } else { 8 },
            products: 1,
            mirrored: 0,
            reserved: 0,
            patches,
        }
    }
}

/// Tiles of an output [n,h,w,channels], all of them whole.
pub(super) fn tiles((n, h, w): (i32, i32, i32), channels: i32) -> i32 {
    let filters = TILES[tile_of(channels)].0;
    n * h * w / (TILE as i32 / filters) * (channels / filters)
}

/// out [N,H,W,K] = sum over one or two products of the convolution of [N,H,W,C] with filters [K][9][C], as filters.cu writes
/// them, + bias, then the epilogue. Of the last product the operand is the value of `source`, of a first one before it its
/// tangent. `fields` are those of [`fields`]; `mirrored` takes the taps in the opposite order.
#[allow(clippy::too_many_arguments)]
pub(super) fn convolve(
    cuda: &Launcher,
    kernels: &Sm90Kernels,
    pixels: (i32, i32, i32),
    (c, k): (i32, i32),
    fields: Fields,
    filters: &[In],
    (source, tangent): (KernelSource, KernelTangent),
    mirrored: bool,
    out: Out,
    bias: In,
    end: KernelEpilogue,
) -> Result<()> {
    let tile = TILES[tile_of(k)];
    let kernel = &kernels.conv_wgmma[tile_of(k)];
    let map = |filters: In| TensorMap::new(filters, [c, 9, k], [DEPTH, 1, tile.0 as u32]);
    let (w0, w1) = (map(filters[0])?, map(filters[filters.len() - 1])?);
    let shape = WgmmaShape {
        products: filters.len() as i32,
        mirrored: mirrored.into(),
        ..WgmmaShape::new(pixels, (c, k), fields)
    };
    let grid = LaunchConfig {
        grid_dim: (kernels.multiprocessors.min(shape.tiles as u32), 1, 1),
        block_dim: (THREADS, 1, 1),
        shared_mem_bytes: shared(tile),
    };
    // SAFETY: types as in conv_wgmma_sm90.cu; the caller has checked lengths and alignment, and `fields` the shape.
    unsafe { launch!(cuda, kernel, grid, out, w0, w1, source, tangent, bias, end, shape) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_whole_and_have_small_halos() {
        for (images, channels, expected) in [
            ((512, 32, 32), 64, Some((1, 4, 2, 612))),
            ((512, 16, 16), 64, Some((1, 2, 2, 648))),
            ((512, 16, 16), 128, Some((1, 2, 2, 324))),
            ((512, 8, 8), 256, Some((1, 1, 1, 400))),
            ((512, 4, 4), 512, Some((16, 1, 4, 576))),
            ((32, 4, 8), 128, Some((16, 1, 4, 576))),
            ((512, 12, 8), 128, Some((16, 1, 4, 576))),
            // No room for the halos; images, rows and columns that fill no tile.
            ((512, 8, 8), 64, None),
            ((3, 8, 8), 128, None),
            ((8, 4, 4), 128, None),
            ((512, 14, 8), 128, None),
            ((512, 8, 14), 128, None),
        ] {
            let fields = Fields::choose(images, channels);
            let found = fields.map(|f| (f.images, f.across, f.down, f.slots(tile_patches(channels))));
            assert_eq!(found, expected, "{images:?}, {channels}");
        }
    }
}
