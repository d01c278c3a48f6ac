// Batch-norm as a pending affine map: the small kernels that finish per-channel sums (epilogue.cuh) into A, C, M (forward),
// B, D (tangent and adjoint), dgamma, dbeta and running statistics. The normalisation itself happens where the tensor is
// read (source.cuh). x̂ = (x - mean)·rstd.
// All sums are merged in one fixed order: rows of a lane, lanes of a tile
// (both in epilogue.cuh), tiles of a lane, lanes in a tree.
#include "epilogue.cuh"
#include "shapes.cuh"

// partials[tile] = the sums of the stored values u of each channel over a tile's rows
// partials [ceil(rows/128)][2][C] and what they are sums of in `sums`; u [rows][C]
// grid: (ceil(rows/128), ceil(C/(8·W))) blocks of 256; a block owns 128 rows x 8·W channels; W = 16 bytes (_wide) or 1 (_odd)
// rows < 2^31 - 256; _wide: C a multiple of W, all pointers 16-byte aligned. For writers that cannot end in sums themselves.
template <class T, int W>
__device__ __forceinline__ void channel_sums_body(const T* u, const Sums<T>& sums, const Rows& shape) {
  const Epilogue<T> epilogue = {{}, sums, 0, 0};
  finish_rows_of<T, W, 1>(static_cast<T*>(nullptr), epilogue, shape.rows, shape.channels,
                          [&](int, Offset at, int) { return load_pack<W>(u + at); });
}

#define CHANNEL_SUMS_ARGS(T) const T *u, Sums<T> sums, Rows shape
extern "C" __global__ void __launch_bounds__(256, 2) channel_sums_wide(CHANNEL_SUMS_ARGS(float)) {
  channel_sums_body<float, RUN>(u, sums, shape);
}
extern "C" __global__ void __launch_bounds__(256, 2) channel_sums_wide_bf16(CHANNEL_SUMS_ARGS(__nv_bfloat16)) {
  channel_sums_body<__nv_bfloat16, RUN>(u, sums, shape);
}
extern "C" __global__ void __launch_bounds__(256) channel_sums_odd(CHANNEL_SUMS_ARGS(float)) {
  channel_sums_body<float, 1>(u, sums, shape);
}
extern "C" __global__ void __launch_bounds__(256) channel_sums_odd_bf16(CHANNEL_SUMS_ARGS(__nv_bfloat16)) {
  channel_sums_body<__nv_bfloat16, 1>(u, sums, shape);
}

// Sums of a channel over some rows. Merging moments never subtracts large numbers, as sum(u²) - sum(u)² would (Chan, Golub,
// LeVeque 1979).
struct ChannelSums {
  float first, second;  // mean and m2, or sum u and sum u·x̂

  // Merges another's mean and m2 into those of `seen` values; `share` of the merged count is the other's.
  __device__ __forceinline__ void merge_moments(float mean, float m2, float seen, float share) {
    const float delta = mean - first;
    first += delta * share;
    second += m2 + delta * delta * (seen * share);
  }
};

// Blocks of the kernels that merge tiles: 8 channels (a 32-byte read) x 128 lanes, each lane with eight reads in flight.
constexpr int CHANNELS = 8, LANES = 128, BATCH = 8;

__device__ __forceinline__ int block_channel() { return blockIdx.x * CHANNELS + threadIdx.x; }

// The two sums of a channel over all tiles, for lane 0 (others: unspecified). KIND: what the partials are. All threads
// call it.
template <int KIND>
__device__ __forceinline__ float2 merge_tiles(const float* partials, const Rows& shape, int c, int tiles) {
  SHARED(float, parts, [3][LANES][CHANNELS]);
  const int lane = threadIdx.y, channels = shape.channels;
  ChannelSums sums = {};
  float seen = 0.0f;
  for (int first = lane; first < tiles; first += LANES * BATCH) {
    float2 part[BATCH];
    UNROLL for (int j = 0; j < BATCH; j++) {
      const int tile = first + j * LANES;
      const bool exists = tile < tiles && c < channels;
      const float* at = partials + (Offset(tile) * 2) * channels + c;
      part[j] = exists ? make_float2(at[0], at[channels]) : make_float2(0.0f, 0.0f);
    }
    UNROLL for (int j = 0; j < BATCH; j++) {
      const int tile = first + j * LANES;
      if (tile < tiles) {
        if constexpr (KIND == SUMS_MOMENTS) {
          const float count = min(TILE_ROWS, shape.rows - tile * TILE_ROWS);
          sums.merge_moments(part[j].x, part[j].y, seen, count / (seen + count));
          seen += count;
        } else {
          sums.first += part[j].x, sums.second += part[j].y;
        }
      }
    }
  }
  for (int half = LANES / 2; half > 0; half /= 2) {
    if (lane >= half && lane < 2 * half) {
      parts[0][lane][threadIdx.x] = sums.first;
      parts[1][lane][threadIdx.x] = sums.second;
      parts[2][lane][threadIdx.x] = seen;
    }
    __syncthreads();
    if (lane < half) {
      const float first = parts[0][lane + half][threadIdx.x], second = parts[1][lane + half][threadIdx.x];
      const float count = parts[2][lane + half][threadIdx.x];
      if constexpr (KIND == SUMS_MOMENTS) {
        if (count > 0.0f) sums.merge_moments(first, second, seen, count / (seen + count));
        seen += count;
      } else {
        sums.first += first, sums.second += second;
      }
    }
  }
  return make_float2(sums.first, sums.second);
}

