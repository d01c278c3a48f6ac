// Convolution, backward to filters and bias: dw[k,r,s,c] = sum over output pixels of dy[pixel,k] · x[window(pixel),r,s,c].
// The depth of this product is the pixels, far longer than its edges: it is split over blockIdx.y into slices whose
// partial filters go to scratch and are added in the order of the slices. The tile's rows are (r, s, c), so that 64
// filters fill it.
#include "conv_tile.cuh"

// Operand a: tile rows are filter elements (r, s, c), depth is output pixels first, first + 1, ... below end.
template <class T, int W>
struct WindowColumns {
  static constexpr int RUNS = T::BM / 4, PASS = T::THREADS / RUNS, PASSES = T::BK / PASS;

  const Image<float> image;
  const ConvShape shape;
  const Divider by_pixels, by_q;
  const int first, end;
  int r[4 / W], s[4 / W], c[4 / W];  // this thread's filter elements; c < 0 behind the last
  Pack<W> value[PASSES][4 / W];
  unsigned inside;

  __device__ __forceinline__ WindowColumns(const Source<float>& x, const ConvShape& shape, int row0, int first, int end)
      : image{x, {}, shape.h, shape.w, shape.c}, shape(shape), by_pixels(shape.p() * shape.q()), by_q(shape.q()),
        first(first), end(end) {
    UNROLL for (int j = 0; j < 4 / W; j++) {
      const int element = row0 + static_cast<int>(threadIdx.x) % RUNS * 4 + j * W, tap = element / shape.c;
      c[j] = tap < shape.r * shape.s ? element - tap * shape.c : -1;
      r[j] = tap / shape.s - shape.pad;
      s[j] = tap % shape.s - shape.pad;
    }
  }

  __device__ __forceinline__ void fetch(int step) {
    inside = 0;
    UNROLL for (int i = 0; i < PASSES; i++) {
      const int m = first + step * T::BK + static_cast<int>(threadIdx.x) / RUNS + i * PASS;
      const int n = by_pixels.div(m), rest = m - n * by_pixels.d, p = by_q.div(rest), q = rest - p * by_q.d;
      UNROLL for (int j = 0; j < 4 / W; j++) {
        const int row = p * shape.stride + r[j], column = q * shape.stride + s[j];
        const bool ok = m < end && c[j] >= 0 && row >= 0 && row < shape.h && column >= 0 && column < shape.w;
        value[i][j] = {};
        if (ok) {
          const Offset at = Offset((n * shape.h + row) * shape.w + column) * shape.c + c[j];
          value[i][j] = load_pack<W>(image.source.x + at);
          inside |= 1u << (i * 4 + j);
        }
      }
    }
  }

  __device__ __forceinline__ void store(int, float (&tile)[T::BK][T::LDA]) {
    UNROLL for (int j = 0; j < 4 / W; j++) {
      const Affine<W> affine(image.source, image.channels, max(c[j], 0));
      UNROLL for (int i = 0; i < PASSES; i++) {
        value[i][j] = source_forward(affine, image.source.relu != 0, value[i][j]);
        if (!(inside >> (i * 4 + j) & 1)) value[i][j] = {};
      }
    }
    UNROLL for (int i = 0; i < PASSES; i++) {
      store_run<W>(tile[threadIdx.x / RUNS + i * PASS], threadIdx.x % RUNS * 4, value[i]);
    }
  }
};

// Operand b: tile columns are filters, depth is output pixels.
template <class T, int W>
struct AdjointColumns {
  static constexpr int RUNS = T::BN / 4;
  static_assert(T::BK * RUNS == T::THREADS, "one run of four per thread");

  const float* dy;  // [rows][filters]
  const int filters, column, first, end;
  Pack<W> value[4 / W];

  __device__ __forceinline__ AdjointColumns(const float* dy, int filters, int column0, int first, int end)
      : dy(dy), filters(filters), column(column0 + threadIdx.x % RUNS * 4), first(first), end(end) {}

  __device__ __forceinline__ void fetch(int step) {
    const int m = first + step * T::BK + static_cast<int>(threadIdx.x) / RUNS;
    UNROLL for (int j = 0; j < 4 / W; j++) {
      const int k = column + j * W;
      value[j] = {};
      if (m < end && k < filters) value[j] = load_pack<W>(dy + Offset(m) * filters + k);
    }
  }

