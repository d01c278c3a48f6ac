// Per-sample weight gradients of a convolution, contracted with a direction and never stored:
// <dy_i, conv(x_i, tw) + tbias> = <gradient of sample i's loss in (w, bias), (tw, tbias)>.
#include "conv_tile.cuh"

template <class T, int W>
__device__ __forceinline__ void conv_contract_body(float* partial, const Source& x, const float* dy, const float* tw,
                                                   const float* tbias, const ConvShape& shape) {
  SHARED(float, as, [2][T::BK][T::LDA]);
  SHARED(float, bs, [2][T::BK][T::LDB]);
  const int rows = shape.n * shape.p() * shape.q(), depth = shape.r * shape.s * shape.c;
  const int tiles = ceil_div(shape.k, T::BN), tile = static_cast<int>(blockIdx.x) % tiles;
  const int m0 = static_cast<int>(blockIdx.x) / tiles * T::BM, n0 = tile * T::BN;
  float acc[T::TM][T::TN] = {};
  PixelRows<T, W, Form::Forward, 1> a(Image{x, {}, shape.h, shape.w, shape.c}, shape.r, shape.s);
  window_origins(a, shape, m0);
  FilterRows<T, W> b(tw, n0, shape.k, depth);
  accumulate<T>(acc, as, bs, ceil_div(depth, T::BK), a, b);
  const int column = n0 + tile_column<T>();
  UNROLL for (int i = 0; i < T::TM; i++) {
    const int m = m0 + tile_row<T>(i);
    float sum = 0.0f;
    UNROLL for (int j = 0; j < T::TN; j++) {
      const int k = column + j;
      if (m < rows && k < shape.k) {
        const float value = acc[i][j] + (tbias != nullptr ? tbias[k] : 0.0f);
        sum = __fmaf_rn(value, dy[Offset(m) * shape.k + k], sum);
      }
    }
    // A row of the tile lies in T::COLUMNS neighbouring lanes.
    UNROLL for (int offset = T::COLUMNS / 2; offset > 0; offset >>= 1) {
      sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    }
    if (threadIdx.x % T::COLUMNS == 0 && m < rows) partial[Offset(tile) * rows + m] = sum;
  }
}

// partial[t][m] = sum over filter tile t of dy[m,k] · (conv(x, tw)[m,k] + tbias[k])
// partial [ceil(K/BN)][N·P·Q]; x [N,H,W,C] a source; dy [N,P,Q,K]; tw [K,R,S,C]; tbias [K] or null
// grid: ceil(NPQ/BM)·ceil(K/BN) blocks of the tile's threads; a block owns BM pixels x BN filters
// NPQ, NHW, RSC < 2^31 - 256; _large and _small: C % 4 == 0, x, its affine and tw 16-byte aligned
#define CONV_CONTRACT_ARGS                                                                    \
  float* partial, Source x, const float* __restrict__ dy, const float* __restrict__ tw, \
      const float* __restrict__ tbias, ConvShape shape

extern "C" __global__ void __launch_bounds__(256, 2) conv_contract_large(CONV_CONTRACT_ARGS) {
  conv_contract_body<LargeTile, 4>(partial, x, dy, tw, tbias, shape);
}
extern "C" __global__ void __launch_bounds__(128, 4) conv_contract_small(CONV_CONTRACT_ARGS) {
  conv_contract_body<SmallTile, 4>(partial, x, dy, tw, tbias, shape);
}
extern "C" __global__ void __launch_bounds__(128, 4) conv_contract_odd(CONV_CONTRACT_ARGS) {
  conv_contract_body<SmallTile, 1>(partial, x, dy, tw, tbias, shape);
}

// out[n] += sum over tiles and the sample's pixels of partial[tile][n·pixels + pixel]
// out [samples]; partial [tiles][samples·pixels]
// grid: samples blocks of 256; a block owns one sample
// samples·pixels < 2^31 - 256
extern "C" __global__ void __launch_bounds__(256) sum_samples(float* out, const float* __restrict__ partial,
                                                              int samples, int pixels, int tiles) {
  float sum = 0.0f;
  for (int tile = 0; tile < tiles; tile++) {
    const float* row = partial + (Offset(tile) * samples + blockIdx.x) * pixels;
    for (int i = threadIdx.x; i < pixels; i += blockDim.x) sum += row[i];
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) out[blockIdx.x] += sum;
}
