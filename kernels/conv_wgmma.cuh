// A 3x3 convolution of stride 1 on Hopper's tensor cores: the geometry of its tiles and what its parts have in common.
//
// A block's tile is ROWS image rows of 64 pixels by FILTERS filters: 8 x 64 or 4 x 128. The 64 pixels of a row are a slab:
// `width` pixels (a power of two) of each of 64 / width images, so that small images fill it as well as large ones. A
// slab of 32 channels is 4 KB of shared memory under the 64-byte swizzle: one bulk copy, and as it stands the A operand
// of wgmma (64 rows, depth 32). The window moves by whole slabs: for one column s of the window, slabs -1..ROWS (shifted
// by s - 1 pixels, zero outside of the image) serve all three rows r: output row i and window row r meet in slab i + r. A
// stage of the ring is those slabs and the three filter slices (r, s), 32 channels of both; three stages make 32 channels
// of depth, six where two products are summed: theirs take turns.
//
// The tangent of a source with something pending takes its two stages as a pair, since both operands are functions of x
// and tx: tx arrives where the first product's operand goes, x where the second's goes. For each column of
// the window both are read once, evaluated once and written back in place. Four stages hold a pair that is multiplied and one that is fetched and evaluated. With
// 64 channels a stage only one pair would fit, and nothing would go on beside the products; with half the rows, a byte
// from L2 would serve 77 FLOP in place of 128.
//
// For 18.9 MFLOP, 32 channels deep, a tile takes from L2 3·(ROWS + 2) slabs of 4 KB and 9·FILTERS·64 bytes of filters:
// 118 FLOP a byte at 64 filters, 128 at 128. Reading every tap's pixels anew would give 57 and 85.
#pragma once
#include "epilogue.cuh"
#include "ring.cuh"

namespace wgmma_tile {
constexpr int SLAB_PIXELS = 64, DEPTH = 32, CONSUMERS = 2, STAGES = 4;
constexpr int PRODUCER_THREADS = 256;  // a warpgroup that copies, one that evaluates what is pending
constexpr int THREADS = PRODUCER_THREADS + CONSUMERS * 128;
constexpr int COPY_REGISTERS = 32, TRANSFORM_REGISTERS = 80, MULTIPLY_REGISTERS = 200;
static_assert(COPY_REGISTERS + TRANSFORM_REGISTERS + CONSUMERS * MULTIPLY_REGISTERS <= 4 * 128, "of what a launch gives");
constexpr int ROW = DEPTH * 2, SLAB = SLAB_PIXELS * ROW;  // bytes

template <int FILTERS>
constexpr int ROWS = 512 / FILTERS;
template <int FILTERS>
constexpr int CONSUMER_ROWS = ROWS<FILTERS> / CONSUMERS;
template <int FILTERS>
constexpr int SLABS = ROWS<FILTERS> + 2;
template <int FILTERS>
constexpr int FILTER_SLICE = FILTERS * ROW;
template <int FILTERS>
constexpr int STAGE_BYTES = SLABS<FILTERS> * SLAB + 3 * FILTER_SLICE<FILTERS>;
// A consumer's outputs pass through shared memory, 128 pixels x so many filters at a time: what the stages leave.
constexpr int STAGED_COLUMNS = 16, STAGED = 128 * STAGED_COLUMNS * 4;
template <int FILTERS>
constexpr int SHARED_BYTES = STAGES * STAGE_BYTES<FILTERS> + CONSUMERS * STAGED;
// Beside them stand 1 KB of barriers; a block may have 227 KB.
static_assert(SHARED_BYTES<64> <= 226 << 10 && SHARED_BYTES<128> <= 226 << 10, "twins of `shared` in wgmma.rs");
}  // namespace wgmma_tile

// Twin of WgmmaShape in src/device/cuda/wgmma.rs. Tiles are whole: `width` divides w, 64 / width divides n, h is even.
struct WgmmaShape {
  int n, h, w, c, k;
  int width_log2;  // pixels of an image in a slab
  int products;    // that are summed: 1, or 2 for the tangent
  int mirrored;    // the filters' taps stand in the opposite order
};
static_assert(sizeof(WgmmaShape) == 32, "twin of WgmmaShape in wgmma.rs");

// A tile's place among all tiles: filters fastest, so that blocks that run together share their pixels.
template <int FILTERS>
struct WgmmaPlace {
  int n0, h0, w0, k0;

  __device__ __forceinline__ WgmmaPlace(const WgmmaShape& shape, int tile) {
    const int width = 1 << shape.width_log2, images = wgmma_tile::SLAB_PIXELS >> shape.width_log2;
    const int column_tiles = ceil_div(shape.k, FILTERS), row_tiles = ceil_div(shape.h, wgmma_tile::ROWS<FILTERS>);
    const int width_tiles = shape.w >> shape.width_log2;
    k0 = tile % column_tiles * FILTERS;
    tile /= column_tiles;
    w0 = tile % width_tiles * width;
    tile /= width_tiles;
    h0 = tile % row_tiles * wgmma_tile::ROWS<FILTERS>;
    n0 = tile / row_tiles * images;
  }

  __device__ __forceinline__ static int count(const WgmmaShape& shape) {
    const int width = 1 << shape.width_log2, images = wgmma_tile::SLAB_PIXELS >> shape.width_log2;
    return ceil_div(shape.k, FILTERS) * (shape.w / width) * ceil_div(shape.h, wgmma_tile::ROWS<FILTERS>) *
           (shape.n / images);
  }

  // Number of rows h and h + 1 of this place among all pairs of rows, the tiles of the output's sums.
  __device__ __forceinline__ int pair(const WgmmaShape& shape, int h) const {
    const int group = n0 >> (6 - shape.width_log2);
    return (group * (shape.h / 2) + h / 2) * (shape.w >> shape.width_log2) + (w0 >> shape.width_log2);
  }
};

typedef Ring<wgmma_tile::STAGES> RingPlace;
