// The matrix product behind the convolutions on tensor cores (mma.sync): a block owns a BM x BN tile of
// out[m][n] = sum over d a[m][d] b[n][d], walks the depth in steps of 64 bytes through a ring of shared stages, and each
// warp keeps a 64 x 32 part in registers. T is what activations are stored as and names the operands: bf16 for
// __nv_bfloat16 (m16n8k16, 32 deep a step), tf32 for float (m16n8k8, 16 deep); sums are f32.
//
//   before:         the copies of the first STAGES - 1 steps are under way
//   for each step:  wait for its copies, barrier               (all warps are done with the stage that is refilled next)
//                   start the copies of step + STAGES - 1       cp.async: filters, and images that need no evaluation
//                   fetch the next step's images into registers (global loads in flight during the product)
//                   acc += a b                                  ldmatrix, mma
//                   evaluate what was fetched, store it         a source is evaluated here, once per element and tap
//
// A stage holds rows of 64 bytes = four 16-byte chunks of each operand. Chunk c of row r lies at place c ^ (r / 2 % 4), so
// that the eight rows of an 8 x 16-byte matrix, and the eight chunks that a quarter warp stores, are in different banks.
#pragma once
#include "conv_index.cuh"

template <int BM_, int BN_>
struct MmaTile {
  static constexpr int BM = BM_, BN = BN_, MI = 4, NI = 4;  // a warp's part: 4 x 4 tiles of 16 x 8
  static constexpr int WARP_COLUMNS = BN / 32, THREADS = BM / 64 * WARP_COLUMNS * 32;
  static constexpr int STAGES = 4, ROW = 64, STAGE = (BM + BN) * ROW;
  static constexpr int LDC = BN + 8;  // row of the product as it is laid out for the epilogue
  static constexpr int MEMORY = STAGES * STAGE > BM * LDC * 4 ? STAGES * STAGE : BM * LDC * 4;  // bytes of dynamic shared memory
};
typedef MmaTile<128, 128> LargeMma;  // 256 threads; twins in src/device/cuda/tile.rs
typedef MmaTile<128, 64> SmallMma;   // 128 threads

// First row and column of a warp's part.
template <class Tile>
__device__ __forceinline__ int warp_row() { return static_cast<int>(threadIdx.x) / 32 / Tile::WARP_COLUMNS * 64; }
template <class Tile>
__device__ __forceinline__ int warp_column() { return static_cast<int>(threadIdx.x) / 32 % Tile::WARP_COLUMNS * 32; }

template <class T, int MI, int NI>
__device__ __forceinline__ void multiply(float (&acc)[MI][NI][4], const uint32_t (&a)[MI][4], const uint32_t (&b)[NI][2]) {
  if constexpr (sizeof(T) == 2) mma_bf16_tile(acc, a, b);
  else mma_tf32_tile(acc, a, b);
}

// A fragment register of stored floats that went unrounded into shared memory: tf32 as to_tf32 has it. bf16: as it is.
template <class T>
__device__ __forceinline__ uint32_t rounded_fragment(uint32_t bits) {
  if constexpr (sizeof(T) == 2) return bits;
  else return to_tf32(__uint_as_float(bits));
}

// 16 bytes of stored numbers as floats, and floats as 16 bytes of an operand.
template <class T>
__device__ __forceinline__ Pack<WIDE<T>> from_chunk(uint4 t) {
  if constexpr (sizeof(T) == 2) {
    return unpack_bf16(t);
  } else {
    return {{__uint_as_float(t.x), __uint_as_float(t.y), __uint_as_float(t.z), __uint_as_float(t.w)}};
  }
}
template <class T>
__device__ __forceinline__ uint4 operand_chunk(const Pack<WIDE<T>>& u) {
  if constexpr (sizeof(T) == 2) return pack_bf16(u);
  else return make_uint4(to_tf32(u.v[0]), to_tf32(u.v[1]), to_tf32(u.v[2]), to_tf32(u.v[3]));
}

__device__ __forceinline__ unsigned char* chunk_at(unsigned char* rows, int row, int chunk) {
  return rows + row * 64 + ((chunk ^ (row >> 1 & 3)) << 4);
}

