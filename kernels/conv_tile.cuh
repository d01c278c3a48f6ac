// The matrix product behind the convolutions in exact f32, on CUDA cores: a block owns a BM x BN tile of  out[m][n] = sum over d a[d][m] b[d][n],
// walks the depth d in steps of BK through two shared buffers, and each thread keeps TM x TN sums in registers.
//
//   for each step:  fetch the next step's operands into registers     (global loads in flight during the product)
//                   acc += a[d] b[d] for the BK depths of this step    (from shared memory)
//                   store what was fetched into the other buffer       (a source is evaluated here, once per element)
//                   barrier
//
// What differs between the convolutions is where operands come from: the loaders below. "Rows" loaders read runs along
// the depth and transpose them on the way into shared memory, "columns" loaders read runs along the tile's edge. W is
// the width of a global read: 4 where channels and addresses are multiples of four floats, else 1.
#pragma once
#include "conv_index.cuh"
#include "epilogue.cuh"

template <int BM_, int BN_, int TM_, int TN_>
struct Tile {
  static constexpr int BM = BM_, BN = BN_, BK = 16, TM = TM_, TN = TN_;
  static constexpr int COLUMNS = BN / TN, THREADS = BM / TM * COLUMNS;
  // Rows of the shared tiles are padded by one float4: the transposing stores then hit two banks in turn, not one.
  static constexpr int LDA = BM + 4, LDB = BN + 4, LDC = BN + 4;
  // Floats of shared memory: two buffers of both operands, over which the product is laid when it is done.
  static constexpr int BUFFERS = 2 * BK * (LDA + LDB), MEMORY = BUFFERS > BM * LDC ? BUFFERS : BM * LDC;
  static_assert(TM % 4 == 0 && TN == 4, "fragments are read as float4");
};
typedef Tile<128, 64, 8, 4> LargeTile;  // 256 threads
typedef Tile<128, 32, 8, 4> SmallTile;  // 128 threads

// The tile's row (0..BM) of accumulator row i: a thread owns groups of four rows, BM/(TM/4) apart, so that a warp's
// fragment reads are contiguous.
template <class T>
__device__ __forceinline__ int tile_row(int i) {
  return i / 4 * (T::BM * 4 / T::TM) + threadIdx.x / T::COLUMNS * 4 + i % 4;
}

// The tile's first column of a thread's four.
template <class T>
__device__ __forceinline__ int tile_column() { return threadIdx.x % T::COLUMNS * 4; }

// acc += the product over `steps` steps of depth. All threads of the block call it; `memory`, Tile::MEMORY floats, is free
// before and after.
template <class T, class A, class B>
__device__ __forceinline__ void accumulate(float (&acc)[T::TM][T::TN], float* memory, int steps, A& a, B& b) {
  auto& as = *reinterpret_cast<float(*)[2][T::BK][T::LDA]>(memory);
  auto& bs = *reinterpret_cast<float(*)[2][T::BK][T::LDB]>(memory + 2 * T::BK * T::LDA);
  if (steps > 0) {
    a.fetch(0);
    b.fetch(0);
    a.store(0, as[0]);
    b.store(bs[0]);
  }
  __syncthreads();
  const int row = tile_row<T>(0), column = tile_column<T>();
  for (int step = 0; step < steps; step++) {
    const int now = step & 1;
    const bool more = step + 1 < steps;
    if (more) {
      a.fetch(step + 1);
      b.fetch(step + 1);
    }
    UNROLL for (int d = 0; d < T::BK; d++) {
      float av[T::TM], bv[T::TN];
      UNROLL for (int i = 0; i < T::TM; i += 4) {
        const float4 t = load_vec<float4>(&as[now][d][row + i / 4 * (T::BM * 4 / T::TM)]);
        av[i] = t.x, av[i + 1] = t.y, av[i + 2] = t.z, av[i + 3] = t.w;
      }
      const float4 t = load_vec<float4>(&bs[now][d][column]);
      bv[0] = t.x, bv[1] = t.y, bv[2] = t.z, bv[3] = t.w;
      UNROLL for (int i = 0; i < T::TM; i++) {
        UNROLL for (int j = 0; j < T::TN; j++) acc[i][j] = __fmaf_rn(av[i], bv[j], acc[i][j]);
      }
    }
    if (more) {
      a.store(step + 1, as[now ^ 1]);
      b.store(bs[now ^ 1]);
    }
    __syncthreads();
  }
}

// Lays the product out as [BM][LDC]. All threads call it.
template <class T>
__device__ __forceinline__ void lay_out(float* product, const float (&acc)[T::TM][T::TN]) {
  UNROLL for (int i = 0; i < T::TM; i++) {
    store_vec(product + tile_row<T>(i) * T::LDC + tile_column<T>(),
              make_float4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]));
  }
  __syncthreads();
}

// Operand a of forward, tangent, contraction (DIRECTION 1) and backward-input (DIRECTION -1): tile rows are pixels, the
// depth is (tap row, tap column, channel). Pixel m reads image position origin(m) + DIRECTION·tap, zero outside.
template <class T, int W, Form FORM, int DIRECTION>
struct PixelRows {
  static constexpr int PASSES = T::BM * T::BK / 4 / T::THREADS, PASS = T::THREADS / 4;
  static constexpr int OUTSIDE = -(1 << 30);

