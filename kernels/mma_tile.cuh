// The matrix product behind the convolutions on tensor cores (mma.sync): a block owns a BM x BN tile of
// out[m][n] = sum over d a[m][d] b[n][d], walks the depth in steps of 64 bytes through a ring of shared stages, and each
// warp keeps a 64 x 32 part in registers. T is what activations are stored as and names the operands: bf16 for
// __nv_bfloat16 (m16n8k16, 32 deep a step), tf32 for float (m16n8k8, 16 deep); sums are f32.
//
//   before:         the copies of the first STAGES - 1 steps are under way
//   for each step:  wait for its copies, barrier               (all warps are done with the stage that is refilled next)
//                   start the copies of step + STAGES - 1       cp.async: filters, and images that need no evaluation
//                   fetch the next step's images into registers (global loads in flight during the product)
//                   acc += a b                                  ldmatrix, mma: twice half the depth
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

// 16 bytes of stored numbers, or of an operand.
struct Chunk {
  uint32_t word[4];
};

__device__ __forceinline__ Chunk load_chunk(const void* p) {
  const uint4 t = load_vec<uint4>(static_cast<const unsigned char*>(p));
  return {{t.x, t.y, t.z, t.w}};
}
// Zeros where the chunk does not exist.
__device__ __forceinline__ void store_chunk(void* p, const Chunk& u, bool exists = true) {
  store_vec(static_cast<unsigned char*>(p), make_uint4(exists ? u.word[0] : 0, exists ? u.word[1] : 0,
                                                       exists ? u.word[2] : 0, exists ? u.word[3] : 0));
}

// Four stored numbers of a chunk from the 4·q-th on as floats, and four floats rounded to the operand in their place: in
// fours, so that the coefficients of a whole chunk need not be in registers at once.
template <class T>
__device__ __forceinline__ Pack<4> four_of(const Chunk& u, int q) {
  Pack<4> v;
  UNROLL for (int i = 0; i < 4; i++) {
    if constexpr (sizeof(T) == 2) {
      const uint32_t word = u.word[2 * q + i / 2];
      v.v[i] = __uint_as_float(i % 2 == 0 ? word << 16 : word & 0xffff0000u);
    } else {
      v.v[i] = __uint_as_float(u.word[i]);
    }
  }
  return v;
}
template <class T>
__device__ __forceinline__ void set_four(Chunk& u, int q, const Pack<4>& v) {
  if constexpr (sizeof(T) == 2) {
    u.word[2 * q] = bf16_pair(v.v[0], v.v[1]), u.word[2 * q + 1] = bf16_pair(v.v[2], v.v[3]);
  } else {
    UNROLL for (int i = 0; i < 4; i++) u.word[i] = to_tf32(v.v[i]);
  }
}

// Any floats as a chunk of an operand.
template <class T>
__device__ __forceinline__ Chunk operand_chunk(const Pack<WIDE<T>>& u) {
  Chunk out;
  UNROLL for (int q = 0; q < WIDE<T> / 4; q++) {
    set_four<T>(out, q, Pack<4>{{u.v[4 * q], u.v[4 * q + 1], u.v[4 * q + 2], u.v[4 * q + 3]}});
  }
  return out;
}

