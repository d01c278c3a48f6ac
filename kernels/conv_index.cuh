// Where the operands of a convolution lie: shared by every implementation (conv_tile.cuh on CUDA cores, mma_tile.cuh on
// tensor cores). A convolution is the product of an operand of pixels, read through windows, and one of filters.
#pragma once
#include "epilogue.cuh"
#include "shapes.cuh"

// What a loader does with the stored values of its image.
enum class Form { Plain, Forward, Tangent };

// An image operand: its stored values, its extent, and what is pending on it.
template <class T>
struct Image {
  Source<T> source;    // source.x: [n][height][width][channels]
  Tangent<T> tangent;  // Form::Tangent only
  int height, width, channels;
};

// The block's tile of an output [rows][columns], column tiles fastest: blocks that run together share their pixels.
template <class T>
struct Place {
  int tile, m0, n0;  // number of the row tile, its first row, first column
  __device__ __forceinline__ explicit Place(int columns) {
    const int tiles = ceil_div(columns, T::BN);
    tile = static_cast<int>(blockIdx.x) / tiles;
    m0 = tile * T::BM;
    n0 = static_cast<int>(blockIdx.x) % tiles * T::BN;
  }
};

// The output pixels from m0 on as tile rows: their origin is the top left corner of the window.
template <class Loader>
__device__ __forceinline__ void window_origins(Loader& loader, const ConvShape& shape, int m0) {
  const int q = shape.q(), pixels = shape.p() * q, rows = shape.n * pixels;
  UNROLL for (int i = 0; i < Loader::PASSES; i++) {
    const int m = m0 + Loader::row(i);
    const int n = m / pixels, rest = m - n * pixels, oy = rest / q, ox = rest - oy * q;
    loader.origin(i, m < rows, n, oy * shape.stride - shape.pad, ox * shape.stride - shape.pad);
  }
}

// With stride t the taps that reach input row h are those with r = h + pad (mod t). Rows of one parity share their taps,
// so blockIdx.y takes one parity class of (h, w): no multiplication by a structural zero.
struct ParityClass {
  int h0, w0;            // first input row and column of the class
  int rows, columns;     // input rows and columns in it, per image
  int r0, s0;            // first tap
  int taps_r, taps_s;    // number of taps, one every `stride`
  int y0, x0;            // output row and column that tap (r0, s0) of input (h0, w0) comes from

  __device__ __forceinline__ ParityClass(const ConvShape& shape, int index) {
    const int t = shape.stride;
    h0 = index / t, w0 = index % t;
    rows = max(ceil_div(shape.h - h0, t), 0), columns = max(ceil_div(shape.w - w0, t), 0);
    r0 = (h0 + shape.pad) % t, s0 = (w0 + shape.pad) % t;
    taps_r = max(ceil_div(shape.r - r0, t), 0), taps_s = max(ceil_div(shape.s - s0, t), 0);
    y0 = (h0 + shape.pad - r0) / t, x0 = (w0 + shape.pad - s0) / t;
  }

  // Pixels of the class in a batch of n images.
  __device__ __forceinline__ int pixels(int n) const { return n * rows * columns; }

  // The class's pixel m in the whole input tensor.
  __device__ __forceinline__ int pixel(const ConvShape& shape, int m) const {
    const int n = m / (rows * columns), rest = m - n * rows * columns, row = rest / columns;
    return (n * shape.h + h0 + row * shape.stride) * shape.w + w0 + (rest - row * columns) * shape.stride;
  }
};

// Number of a tile of backward-input among those of the tensor's sums. With stride > 1 sums are asked for only where every
// class has the same whole number of tiles (ParityClass: tiles_are_whole in src/device/cuda/conv.rs).
template <class T>
__device__ __forceinline__ int class_tile(const Place<T>& at, const ConvShape& shape) {
  return at.tile + static_cast<int>(blockIdx.y) * (gridDim.x / ceil_div(shape.c, T::BN));
}

// The class's pixels from m0 on as tile rows: their origin is the output pixel that the first tap reaches.
template <class Loader>
__device__ __forceinline__ void class_origins(Loader& loader, const ConvShape& shape, const ParityClass& taps, int m0) {
  const int per_image = taps.rows * taps.columns, rows = shape.n * per_image;
  UNROLL for (int i = 0; i < Loader::PASSES; i++) {
    const int m = m0 + Loader::row(i);
    const bool exists = m < rows;
    const int n = exists ? m / per_image : 0, rest = exists ? m - n * per_image : 0;
    const int row = exists ? rest / taps.columns : 0, column = rest - row * taps.columns;
    loader.origin(i, exists, n, taps.y0 + row, taps.x0 + column);
  }
}

// The end of a block's tile of a product, which lies in shared memory as [Tile::BM][Tile::LDC]; the tile's sums reuse
// that memory. VECTOR: the launch promises epilogue.wide.
template <class T, class Tile, bool VECTOR, class Number>
__device__ __forceinline__ void finish_product(T* y, float* product, const float* bias, const Epilogue<T>& epilogue,
                                               int tile, int rows, int column0, int channels, Number number,
                                               int thread = threadIdx.x) {
  static_assert(Tile::BM == TILE_ROWS, "one partial per tile");
  const auto place = [&](int row, int column) { return product + row * Tile::LDC + column; };
  if (VECTOR || epilogue.wide) {
    finish_tile<T, RUN, Tile::BN, Tile::THREADS, 4>(
        y, epilogue, tile, min(rows, TILE_ROWS), column0, channels,
        [&](int row, int column) {
          Pack<RUN> v = load_pack<RUN>(place(row, column));
          if (bias != nullptr) {
            UNROLL for (int i = 0; i < RUN; i++) v.v[i] += bias[column0 + column + i];
          }
          return v;
        },
        number, place, thread);
  } else {
    finish_tile<T, 1, Tile::BN, Tile::THREADS, 4>(
        y, epilogue, tile, min(rows, TILE_ROWS), column0, channels,
        [&](int row, int column) {
          const float shift = bias != nullptr ? bias[column0 + column] : 0.0f;
          return Pack<1>{{*place(row, column) + shift}};
        },
        number, place, thread);
  }
}

// Length of a row of filters as filters.cu writes it: the depth, filled up with zeros to whole 16-byte chunks.
template <class T>
__device__ __forceinline__ int filter_pitch(int depth) { return ceil_div(depth, WIDE<T>) * WIDE<T>; }

// Numbers before a parity class's filters in the matrices [class][C][pitch] of backward-input.
template <class T>
__device__ __forceinline__ Offset class_filters(const ConvShape& shape, int index) {
  Offset before = 0;
  for (int i = 0; i < index; i++) {
    const ParityClass other(shape, i);
    before += Offset(shape.c) * filter_pitch<T>(other.taps_r * other.taps_s * shape.k);
  }
  return before;
}