// acc += the product over `steps` steps of depth. All threads of the block call it; `memory` is free before and after.
// ROUND: operand a is copied as it is stored and rounded when it is read.
template <class T, class Tile, bool ROUND, class A, class B>
__device__ __forceinline__ void mma_accumulate(float (&acc)[Tile::MI][Tile::NI][4], unsigned char* memory, int steps, A& a,
                                               B& b) {
  constexpr int STAGES = Tile::STAGES;
  const auto stage = [&](int step) { return memory + step % STAGES * Tile::STAGE; };
  const auto copy = [&](int step) {
    if (step < steps) {
      if constexpr (A::ASYNC) a.copy(step, stage(step));
      b.copy(step, stage(step) + Tile::BM * Tile::ROW);
    }
    cp_async_commit();  // empty groups keep the count
  };
  for (int step = 0; step < STAGES - 1; step++) copy(step);
  if constexpr (!A::ASYNC) {
    if (steps > 0) {
      a.fetch(0);
      a.store(0, stage(0));
    }
  }
  const int lane = threadIdx.x & 31, matrix = lane >> 3, r = lane & 7;
  const int a_row = warp_row<Tile>() + (matrix & 1) * 8 + r, b_row = warp_column<Tile>() + (matrix >> 1) * 8 + r;
  for (int step = 0; step < steps; step++) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    copy(step + STAGES - 1);
    if constexpr (!A::ASYNC) {
      if (step + 1 < steps) a.fetch(step + 1);
    }
    unsigned char* const rows = stage(step);
    UNROLL for (int k = 0; k < 2; k++) {
      uint32_t af[Tile::MI][4], bf[Tile::NI][2];
      UNROLL for (int i = 0; i < Tile::MI; i++) {
        ldmatrix_x4(af[i], chunk_at(rows, a_row + i * 16, 2 * k + (matrix >> 1)));
        if constexpr (ROUND) {
          UNROLL for (int e = 0; e < 4; e++) af[i][e] = rounded_fragment<T>(af[i][e]);
        }
      }
      UNROLL for (int j = 0; j < Tile::NI; j += 2) {
        uint32_t pair[4];
        ldmatrix_x4(pair, chunk_at(rows + Tile::BM * Tile::ROW, b_row + j * 8, 2 * k + (matrix & 1)));
        bf[j][0] = pair[0], bf[j][1] = pair[1], bf[j + 1][0] = pair[2], bf[j + 1][1] = pair[3];
      }
      multiply<T>(acc, af, bf);
    }
    if constexpr (!A::ASYNC) {
      if (step + 1 < steps) a.store(step + 1, stage(step + 1));
    }
  }
  cp_async_wait<0>();
  __syncthreads();
}

// Lays the product out as [BM][LDC]. All threads call it.
template <class Tile>
__device__ __forceinline__ void mma_lay_out(float* product, const float (&acc)[Tile::MI][Tile::NI][4]) {
  const int lane = threadIdx.x & 31, row = warp_row<Tile>() + (lane >> 2), column = warp_column<Tile>() + (lane & 3) * 2;
  UNROLL for (int i = 0; i < Tile::MI; i++) {
    UNROLL for (int j = 0; j < Tile::NI; j++) {
      float* at = product + (row + i * 16) * Tile::LDC + column + j * 8;
      store_vec(at, make_float2(acc[i][j][0], acc[i][j][1]));
      store_vec(at + 8 * Tile::LDC, make_float2(acc[i][j][2], acc[i][j][3]));
    }
  }
  __syncthreads();
}

// Operand a of forward, tangent, contraction (DIRECTION 1) and backward-input (DIRECTION -1): rows are pixels, the depth
// is (tap row, tap column, channel). Pixel m reads image position origin(m) + DIRECTION·tap, zero outside. A thread owns
// one chunk of the step for PASSES pixels. VECTOR: channels in whole chunks, 16-byte reads; else number by number.
template <class T, class Tile, bool VECTOR, Form FORM, int DIRECTION>
struct PixelOperand {
  static constexpr int CHUNK = WIDE<T>, PASS = Tile::THREADS / 4, PASSES = Tile::BM / PASS;
  static constexpr int OUTSIDE = -(1 << 30);
  static constexpr bool ASYNC = VECTOR && FORM == Form::Plain;
  static_assert(PASS % 8 == 0, "a thread's rows share their swizzle");

  const Image<T> image;
  const Divider by_channels, by_columns;
  const int depth;
  int y[PASSES], x[PASSES], pixel[PASSES];  // origin: row, column, pixel number in the whole tensor
  uint4 value[PASSES], tangent[FORM == Form::Tangent ? PASSES : 1];
  int channel;      // of the fetched chunk
  unsigned inside;  // one bit per pass

  __device__ __forceinline__ PixelOperand(const Image<T>& image, int tap_rows, int tap_columns)
      : image(image), by_channels(image.channels), by_columns(max(tap_columns, 1)),
        depth(tap_rows * tap_columns * image.channels) {}

  __device__ __forceinline__ static int row(int pass) { return threadIdx.x / 4 + pass * PASS; }
  __device__ __forceinline__ static int first_depth(int step) {
    return (step * 4 + static_cast<int>(threadIdx.x) % 4) * CHUNK;
  }

  __device__ __forceinline__ void origin(int pass, bool exists, int n, int row, int column) {
    y[pass] = exists ? row : OUTSIDE;
    x[pass] = column;
    pixel[pass] = exists ? (n * image.height + row) * image.width + column : 0;
  }

  struct Tap {
    int r, s, c;
    bool exists;
  };
  __device__ __forceinline__ Tap tap(int d) const {
    const int tap = by_channels.div(d), c = d - tap * image.channels, r = by_columns.div(tap);
    return {DIRECTION * r, DIRECTION * (tap - r * by_columns.d), c, d < depth};
  }

