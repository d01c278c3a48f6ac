// A 3x3 convolution of stride 1 on Hopper's tensor cores: the geometry of its tiles and what its parts have in common.
//
// A patch is 64 output pixels, the columns of a product of 64 filters: 8 x 8 pixels of an image, or, of images too narrow for
// that, 1 x 4 pixels of 16 images. A field is a rectangle of patches (`down` x `across`) with the halo of one pixel around it;
// a tile is some fields, 512 pixels by 64 filters or 256 by 128: each of two consumers has four patches and 64 filters.
//
// The halo lies in shared memory as slots of 16 bytes, eight channels of one pixel: [chunk of channels][field][row][column]
// [image]. There are no gaps between the pixels of a row (or, where a patch is of 16 images, between the images of a pixel and
// the pixels of a row), so that the eight slots of a core matrix of wgmma may begin at any of them: every one of the nine taps
// reads the same halo, shifted. It is fetched once and evaluated once for all nine.
//
// A stage is the halo of 32 channels; the taps' filters come through a ring of their own, 32 channels of one tap at a time. A
// tangent is two products: of a pair of stages the first holds the tangent of the source, the second its value.
//
// For 18.9 MFLOP, 32 channels deep, a tile takes from L2 slots x 64 bytes (324 to 648 of them) and 9 · FILTERS · 64 bytes of
// filters: 248 FLOP a byte at 64 filters of 32x32 images, 200 at 128 of 16x16. Reading every tap's pixels anew would give 57, 85.
#pragma once
#include "epilogue.cuh"
#include "ring.cuh"

namespace wgmma_tile {
constexpr int PATCH_PIXELS = 64, PATCHES = 4;  // of a consumer
constexpr int CONSUMERS = 2, DEPTH = 32, CHUNK = 8, SLOT = CHUNK * 2, HALOS = 4, FILTER_STAGES = 5;
constexpr int PRODUCER_THREADS = 256;  // a warpgroup that copies filters, one that evaluates halos
constexpr int THREADS = PRODUCER_THREADS + CONSUMERS * 128;
constexpr int COPY_REGISTERS = 32, EVALUATE_REGISTERS = 80, MULTIPLY_REGISTERS = 200;
static_assert(COPY_REGISTERS + EVALUATE_REGISTERS + CONSUMERS * MULTIPLY_REGISTERS <= 4 * 128, "of what a launch gives");
constexpr int FILTER_ROW = DEPTH * 2;  // bytes

template <int FILTERS>
constexpr int MOST_SLOTS = FILTERS == 64 ? 648 : 576;
template <int FILTERS>
constexpr int CHUNK_PITCH = MOST_SLOTS<FILTERS> * SLOT;
template <int FILTERS>
constexpr int HALO = DEPTH / CHUNK * CHUNK_PITCH<FILTERS>;
template <int FILTERS>
constexpr int FILTER_SLICE = FILTERS * FILTER_ROW;

// A warp's part of a patch on its way between memory and accumulators: 64 pixels of its filters 0 to 7, 16 bytes each, then of
// 8 to 15, moved by half of the banks.
constexpr int PLANE = PATCH_PIXELS * 16 + 64, STAGED = 2 * PLANE;

// Shared memory: filters, halos, two parts of a patch for each consuming warp, the evaluators' list of pixels.
template <int FILTERS>
constexpr int HALOS_AT = FILTER_STAGES * FILTER_SLICE<FILTERS>;
template <int FILTERS>
constexpr int STAGED_AT = HALOS_AT<FILTERS> + HALOS * HALO<FILTERS>;
template <int FILTERS>
constexpr int LIST_AT = STAGED_AT<FILTERS> + CONSUMERS * 4 * 2 * STAGED;
template <int FILTERS>
constexpr int SHARED_BYTES = LIST_AT<FILTERS> + MOST_SLOTS<FILTERS> * 4;
// Beside them stand barriers; a block may have 227 KB.
static_assert(SHARED_BYTES<64> <= 226 << 10 && SHARED_BYTES<128> <= 226 << 10, "twins of `shared` in wgmma.rs");
}  // namespace wgmma_tile

// A patch in its tile.
struct WgmmaPatch {
  int slot;   // that its first pixel reads at the first tap
  int pixel;  // its first, counted from the tile's first as rows of [N,H,W] are
};

// Twins of WgmmaPatch and WgmmaShape in src/device/cuda/wgmma.rs, where they are computed. Tiles are whole: a field's pixels
// divide h and w, a tile's images n.
struct WgmmaShape {
  int h, w, c, k;
  int tiles;
  int height, width;           // of a field, without its halo
  int images;                  // of a field and of a patch: 1 or 16
  int tile_images;             // of all fields
  int halo_row, halo, slots;   // slots of a row of a field's halo, of that halo, of all
  int matrix;                  // slots from one core matrix of a patch to the next
  int products;                // that are summed: 1, or 2 for the tangent
  int mirrored;                // the filters' taps stand in the opposite order
  int reserved;
  WgmmaPatch patches[wgmma_tile::CONSUMERS * wgmma_tile::PATCHES];  // of 128 filters the first half
};
static_assert(sizeof(WgmmaShape) == 128, "twin of WgmmaShape in wgmma.rs");

// A tile's place among all tiles: filters fastest, so that blocks that run together share their pixels.
template <int FILTERS>
struct WgmmaPlace {
  static constexpr int TILE_PATCHES = wgmma_tile::CONSUMERS * wgmma_tile::PATCHES * 64 / FILTERS;
  int k0, number;      // number: among the tiles of the same filters
  int h0, w0, pixel0;  // pixel0: number of the tensor's row that is its first pixel

  __device__ __forceinline__ WgmmaPlace(const WgmmaShape& shape, int tile) {
    const int column_tiles = computed_here(shape.k / FILTERS);
    const int down = computed_here(shape.h / shape.height), across = computed_here(shape.w / shape.width);
    k0 = tile % column_tiles * FILTERS;
    number = tile / column_tiles;
    const int row = number / across;
    w0 = number % across * shape.width;
    h0 = row % down * shape.height;
    pixel0 = (row / down * shape.tile_images * shape.h + h0) * shape.w + w0;
  }
};
