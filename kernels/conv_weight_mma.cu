// Convolution on tensor cores, backward to the filters: dw[k,r,s,c] = sum over output pixels of dy[pixel,k] · x[window(pixel),r,s,c].
// The depth is the pixels, split over blockIdx.y into slices as in conv_weight.cu (whose sum_slices adds them). Both
// operands lie in memory with the depth outermost; shared stages keep that order and the fragments are transposed as they
// are read: by ldmatrix for bf16, by single reads for tf32 (ldmatrix moves 16-bit pairs). Suffixes as in conv_mma.cu.
#include "mma_tile.cuh"

// Shared rows are the pixels of a step, padded by eight numbers: eight rows of a fragment lie in different banks.
template <class T, class Tile>
struct PixelStage {
  static constexpr int DEPTH = 4 * WIDE<T>, LDA = Tile::BM + 8, LDB = Tile::BN + 8;
  static constexpr int STAGE = DEPTH * (LDA + LDB) * static_cast<int>(sizeof(T));  // bytes; twin in src/device/cuda/tile.rs
};

// Fragments of 16 elements from `first` on over one mma's depth from row `k` on, as operand a or as two neighbouring
// tiles of operand b: registers count through {low, high elements} x {low, high depth}, elements first for a, depth for b.
template <class T, bool AS_A>
__device__ __forceinline__ void read_transposed(uint32_t (&r)[4], const T* rows, int pitch, int k, int first) {
  const int lane = threadIdx.x & 31;
  if constexpr (sizeof(T) == 2) {
    const int matrix = lane >> 3, upper = AS_A ? matrix & 1 : matrix >> 1, deeper = AS_A ? matrix >> 1 : matrix & 1;
    ldmatrix_x4_trans(r, rows + (k + deeper * 8 + (lane & 7)) * pitch + first + upper * 8);
  } else {
    const T* at = rows + (k + (lane & 3)) * pitch + first + (lane >> 2);
    UNROLL for (int matrix = 0; matrix < 4; matrix++) {
      const int upper = AS_A ? matrix & 1 : matrix >> 1, deeper = AS_A ? matrix >> 1 : matrix & 1;
      r[matrix] = __float_as_uint(widened(at[deeper * 4 * pitch + upper * 8]));
    }
  }
}

// Operand a: tile rows are filter elements (r, s, c), depth is output pixels first, first + 1, ... below end. A thread
// owns one chunk of elements for PASSES pixels of a step.
template <class T, class Tile, bool VECTOR>
struct WindowOperand {
  static constexpr int CHUNK = WIDE<T>, RUNS = Tile::BM / CHUNK, PASS = Tile::THREADS / RUNS;
  static constexpr int PASSES = PixelStage<T, Tile>::DEPTH / PASS, LDA = PixelStage<T, Tile>::LDA;
  static constexpr int ELEMENTS = VECTOR ? 1 : CHUNK;  // whose positions differ

  const Source<T> source;
  const ConvShape shape;
  const Divider by_pixels, by_q;
  const int first, end;
  int r[ELEMENTS], s[ELEMENTS], c[ELEMENTS];  // this thread's filter elements; c < 0 behind the last
  Chunk value[PASSES];
  unsigned inside;

  __device__ __forceinline__ WindowOperand(const Source<T>& source, const ConvShape& shape, int row0, int first, int end)
      : source(source), shape(shape), by_pixels(shape.p() * shape.q()), by_q(shape.q()), first(first), end(end) {
    UNROLL for (int e = 0; e < ELEMENTS; e++) {
      const int element = row0 + static_cast<int>(threadIdx.x) % RUNS * CHUNK + e, tap = element / shape.c;
      c[e] = tap < shape.r * shape.s ? element - tap * shape.c : -1;
      r[e] = tap / shape.s - shape.pad;
      s[e] = tap % shape.s - shape.pad;
    }
  }

  struct Window {
    int n, y, x;
    bool exists;
  };
  __device__ __forceinline__ Window window(int step, int pass) const {
    const int m = first + step * PixelStage<T, Tile>::DEPTH + static_cast<int>(threadIdx.x) / RUNS + pass * PASS;
    const int n = by_pixels.div(m), rest = m - n * by_pixels.d, p = by_q.div(rest);
    return {n, p * shape.stride, (rest - p * by_q.d) * shape.stride, m < end};
  }

  __device__ __forceinline__ bool locate(const Window& window, int e, Offset& at) const {
    const int row = window.y + r[e], column = window.x + s[e];
    const bool ok = window.exists && c[e] >= 0 && static_cast<unsigned>(row) < static_cast<unsigned>(shape.h) &&
                    static_cast<unsigned>(column) < static_cast<unsigned>(shape.w);
    at = ok ? Offset((window.n * shape.h + row) * shape.w + column) * shape.c + c[e] : 0;
    return ok;
  }