// Where a chunk lies in the rows of a stage; eight rows further it lies at the same place of its row.
__device__ __forceinline__ int chunk_offset(int row, int chunk) { return row * 64 + ((chunk ^ (row >> 1 & 3)) << 4); }

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
      UNROLL for (int part = 0; part < A::PARTS; part++) {
        a.fetch(0, part);
        a.store(0, part, stage(0));
      }
    }
  }
  const int lane = threadIdx.x & 31, matrix = lane >> 3, r = lane & 7;
  const int a_row = warp_row<Tile>() + (matrix & 1) * 8 + r, b_row = warp_column<Tile>() + (matrix >> 1) * 8 + r;
  const int a_at[2] = {chunk_offset(a_row, matrix >> 1), chunk_offset(a_row, 2 + (matrix >> 1))};
  const int b_at[2] = {chunk_offset(b_row, matrix & 1), chunk_offset(b_row, 2 + (matrix & 1))};
  for (int step = 0; step < steps; step++) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    copy(step + STAGES - 1);
    unsigned char* const rows = stage(step);
    UNROLL for (int k = 0; k < 2; k++) {
      if constexpr (!A::ASYNC) {
        if (k < A::PARTS && step + 1 < steps) a.fetch(step + 1, k);
      }
      uint32_t af[Tile::MI][4], bf[Tile::NI][2];
      UNROLL for (int i = 0; i < Tile::MI; i++) {
        ldmatrix_x4(af[i], rows + a_at[k] + i * 16 * Tile::ROW);
        if constexpr (ROUND) {
          UNROLL for (int e = 0; e < 4; e++) af[i][e] = rounded_fragment<T>(af[i][e]);
        }
      }
      UNROLL for (int j = 0; j < Tile::NI; j += 2) {
        uint32_t pair[4];
        ldmatrix_x4(pair, rows + b_at[k] + (Tile::BM + j * 8) * Tile::ROW);
        bf[j][0] = pair[0], bf[j][1] = pair[1], bf[j + 1][0] = pair[2], bf[j + 1][1] = pair[3];
      }
      multiply<T>(acc, af, bf);
      if constexpr (!A::ASYNC) {
        if (k + A::PARTS >= 2 && step + 1 < steps) a.store(step + 1, k + A::PARTS - 2, stage(step + 1));
      }
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

// acc + bias -> epilogue, for the tile of an output [NPQ][K].
template <class T, class Tile, bool VECTOR>
__device__ __forceinline__ void mma_finish_rows(T* y, const float (&acc)[Tile::MI][Tile::NI][4], unsigned char* memory,
                                                const float* bias, const Epilogue<T>& epilogue, const Place<Tile>& at,
                                                const ConvShape& shape, int thread = threadIdx.x) {
  float* product = reinterpret_cast<float*>(memory);
  mma_lay_out<Tile>(product, acc);
  finish_product<T, Tile, VECTOR>(y, product, bias, epilogue, at.tile, shape.n * shape.p() * shape.q() - at.m0, at.n0,
                                  shape.k, [&](int row) { return at.m0 + row; }, thread);
}

// Operand a of forward, tangent, contraction (DIRECTION 1) and backward-input (DIRECTION -1): rows are pixels, the depth
// is (tap row, tap column, channel). Pixel m reads image position origin(m) + DIRECTION·tap, zero outside. A thread owns
// one chunk of the step for PASSES pixels. VECTOR: channels in whole chunks, 16-byte reads; else number by number.
template <class T, class Tile, bool VECTOR, Form FORM, int DIRECTION>
struct PixelOperand {
  static constexpr int CHUNK = WIDE<T>, PASS = Tile::THREADS / 4, PASSES = Tile::BM / PASS;
  static constexpr int OUTSIDE = -(1 << 30);
  static constexpr bool ASYNC = VECTOR && FORM == Form::Plain;
  // A tangent has two images to keep: half of its rows are in registers during each half of the product.
  static constexpr int PARTS = FORM == Form::Tangent ? 2 : 1, PART = PASSES / PARTS;
  static_assert(PASS % 8 == 0, "a thread's chunks share their place");

  const Image<T> image;
  const Divider by_channels, by_columns;
  const int depth, place;
  int y[PASSES], x[PASSES], pixel[PASSES];  // origin: row, column, pixel number in the whole tensor
  Chunk value[PART], tangent[FORM == Form::Tangent ? PART : 1];  // of the fetched part
  int channel;      // of the fetched chunk
  unsigned inside;  // one bit per fetched row

  __device__ __forceinline__ PixelOperand(const Image<T>& image, int tap_rows, int tap_columns)
      : image(image), by_channels(image.channels), by_columns(max(tap_columns, 1)),
        depth(tap_rows * tap_columns * image.channels), place(chunk_offset(threadIdx.x / 4, threadIdx.x % 4)) {}

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
      cp_async16_cached(rows + place + i * PASS * Tile::ROW, image.source.x + at, ok);
    }
  }

  __device__ __forceinline__ void fetch(int step, int part) {
    if constexpr (VECTOR) {
      const Tap here = tap(first_depth(step));
      channel = here.exists ? here.c : 0;
      inside = 0;
      UNROLL for (int i = 0; i < PART; i++) {
        Offset at;
        value[i] = {};
        if constexpr (FORM == Form::Tangent) tangent[i] = {};
        if (locate(here, part * PART + i, at)) {
          value[i] = load_chunk(image.source.x + at);
          inside |= 1u << i;
          if constexpr (FORM == Form::Tangent) {
            if (image.tangent.tx != nullptr) tangent[i] = load_chunk(image.tangent.tx + at);
          }
        }
      }
    }
  }

  // What is pending on W channels from c on, for values x(i) and tangents tx(i) of a part's rows. The caller drops what lies
  // outside: padding stays zero.
  template <int W, class Value, class Rate>
  __device__ __forceinline__ void evaluate(int c, Value x, Rate tx, Pack<W> (&out)[PART]) const {
    if constexpr (FORM == Form::Plain) {
      UNROLL for (int i = 0; i < PART; i++) out[i] = x(i);
    } else {
      const Affine<W> affine(image.source, image.channels, c);
      const bool relu = image.source.relu != 0;
      if constexpr (FORM == Form::Forward) {
        UNROLL for (int i = 0; i < PART; i++) out[i] = source_forward(affine, relu, x(i));
      } else {
        const Slope<W> slope(image.tangent.slope, image.channels, c);
        UNROLL for (int i = 0; i < PART; i++) out[i] = source_tangent(affine, relu, slope, x(i), tx(i));
      }
    }
  }

  __device__ __forceinline__ void store(int step, int part, unsigned char* rows) {
    if constexpr (VECTOR) {
      UNROLL for (int q = 0; q < CHUNK / 4; q++) {
        Pack<4> four[PART];
        evaluate(channel + 4 * q, [&](int i) { return four_of<T>(value[i], q); },
                 [&](int i) { return four_of<T>(tangent[i], q); }, four);
        UNROLL for (int i = 0; i < PART; i++) set_four<T>(value[i], q, four[i]);
      }
      UNROLL for (int i = 0; i < PART; i++) {
        store_chunk(rows + place + (part * PART + i) * PASS * Tile::ROW, value[i], inside >> i & 1);
      }
    } else {
      Pack<CHUNK> out[PART] = {};
      UNROLL for (int e = 0; e < CHUNK; e++) {
        const Tap here = tap(first_depth(step) + e);
        Pack<1> x[PART], tx[PART], one[PART];
        bool ok[PART];
        UNROLL for (int i = 0; i < PART; i++) {
          Offset at;
          ok[i] = locate(here, part * PART + i, at);
          x[i] = tx[i] = {};
          if (ok[i]) {
            x[i] = load_pack<1>(image.source.x + at);
            if constexpr (FORM == Form::Tangent) {
              if (image.tangent.tx != nullptr) tx[i] = load_pack<1>(image.tangent.tx + at);
            }
          }
        }
        evaluate(here.exists ? here.c : 0, [&](int i) { return x[i]; }, [&](int i) { return tx[i]; }, one);
        UNROLL for (int i = 0; i < PART; i++) out[i].v[e] = ok[i] ? one[i].v[0] : 0.0f;
      }
      UNROLL for (int i = 0; i < PART; i++) {
        store_chunk(rows + place + (part * PART + i) * PASS * Tile::ROW, operand_chunk<T>(out[i]));
      }
    }
  }
};