  // Whether the tap of a pass lies in the image, and where.
  __device__ __forceinline__ bool locate(const Tap& tap, int pass, Offset& at) const {
    const int row = y[pass] + tap.r, column = x[pass] + tap.s;
    const bool ok = tap.exists && static_cast<unsigned>(row) < static_cast<unsigned>(image.height) &&
                    static_cast<unsigned>(column) < static_cast<unsigned>(image.width);
    at = ok ? Offset(pixel[pass] + tap.r * image.width + tap.s) * image.channels + tap.c : 0;
    return ok;
  }

  __device__ __forceinline__ void copy(int step, unsigned char* rows) const {
    const Tap here = tap(first_depth(step));
    UNROLL for (int i = 0; i < PASSES; i++) {
      Offset at;
      const bool ok = locate(here, i, at);
      cp_async16(chunk_at(rows, row(i), threadIdx.x % 4), image.source.x + at, ok);
    }
  }

  __device__ __forceinline__ void fetch(int step) {
    if constexpr (VECTOR) {
      const Tap here = tap(first_depth(step));
      channel = here.exists ? here.c : 0;
      inside = 0;
      UNROLL for (int i = 0; i < PASSES; i++) {
        Offset at;
        if (locate(here, i, at)) {
          value[i] = load_vec<uint4>(image.source.x + at);
          inside |= 1u << i;
          if constexpr (FORM == Form::Tangent) {
            tangent[i] = image.tangent.tx != nullptr ? load_vec<uint4>(image.tangent.tx + at) : make_uint4(0, 0, 0, 0);
          }
        }
      }
    }
  }

  // What is pending on the values x (and tangents tx) of W channels from c on. Padding never comes here: it stays zero.
  template <int W>
  __device__ __forceinline__ Pack<W> evaluate(const Pack<W>& x, const Pack<W>& tx, int c) const {
    if constexpr (FORM == Form::Plain) return x;
    const Affine<W> affine(image.source, image.channels, c);
    const bool relu = image.source.relu != 0;
    if constexpr (FORM == Form::Forward) {
      return source_forward(affine, relu, x);
    } else {
      return source_tangent(affine, relu, Slope<W>(image.tangent.slope, image.channels, c), x, tx);
    }
  }

  __device__ __forceinline__ void store(int step, unsigned char* rows) {
    if constexpr (VECTOR) {
      UNROLL for (int i = 0; i < PASSES; i++) {
        uint4 chunk = make_uint4(0, 0, 0, 0);
        if (inside >> i & 1) {
          Pack<CHUNK> tx = {};
          if constexpr (FORM == Form::Tangent) tx = from_chunk<T>(tangent[i]);
          chunk = operand_chunk<T>(evaluate(from_chunk<T>(value[i]), tx, channel));
        }
        store_vec(chunk_at(rows, row(i), threadIdx.x % 4), chunk);
      }
    } else {
      Pack<CHUNK> out[PASSES] = {};
      UNROLL for (int e = 0; e < CHUNK; e++) {
        const Tap here = tap(first_depth(step) + e);
        UNROLL for (int i = 0; i < PASSES; i++) {
          Offset at;
          if (locate(here, i, at)) {
            Pack<1> tx = {};
            if constexpr (FORM == Form::Tangent) {
              if (image.tangent.tx != nullptr) tx = load_pack<1>(image.tangent.tx + at);
            }
            out[i].v[e] = evaluate(load_pack<1>(image.source.x + at), tx, here.c).v[0];
          }
        }
      }
      UNROLL for (int i = 0; i < PASSES; i++) {
        store_vec(chunk_at(rows, row(i), threadIdx.x % 4), operand_chunk<T>(out[i]));
      }
    }
  }
};

// Operand b: rows of a matrix [rows][pitch] that filters.cu has written, pitch a whole number of chunks.
template <class T, class Tile>
struct FilterOperand {
  static constexpr int CHUNK = WIDE<T>, PASS = Tile::THREADS / 4, PASSES = Tile::BN / PASS;

  const T* row[PASSES];  // null behind the last
  const T* matrix;       // an address that exists
  const int chunks;

  __device__ __forceinline__ FilterOperand(const T* matrix, int first, int rows, int pitch)
      : matrix(matrix), chunks(pitch / CHUNK) {
    UNROLL for (int i = 0; i < PASSES; i++) {
      const int n = first + static_cast<int>(threadIdx.x) / 4 + i * PASS;
      row[i] = n < rows ? matrix + Offset(n) * pitch : nullptr;
    }
  }

  __device__ __forceinline__ void copy(int step, unsigned char* rows) const {
    const int chunk = step * 4 + static_cast<int>(threadIdx.x) % 4;
    UNROLL for (int i = 0; i < PASSES; i++) {
      const bool ok = row[i] != nullptr && chunk < chunks;
      cp_async16(chunk_at(rows, threadIdx.x / 4 + i * PASS, threadIdx.x % 4), ok ? row[i] + chunk * CHUNK : matrix, ok);
    }
  }
};

// Steps that cover a depth.
template <class T>
__device__ __forceinline__ int mma_steps(int depth) { return ceil_div(depth, 4 * WIDE<T>); }