  __device__ __forceinline__ void store(float (&tile)[T::BK][T::LDB]) {
    store_run<W>(tile[threadIdx.x / RUNS], threadIdx.x % RUNS * 4, value);
  }
};

template <class T, int W>
__device__ __forceinline__ void conv_backward_weight_body(float* dw, const Source<float>& x, const float* dy,
                                                          const ConvShape& shape, int slice_pixels, int add) {
  SHARED(float, memory, [T::MEMORY]);
  const int elements = shape.r * shape.s * shape.c, pixels = shape.n * shape.p() * shape.q();
  const int tiles = ceil_div(shape.k, T::BN);
  const int row0 = static_cast<int>(blockIdx.x) / tiles * T::BM, column0 = static_cast<int>(blockIdx.x) % tiles * T::BN;
  const int first = static_cast<int>(blockIdx.y) * slice_pixels, count = min(slice_pixels, pixels - first);
  float acc[T::TM][T::TN] = {};
  WindowColumns<T, W> a(x, shape, row0, first, first + count);
  AdjointColumns<T, W> b(dy, shape.k, column0, first, first + count);
  accumulate<T>(acc, memory, ceil_div(count, T::BK), a, b);
  float* out = dw + Offset(blockIdx.y) * shape.k * elements;
  UNROLL for (int j = 0; j < T::TN; j++) {
    const int k = column0 + tile_column<T>() + j;
    UNROLL for (int i = 0; i < T::TM; i += 4) {
      const int element = row0 + tile_row<T>(i);
      if (k < shape.k) {
        const float v[4] = {acc[i][j], acc[i + 1][j], acc[i + 2][j], acc[i + 3][j]};
        float* at = out + Offset(k) * elements + element;
        UNROLL for (int e = 0; e < 4; e += W) {
          if (element + e < elements) {
            Pack<W> u;
            UNROLL for (int f = 0; f < W; f++) u.v[f] = v[e + f];
            if (add) {
              const Pack<W> old = load_pack<W>(at + e);
              UNROLL for (int f = 0; f < W; f++) u.v[f] += old.v[f];
            }
            store_pack<W>(at + e, u);
          }
        }
      }
    }
  }
}

// dw[slice,k,r,s,c] (+)= sum over the slice's pixels (n,p,q) of dy[n,p,q,k] · x[n, p·stride - pad + r, q·stride - pad + s, c]
// dw [slices][K,R,S,C]; x [N,H,W,C] a source; dy [N,P,Q,K]
// grid: (ceil(RSC/BM)·ceil(K/BN), slices) blocks of the tile's threads; a block owns BM filter elements x BN filters of one slice
// slices = ceil(NPQ/slice_pixels); NPQ, NHW, RSC < 2^31 - 256; _large and _small: C % 4 == 0, K % 4 == 0, pointers 16-byte aligned
#define CONV_BACKWARD_WEIGHT_ARGS \
  float* dw, Source<float> x, const float* __restrict__ dy, ConvShape shape, int slice_pixels, int add

extern "C" __global__ void __launch_bounds__(256, 2) conv_backward_weight_large(CONV_BACKWARD_WEIGHT_ARGS) {
  conv_backward_weight_body<LargeTile, 4>(dw, x, dy, shape, slice_pixels, add);
}
extern "C" __global__ void __launch_bounds__(128, 4) conv_backward_weight_small(CONV_BACKWARD_WEIGHT_ARGS) {
  conv_backward_weight_body<SmallTile, 4>(dw, x, dy, shape, slice_pixels, add);
}
extern "C" __global__ void __launch_bounds__(128, 3) conv_backward_weight_odd(CONV_BACKWARD_WEIGHT_ARGS) {
  conv_backward_weight_body<SmallTile, 1>(dw, x, dy, shape, slice_pixels, add);
}

// out[i] (+)= sum over the slices, in their order, of partial[slice][i]
// out [len]; partial [slices][len]
// grid: any number of blocks of 256; a thread owns every (grid·256)-th element
// len any
extern "C" __global__ void __launch_bounds__(256) sum_slices(float* out, const float* __restrict__ partial,
                                                             long long len, int slices, int add) {
  for (Offset i = thread_index(); i < len; i += thread_count()) {
    float sum = partial[i];
    for (int slice = 1; slice < slices; slice++) sum += partial[slice * len + i];
    out[i] = add ? out[i] + sum : sum;
  }
}