  __device__ __forceinline__ void fetch(int step) {
    if constexpr (VECTOR) {
      inside = 0;
      UNROLL for (int i = 0; i < PASSES; i++) {
        Offset at;
        value[i] = {};
        if (locate(window(step, i), 0, at)) {
          value[i] = load_chunk(source.x + at);
          inside |= 1u << i;
        }
      }
    }
  }

  __device__ __forceinline__ void store(int step, T* rows) {
    T* const to = rows + static_cast<int>(threadIdx.x) / RUNS * LDA + static_cast<int>(threadIdx.x) % RUNS * CHUNK;
    if constexpr (VECTOR) {
      UNROLL for (int q = 0; q < CHUNK / 4; q++) {
        const Affine<4> affine(source, shape.c, max(c[0], 0) + 4 * q);
        UNROLL for (int i = 0; i < PASSES; i++) {
          set_four<T>(value[i], q, source_forward(affine, source.relu != 0, four_of<T>(value[i], q)));
        }
      }
      UNROLL for (int i = 0; i < PASSES; i++) store_chunk(to + i * PASS * LDA, value[i], inside >> i & 1);
    } else {
      UNROLL for (int i = 0; i < PASSES; i++) {
        const Window here = window(step, i);
        Pack<CHUNK> out = {};
        UNROLL for (int e = 0; e < CHUNK; e++) {
          Offset at;
          if (locate(here, e, at)) {
            out.v[e] = source_forward(Affine<1>(source, shape.c, c[e]), source.relu != 0, load_pack<1>(source.x + at)).v[0];
          }
        }
        store_chunk(to + i * PASS * LDA, operand_chunk<T>(out));
      }
    }
  }
};

// Operand b: tile columns are filters, depth is output pixels. Copied as it is stored; number by number unless `wide`.
template <class T, class Tile>
struct AdjointOperand {
  static constexpr int CHUNK = WIDE<T>, RUNS = Tile::BN / CHUNK, PASS = Tile::THREADS / RUNS;
  static constexpr int PASSES = PixelStage<T, Tile>::DEPTH / PASS, LDB = PixelStage<T, Tile>::LDB;

  const T* dy;  // [pixels][filters]
  const int filters, column, first, end;
  const bool wide;

  __device__ __forceinline__ AdjointOperand(const T* dy, int filters, int column0, int first, int end, bool wide)
      : dy(dy), filters(filters), column(column0 + static_cast<int>(threadIdx.x) % RUNS * CHUNK), first(first), end(end),
        wide(wide) {}

  __device__ __forceinline__ void copy(int step, T* rows) const {
    T* const to = rows + static_cast<int>(threadIdx.x) / RUNS * LDB + static_cast<int>(threadIdx.x) % RUNS * CHUNK;
    UNROLL for (int i = 0; i < PASSES; i++) {
      const int m = first + step * PixelStage<T, Tile>::DEPTH + static_cast<int>(threadIdx.x) / RUNS + i * PASS;
      const T* from = dy + Offset(m) * filters + column;
      if (wide) {
        const bool ok = m < end && column < filters;
        cp_async16(to + i * PASS * LDB, ok ? from : dy, ok);
      } else {
        UNROLL for (int e = 0; e < CHUNK; e++) {
          to[i * PASS * LDB + e] = m < end && column + e < filters ? from[e] : narrowed<T>(0.0f);
        }
      }
    }
  }
};

