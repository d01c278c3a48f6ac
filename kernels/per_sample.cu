// Per-sample weight gradients of a convolution, contracted with a direction and never stored:
// <dy_i, conv(x_i, tw) + tbias> = <gradient of sample i's loss in (w, bias), (tw, tbias)>.
#include "conv_tile.cuh"
#include "mma_tile.cuh"

template <class T, int W>
__device__ __forceinline__ void conv_contract_body(float* partial, const Source<float>& x, const float* dy, const float* tw,
                                                   const float* tbias, const ConvShape& shape) {
  SHARED(float, memory, [T::MEMORY]);
  const int rows = shape.n * shape.p() * shape.q(), depth = shape.r * shape.s * shape.c;
  const int tiles = ceil_div(shape.k, T::BN), tile = static_cast<int>(blockIdx.x) % tiles;
  const int m0 = static_cast<int>(blockIdx.x) / tiles * T::BM, n0 = tile * T::BN;
  float acc[T::TM][T::TN] = {};
  PixelRows<T, W, Form::Forward, 1> a(Image<float>{x, {}, shape.h, shape.w, shape.c}, shape.r, shape.s);
  window_origins(a, shape, m0);
  FilterRows<T, W> b(tw, n0, shape.k, depth);
  accumulate<T>(acc, memory, ceil_div(depth, T::BK), a, b);
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
  float* partial, Source<float> x, const float* __restrict__ dy, const float* __restrict__ tw, \
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

// ---- on tensor cores

template <class T, class Tile, bool VECTOR>
__device__ __forceinline__ void conv_contract_mma(unsigned char* memory, float* partial, const Source<T>& x, const T* dy,
                                                  const T* tw, const float* tbias, const ConvShape& shape) {
  const int rows = shape.n * shape.p() * shape.q();
  const Place<Tile> at(shape.k);
  float acc[Tile::MI][Tile::NI][4] = {};
  PixelOperand<T, Tile, VECTOR, Form::Forward, 1> a(Image<T>{x, {}, shape.h, shape.w, shape.c}, shape.r, shape.s);
  window_origins(a, shape, at.m0);
  FilterOperand<T, Tile> b(tw, at.n0, shape.k, a.depth);
  mma_accumulate<T, Tile, false>(acc, memory, mma_steps<T>(a.depth), a, b);
  float* product = reinterpret_cast<float*>(memory);
  mma_lay_out<Tile>(product, acc);
  const int lane = threadIdx.x & 31;
  for (int row = threadIdx.x / 32; row < min(Tile::BM, rows - at.m0); row += Tile::THREADS / 32) {
    float sum = 0.0f;
    for (int column = lane; column < Tile::BN; column += 32) {
      const int k = at.n0 + column;
      if (k < shape.k) {
        const float value = product[row * Tile::LDC + column] + (tbias != nullptr ? tbias[k] : 0.0f);
        sum = __fmaf_rn(value, widened(dy[Offset(at.m0 + row) * shape.k + k]), sum);
      }
    }
    sum = warp_sum(sum);
    if (lane == 0) partial[Offset(at.n0 / Tile::BN) * rows + at.m0 + row] = sum;
  }
}

// partial[t][m] = sum over filter tile t of dy[m,k] · (conv(x, tw)[m,k] + tbias[k])
// partial [ceil(K/BN)][N·P·Q]; x [N,H,W,C] a source; dy [N,P,Q,K]; tw [K][pitch] in rows by filters.cu; tbias [K] or null
// grid: ceil(NPQ/128)·ceil(K/BN) blocks of the tile's threads, MEMORY bytes of dynamic shared memory; a block owns 128 pixels x BN filters
// NPQ, NHW, RSC < 2^31 - 256; tw 16-byte aligned; _large and _small: C in whole chunks, x and its affine 16-byte aligned
#define CONV_CONTRACT_MMA_ARGS(T)                                                                        \
  float *partial, Source<T> x, const T *__restrict__ dy, const T *__restrict__ tw, const float *__restrict__ tbias, \
      ConvShape shape

extern "C" __global__ void __launch_bounds__(256, 2) conv_contract_large_tf32(CONV_CONTRACT_MMA_ARGS(float)) {
  DYN_SMEM(memory);
  conv_contract_mma<float, LargeMma, true>(memory, partial, x, dy, tw, tbias, shape);
}
extern "C" __global__ void __launch_bounds__(256, 2) conv_contract_large_bf16(CONV_CONTRACT_MMA_ARGS(__nv_bfloat16)) {
  DYN_SMEM(memory);
  conv_contract_mma<__nv_bfloat16, LargeMma, true>(memory, partial, x, dy, tw, tbias, shape);
}
extern "C" __global__ void __launch_bounds__(128, 3) conv_contract_small_tf32(CONV_CONTRACT_MMA_ARGS(float)) {
  DYN_SMEM(memory);
  conv_contract_mma<float, SmallMma, true>(memory, partial, x, dy, tw, tbias, shape);
}
extern "C" __global__ void __launch_bounds__(128, 3) conv_contract_small_bf16(CONV_CONTRACT_MMA_ARGS(__nv_bfloat16)) {
  DYN_SMEM(memory);
  conv_contract_mma<__nv_bfloat16, SmallMma, true>(memory, partial, x, dy, tw, tbias, shape);
}
extern "C" __global__ void __launch_bounds__(128, 2) conv_contract_odd_tf32(CONV_CONTRACT_MMA_ARGS(float)) {
  DYN_SMEM(memory);
  conv_contract_mma<float, SmallMma, false>(memory, partial, x, dy, tw, tbias, shape);
}
extern "C" __global__ void __launch_bounds__(128, 2) conv_contract_odd_bf16(CONV_CONTRACT_MMA_ARGS(__nv_bfloat16)) {
  DYN_SMEM(memory);
  conv_contract_mma<__nv_bfloat16, SmallMma, false>(memory, partial, x, dy, tw, tbias, shape);
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