// Operand b: rows of a matrix [rows][pitch] that filters.cu has written, the depth filled up to whole chunks.
template <class T, class Tile>
struct FilterOperand {
  static constexpr int CHUNK = WIDE<T>, PASS = Tile::THREADS / 4, PASSES = Tile::BN / PASS;

  const T* matrix;
  const int depth, place;
  int start[PASSES];  // of this thread's rows; negative behind the last row

  __device__ __forceinline__ FilterOperand(const T* matrix, int first, int rows, int depth)
      : matrix(matrix), depth(depth), place(chunk_offset(threadIdx.x / 4, threadIdx.x % 4)) {
    const int pitch = filter_pitch<T>(depth);
    UNROLL for (int i = 0; i < PASSES; i++) {
      const int n = first + static_cast<int>(threadIdx.x) / 4 + i * PASS;
      start[i] = n < rows ? n * pitch : -1;
    }
  }

  __device__ __forceinline__ void copy(int step, unsigned char* rows) const {
    const int d = (step * 4 + static_cast<int>(threadIdx.x) % 4) * CHUNK;
    copy_from(matrix, d, d < depth, rows);
  }

  // This thread's chunk of a matrix with the same rows, from depth d on where it exists.
  __device__ __forceinline__ void copy_from(const T* matrix, int d, bool exists, unsigned char* rows) const {
    UNROLL for (int i = 0; i < PASSES; i++) {
      const bool ok = start[i] >= 0 && exists;
      cp_async16(rows + place + i * PASS * Tile::ROW, matrix + (ok ? start[i] + d : 0), ok);
    }
  }
};

// Steps that cover a depth.
template <class T>
__device__ __forceinline__ int mma_steps(int depth) { return ceil_div(depth, 4 * WIDE<T>); }