template <class T, class Tile, bool VECTOR>
__device__ __forceinline__ void conv_backward_weight_mma(unsigned char* memory, float* dw, const Source<T>& x, const T* dy,
                                                         const ConvShape& shape, int slice_pixels, int add) {
  typedef PixelStage<T, Tile> Stage;
  constexpr int STAGES = Tile::STAGES, K = WIDE<T> * 2;  // depth of one mma
  const int elements = shape.r * shape.s * shape.c, pixels = shape.n * shape.p() * shape.q();
  const Place<Tile> at(shape.k);
  const int first = static_cast<int>(blockIdx.y) * slice_pixels, count = min(slice_pixels, pixels - first);
  const int steps = ceil_div(count, Stage::DEPTH);
  WindowOperand<T, Tile, VECTOR> a(x, shape, at.m0, first, first + count);
  AdjointOperand<T, Tile> b(dy, shape.k, at.n0, first, first + count, VECTOR || (shape.k % WIDE<T> == 0 && aligned16(dy)));
  const auto a_rows = [&](int step) { return reinterpret_cast<T*>(memory + step % STAGES * Stage::STAGE); };
  const auto b_rows = [&](int step) { return a_rows(step) + Stage::DEPTH * Stage::LDA; };
  float acc[Tile::MI][Tile::NI][4] = {};

  // The loop of mma_accumulate, with its order of copies and barriers.
  for (int step = 0; step < STAGES - 1; step++) {
    if (step < steps) b.copy(step, b_rows(step));
    cp_async_commit();
  }
  a.fetch(0);
  a.store(0, a_rows(0));
  for (int step = 0; step < steps; step++) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    if (step + STAGES - 1 < steps) b.copy(step + STAGES - 1, b_rows(step + STAGES - 1));
    cp_async_commit();
    if (step + 1 < steps) a.fetch(step + 1);
    UNROLL for (int k = 0; k < Stage::DEPTH; k += K) {
      uint32_t af[Tile::MI][4], bf[Tile::NI][2];
      UNROLL for (int i = 0; i < Tile::MI; i++) {
        read_transposed<T, true>(af[i], a_rows(step), Stage::LDA, k, warp_row<Tile>() + i * 16);
      }
      UNROLL for (int j = 0; j < Tile::NI; j += 2) {
        uint32_t pair[4];
        read_transposed<T, false>(pair, b_rows(step), Stage::LDB, k, warp_column<Tile>() + j * 8);
        UNROLL for (int e = 0; e < 4; e++) bf[j + e / 2][e % 2] = rounded_fragment<T>(pair[e]);
      }
      multiply<T>(acc, af, bf);
    }
    if (step + 1 < steps) a.store(step + 1, a_rows(step + 1));
  }
  cp_async_wait<0>();

  const int lane = threadIdx.x & 31;
  float* out = dw + Offset(blockIdx.y) * shape.k * elements;
  UNROLL for (int j = 0; j < Tile::NI; j++) {
    UNROLL for (int i = 0; i < Tile::MI; i++) {
      UNROLL for (int e = 0; e < 4; e++) {
        const int element = at.m0 + warp_row<Tile>() + i * 16 + e / 2 * 8 + (lane >> 2);
        const int k = at.n0 + warp_column<Tile>() + j * 8 + (lane & 3) * 2 + e % 2;
        if (element < elements && k < shape.k) {
          float* to = out + Offset(k) * elements + element;
          *to = add ? *to + acc[i][j][e] : acc[i][j][e];
        }
      }
    }
  }
}

// dw[slice,k,r,s,c] (+)= sum over the slice's pixels (n,p,q) of dy[n,p,q,k] · x[n, p·stride - pad + r, q·stride - pad + s, c]
// dw [slices][K,R,S,C]; x [N,H,W,C] a source; dy [N,P,Q,K]
// grid: (ceil(RSC/128)·ceil(K/BN), slices) blocks of the tile's threads, STAGES·STAGE bytes of dynamic shared memory; a block owns
//   128 filter elements x BN filters of one slice
// slices = ceil(NPQ/slice_pixels); NPQ, NHW, RSC < 2^31 - 256; _large and _small: C in whole chunks, K in whole chunks, x, its affine and dy aligned
#define CONV_BACKWARD_WEIGHT_MMA_ARGS(T) \
  float *dw, Source<T> x, const T *__restrict__ dy, ConvShape shape, int slice_pixels, int add

extern "C" __global__ void __launch_bounds__(256, 2) conv_backward_weight_large_tf32(CONV_BACKWARD_WEIGHT_MMA_ARGS(float)) {
  DYN_SMEM(memory);
  conv_backward_weight_mma<float, LargeMma, true>(memory, dw, x, dy, shape, slice_pixels, add);
}
extern "C" __global__ void __launch_bounds__(256, 2) conv_backward_weight_large_bf16(CONV_BACKWARD_WEIGHT_MMA_ARGS(__nv_bfloat16)) {
  DYN_SMEM(memory);
  conv_backward_weight_mma<__nv_bfloat16, LargeMma, true>(memory, dw, x, dy, shape, slice_pixels, add);
}
extern "C" __global__ void __launch_bounds__(128, 3) conv_backward_weight_small_tf32(CONV_BACKWARD_WEIGHT_MMA_ARGS(float)) {
  DYN_SMEM(memory);
  conv_backward_weight_mma<float, SmallMma, true>(memory, dw, x, dy, shape, slice_pixels, add);
}
extern "C" __global__ void __launch_bounds__(128, 3) conv_backward_weight_small_bf16(CONV_BACKWARD_WEIGHT_MMA_ARGS(__nv_bfloat16)) {
  DYN_SMEM(memory);
  conv_backward_weight_mma<__nv_bfloat16, SmallMma, true>(memory, dw, x, dy, shape, slice_pixels, add);
}
extern "C" __global__ void __launch_bounds__(128, 2) conv_backward_weight_odd_tf32(CONV_BACKWARD_WEIGHT_MMA_ARGS(float)) {
  DYN_SMEM(memory);
  conv_backward_weight_mma<float, SmallMma, false>(memory, dw, x, dy, shape, slice_pixels, add);
}
extern "C" __global__ void __launch_bounds__(128, 2) conv_backward_weight_odd_bf16(CONV_BACKWARD_WEIGHT_MMA_ARGS(__nv_bfloat16)) {
  DYN_SMEM(memory);
  conv_backward_weight_mma<__nv_bfloat16, SmallMma, false>(memory, dw, x, dy, shape, slice_pixels, add);
}