// out[c] (+)= the first of the sums over all tiles
// out [C]; partials [ceil(rows/128)][2][C] of SUMS_DOT
// grid: ceil(C/8) blocks of 8 x 128; a block owns 8 channels
// any number of tiles
extern "C" __global__ void __launch_bounds__(1024) column_sums(float* out, const float* __restrict__ partials, Rows shape,
                                                               int add) {
  const int c = block_channel();
  const float sum = merge_tiles<SUMS_DOT>(partials, shape, c, ceil_div(shape.rows, TILE_ROWS)).x;
  if (threadIdx.y == 0 && c < shape.channels) out[c] = add ? out[c] + sum : sum;
}

// A = gamma·rstd, C = beta, M = mean, and the statistics they come from.
__device__ __forceinline__ void set_affine(float* statistics, float* affine, float mean, float variance, float gamma,
                                           float beta, float eps, int channels, int c) {
  const float rstd = 1.0f / sqrtf(variance + eps);
  statistics[c] = mean;
  statistics[channels + c] = rstd;
  affine[c] = gamma * rstd;
  affine[channels + c] = beta;
  affine[2 * channels + c] = mean;
}

// mean, rstd = 1/sqrt(biased variance + eps), A = gamma·rstd, C = beta, M = mean from the batch;
// with update: running += momentum·(batch - running), the variance unbiased: m2/max(rows - 1, 1)
// statistics [2][C]; affine [3][C]; running_*, gamma, beta [C]; partials [ceil(rows/128)][2][C]
// grid: ceil(C/8) blocks of 8 x 128; a block owns 8 channels
// rows >= 1
extern "C" __global__ void __launch_bounds__(1024)
    norm_forward_batch(float* __restrict__ statistics, float* __restrict__ affine, float* __restrict__ running_mean,
                       float* __restrict__ running_var, const float* __restrict__ partials,
                       const float* __restrict__ gamma, const float* __restrict__ beta, Rows shape,
                       float eps, float momentum, int update) {
  const int c = block_channel(), channels = shape.channels;
  const float2 sum = merge_tiles<SUMS_MOMENTS>(partials, shape, c, ceil_div(shape.rows, TILE_ROWS));
  if (threadIdx.y == 0 && c < channels) {
    set_affine(statistics, affine, sum.x, sum.y / shape.rows, gamma[c], beta[c], eps, channels, c);
    if (update) {
      const float unbiased = sum.y / max(shape.rows - 1, 1);
      running_mean[c] += momentum * (sum.x - running_mean[c]);
      running_var[c] += momentum * (unbiased - running_var[c]);
    }
  }
}

// mean, rstd, A, C, M from the running statistics
// statistics [2][C]; affine [3][C]; running_mean, running_var, gamma, beta [C]
// grid: ceil(C/256) blocks of 256; a thread owns one channel
// C any
extern "C" __global__ void __launch_bounds__(256)
    norm_forward_running(float* __restrict__ statistics, float* __restrict__ affine,
                         const float* __restrict__ running_mean, const float* __restrict__ running_var,
                         const float* __restrict__ gamma, const float* __restrict__ beta, int channels, float eps) {
  const int c = blockIdx.x * blockDim.x + threadIdx.x;
  if (c < channels) {
    set_affine(statistics, affine, running_mean[c], running_var[c], gamma[c], beta[c], eps, channels, c);
  }
}