  const Image<float> image;
  const Divider by_channels, by_columns;
  const int depth;
  int y[PASSES], x[PASSES], pixel[PASSES];  // origin: row, column, pixel number in the whole tensor
  Pack<W> value[PASSES][4 / W], tangent[FORM == Form::Tangent ? PASSES : 1][4 / W];
  unsigned inside;  // one bit per pass and pack

  __device__ __forceinline__ PixelRows(const Image<float>& image, int tap_rows, int tap_columns)
      : image(image), by_channels(image.channels), by_columns(max(tap_columns, 1)),
        depth(tap_rows * tap_columns * image.channels) {}

  __device__ __forceinline__ static int row(int pass) { return threadIdx.x / 4 + pass * PASS; }

  __device__ __forceinline__ void origin(int pass, bool exists, int n, int row, int column) {
    y[pass] = exists ? row : OUTSIDE;
    x[pass] = column;
    pixel[pass] = exists ? (n * image.height + row) * image.width + column : 0;
  }

  __device__ __forceinline__ void fetch(int step) {
    inside = 0;
    UNROLL for (int j = 0; j < 4 / W; j++) {
      const int d = step * T::BK + static_cast<int>(threadIdx.x) % 4 * 4 + j * W;
      const int tap = by_channels.div(d), c = d - tap * image.channels;
      const int r = by_columns.div(tap), s = tap - r * by_columns.d;
      UNROLL for (int i = 0; i < PASSES; i++) {
        const int row = y[i] + DIRECTION * r, column = x[i] + DIRECTION * s;
        const bool ok = d < depth && row >= 0 && row < image.height && column >= 0 && column < image.width;
        value[i][j] = {};
        if constexpr (FORM == Form::Tangent) tangent[i][j] = {};
        if (ok) {
          const Offset at = Offset(pixel[i] + DIRECTION * (r * image.width + s)) * image.channels + c;
          value[i][j] = load_pack<W>(image.source.x + at);
          if constexpr (FORM == Form::Tangent) {
            if (image.tangent.tx != nullptr) tangent[i][j] = load_pack<W>(image.tangent.tx + at);
          }
          inside |= 1u << (i * 4 + j);
        }
      }
    }
  }

  // Padding stays zero: only what was inside is evaluated.
  __device__ __forceinline__ void store(int step, float (&tile)[T::BK][T::LDA]) {
    const int first = static_cast<int>(threadIdx.x) % 4 * 4;
    UNROLL for (int j = 0; j < 4 / W; j++) {
      if constexpr (FORM != Form::Plain) {
        const int c = by_channels.mod(step * T::BK + first + j * W);
        const Affine<W> affine(image.source, image.channels, c);
        const bool relu = image.source.relu != 0;
        const Slope<W> slope(FORM == Form::Tangent ? image.tangent.slope : nullptr, image.channels, c);
        UNROLL for (int i = 0; i < PASSES; i++) {
          Pack<W>& u = value[i][j];
          if constexpr (FORM == Form::Forward) u = source_forward(affine, relu, u);
          if constexpr (FORM == Form::Tangent) u = source_tangent(affine, relu, slope, u, tangent[i][j]);
          if (!(inside >> (i * 4 + j) & 1)) u = {};
        }
      }
      UNROLL for (int i = 0; i < PASSES; i++) {
        UNROLL for (int e = 0; e < W; e++) tile[first + j * W + e][row(i)] = value[i][j].v[e];
      }
    }
  }
};

// Operand b of forward, tangent and contraction: tile columns are filters, depth is the filter's own order (r, s, c).
template <class T, int W>
struct FilterRows {
  static constexpr int PASSES = T::BN * T::BK / 4 / T::THREADS;
  static_assert(PASSES == 1, "one run of four per thread");

  const float* row;  // w + filter·depth, or null behind the last filter
  const int depth;
  Pack<W> value[4 / W];

  __device__ __forceinline__ FilterRows(const float* w, int first, int filters, int depth)  // w [filters][depth]
      : depth(depth) {
    const int filter = first + threadIdx.x / 4;
    row = filter < filters ? w + Offset(filter) * depth : nullptr;
  }

  __device__ __forceinline__ void fetch(int step) {
    UNROLL for (int j = 0; j < 4 / W; j++) {
      const int d = step * T::BK + static_cast<int>(threadIdx.x) % 4 * 4 + j * W;
      value[j] = {};
      if (row != nullptr && d < depth) value[j] = load_pack<W>(row + d);
    }
  }

  __device__ __forceinline__ void store(float (&tile)[T::BK][T::LDB]) {
    const int first = threadIdx.x % 4 * 4;
    UNROLL for (int j = 0; j < 4 / W; j++) {
      UNROLL for (int e = 0; e < W; e++) tile[first + j * W + e][threadIdx.x / 4] = value[j].v[e];
    }
  }
};

// Stores the runs of a columns loader: contiguous in the tile's row.
template <int W, int LD>
__device__ __forceinline__ void store_run(float (&row)[LD], int column, const Pack<W> (&value)[4 / W]) {
  if constexpr (W == 4) {
    store_pack<4>(&row[column], value[0]);
  } else {
    UNROLL for (int j = 0; j < 4; j++) row[column + j] = value[j].v[0];
  }
}