// B = (tgamma - gamma·rstd·mean(tx·x̂))·rstd, D = tbeta - A·mean(tx); both means 0 unless batch
// slope, statistics [2][C]; partials [ceil(rows/128)][2][C]; affine [3][C]; tgamma, tbeta [C]
// grid: ceil(C/8) blocks of 8 x 128; a block owns 8 channels
// rows >= 1
extern "C" __global__ void __launch_bounds__(1024)
    norm_tangent(float* __restrict__ slope, const float* __restrict__ partials, const float* __restrict__ statistics,
                 const float* __restrict__ affine, const float* __restrict__ tgamma, const float* __restrict__ tbeta,
                 Rows shape, int batch) {
  const int c = block_channel(), channels = shape.channels;
  const float2 sum = merge_tiles<SUMS_DOT>(partials, shape, c, batch ? ceil_div(shape.rows, TILE_ROWS) : 0);
  if (threadIdx.y == 0 && c < channels) {
    const float rstd = statistics[channels + c], scale = affine[c];
    slope[c] = (tgamma[c] - scale * (sum.y / shape.rows)) * rstd;
    slope[channels + c] = tbeta[c] - scale * (sum.x / shape.rows);
  }
}

// dgamma (+)= sum d·x̂, dbeta (+)= sum d; B = -A·rstd·(sum d·x̂)/rows, D = -A·(sum d)/rows, both 0 unless batch
// slope [2][C]; dgamma, dbeta [C]; partials [ceil(rows/128)][2][C]; statistics [2][C]; affine [3][C]
// grid: ceil(C/8) blocks of 8 x 128; a block owns 8 channels
// rows >= 1
extern "C" __global__ void __launch_bounds__(1024)
    norm_backward(float* __restrict__ slope, float* __restrict__ dgamma, float* __restrict__ dbeta,
                  const float* __restrict__ partials, const float* __restrict__ statistics,
                  const float* __restrict__ affine, Rows shape, int batch, int add) {
  const int c = block_channel(), channels = shape.channels;
  const float2 sum = merge_tiles<SUMS_DOT>(partials, shape, c, ceil_div(shape.rows, TILE_ROWS));
  if (threadIdx.y == 0 && c < channels) {
    const float rstd = statistics[channels + c], scale = affine[c];
    slope[c] = batch ? -scale * rstd * (sum.y / shape.rows) : 0.0f;
    slope[channels + c] = batch ? -scale * (sum.x / shape.rows) : 0.0f;
    dgamma[c] = add ? dgamma[c] + sum.y : sum.y;
    dbeta[c] = add ? dbeta[c] + sum.x : sum.x;
  }
}

template <class T>
__device__ __forceinline__ void norm_contract_body(float* out, const T* x, const T* d, const float* statistics,
                                                   const float* tgamma, const float* tbeta, int sample_rows,
                                                   int channels) {
  const Divider by_channels(channels);
  const int len = sample_rows * channels;
  const Offset start = Offset(blockIdx.x) * len;
  float sum = 0.0f;
  for (int i = threadIdx.x; i < len; i += blockDim.x) {
    const int c = by_channels.mod(i);
    const float normal = (widened(x[start + i]) - statistics[c]) * statistics[channels + c];
    sum = __fmaf_rn(widened(d[start + i]), __fmaf_rn(tgamma[c], normal, tbeta[c]), sum);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) out[blockIdx.x] += sum;
}

// out[n] += sum over the sample's rows and channels of d·(tgamma·x̂ + tbeta)
// out [samples]; x, d [rows][C]; statistics [2][C] mean, rstd; tgamma, tbeta [C]
// grid: samples blocks of 256; a block owns one sample of sample_rows rows
// sample_rows·C < 2^31 - 256
#define NORM_CONTRACT_ARGS(T)                                                                                     \
  float *out, const T *__restrict__ x, const T *__restrict__ d, const float *__restrict__ statistics,              \
      const float *__restrict__ tgamma, const float *__restrict__ tbeta, int sample_rows, int channels
extern "C" __global__ void __launch_bounds__(256) norm_contract(NORM_CONTRACT_ARGS(float)) {
  norm_contract_body(out, x, d, statistics, tgamma, tbeta, sample_rows, channels);
}
extern "C" __global__ void __launch_bounds__(256) norm_contract_bf16(NORM_CONTRACT_ARGS(__nv_bfloat16)) {
  norm_contract_body(out, x, d, statistics, tgamma, tbeta, sample_rows, channels);
}
