// Batch-norm as a pending affine map: per-channel sums of a stored tensor in tiles of rows, and the small kernels that
// finish them into A, C, M (forward), B, D (tangent and adjoint), dgamma, dbeta and running statistics. The normalisation
// itself happens where the tensor is read (source.cuh). x̂ = (x - mean)·rstd.
// All sums are merged in one fixed order: rows of a lane, lanes of a tile, tiles of a lane, lanes.
#include "shapes.cuh"
#include "source.cuh"

// Blocks of both kinds of kernel: 32 channels x 8 lanes.
constexpr int LANES = 8;

// Count, mean and sum of squared deviations of some values: merging two never subtracts large numbers, as
// sum(x²) - sum(x)² would (Chan, Golub, LeVeque 1979).
struct Moments {
  float count, mean, m2;

  __device__ __forceinline__ void merge(float other_count, float other_mean, float other_m2) {
    if (other_count > 0.0f) {
      const float total = count + other_count, share = other_count / total, delta = other_mean - mean;
      mean += delta * share;
      m2 += other_m2 + delta * delta * (count * share);
      count = total;
    }
  }
};

// Merges the lanes of a block into lane 0, in order. All threads call it.
__device__ __forceinline__ Moments merge_lanes(Moments own) {
  SHARED(float, parts, [LANES][3][32]);
  parts[threadIdx.y][0][threadIdx.x] = own.count;
  parts[threadIdx.y][1][threadIdx.x] = own.mean;
  parts[threadIdx.y][2][threadIdx.x] = own.m2;
  __syncthreads();
  for (int lane = 1; lane < LANES; lane++) {
    own.merge(parts[lane][0][threadIdx.x], parts[lane][1][threadIdx.x], parts[lane][2][threadIdx.x]);
  }
  return own;  // of use to lane 0 only
}

// Adds two sums over the lanes of a block, in order. All threads call it; every lane receives the result.
__device__ __forceinline__ float2 add_lanes(float2 own) {
  SHARED(float, parts, [LANES][2][32]);
  parts[threadIdx.y][0][threadIdx.x] = own.x;
  parts[threadIdx.y][1][threadIdx.x] = own.y;
  __syncthreads();
  float2 sum = make_float2(0.0f, 0.0f);
  for (int lane = 0; lane < LANES; lane++) {
    sum.x += parts[lane][0][threadIdx.x];
    sum.y += parts[lane][1][threadIdx.x];
  }
  return sum;
}

__device__ __forceinline__ int block_channel() { return blockIdx.x * 32 + threadIdx.x; }

// partials[tile] = (mean, sum (u - mean)²) of each channel over the tile's rows
// partials [tiles][2][C]; u [rows][C]
// grid: (ceil(C/32), tiles) blocks of 32 x 8; a block owns 32 channels of one tile, a thread every 8th row of a channel
// tiles = ceil(rows/tile_rows) <= 65535; rows < 2^31 - 256
extern "C" __global__ void __launch_bounds__(256) moments_partial(float* __restrict__ partials,
                                                                  const float* __restrict__ u, Rows shape,
                                                                  int tile_rows) {
  constexpr int BATCH = 8;  // rows in flight per thread
  const int c = block_channel();
  const int begin = blockIdx.y * tile_rows, end = begin + min(tile_rows, shape.rows - begin);
  Moments sum = {0.0f, 0.0f, 0.0f};
  if (c < shape.channels) {
    for (int row = begin + threadIdx.y; row < end; row += LANES * BATCH) {
      float v[BATCH], mean = 0.0f, m2 = 0.0f;
      int count = 0;
      UNROLL for (int i = 0; i < BATCH; i++) {
        const bool exists = row + i * LANES < end;
        v[i] = exists ? u[Offset(row + i * LANES) * shape.channels + c] : 0.0f;
        count += exists;
      }
      UNROLL for (int i = 0; i < BATCH; i++) mean += v[i];
      mean /= count;
      UNROLL for (int i = 0; i < BATCH; i++) {
        const float deviation = i < count ? v[i] - mean : 0.0f;
        m2 += deviation * deviation;
      }
      sum.merge(count, mean, m2);
    }
  }
  sum = merge_lanes(sum);
  if (threadIdx.y == 0 && c < shape.channels) {
    float* out = partials + Offset(blockIdx.y) * 2 * shape.channels + c;
    out[0] = sum.mean;
    out[shape.channels] = sum.m2;
  }
}

// partials[tile] = (sum u, sum u·x̂) of each channel over the tile's rows; sum u·x̂ is left 0 without x
// partials [tiles][2][C]; u, x [rows][C], x null for none; statistics [2][C] mean, rstd of x
// grid: (ceil(C/32), tiles) blocks of 32 x 8; a block owns 32 channels of one tile, a thread every 8th row of a channel
// tiles = ceil(rows/tile_rows) <= 65535; rows < 2^31 - 256
extern "C" __global__ void __launch_bounds__(256) dot_partial(float* __restrict__ partials,
                                                              const float* __restrict__ u,
                                                              const float* __restrict__ x,
                                                              const float* __restrict__ statistics, Rows shape,
                                                              int tile_rows) {
  const int c = block_channel();
  const int begin = blockIdx.y * tile_rows, end = begin + min(tile_rows, shape.rows - begin);
  float2 sum = make_float2(0.0f, 0.0f);
  if (c < shape.channels) {
    const float mean = x != nullptr ? statistics[c] : 0.0f, rstd = x != nullptr ? statistics[shape.channels + c] : 0.0f;
    for (int row = begin + threadIdx.y; row < end; row += LANES) {
      const Offset at = Offset(row) * shape.channels + c;
      const float value = u[at];
      sum.x += value;
      if (x != nullptr) sum.y = __fmaf_rn(value, (x[at] - mean) * rstd, sum.y);
    }
  }
  sum = add_lanes(sum);
  if (threadIdx.y == 0 && c < shape.channels) {
    float* out = partials + Offset(blockIdx.y) * 2 * shape.channels + c;
    out[0] = sum.x;
    out[shape.channels] = sum.y;
  }
}

// The sums of a channel over all tiles.
__device__ __forceinline__ float2 add_tiles(const float* partials, int channels, int c, int tiles) {
  float2 sum = make_float2(0.0f, 0.0f);
  if (c < channels) {
    for (int tile = threadIdx.y; tile < tiles; tile += LANES) {
      sum.x += partials[(Offset(tile) * 2) * channels + c];
      sum.y += partials[(Offset(tile) * 2 + 1) * channels + c];
    }
  }
  return add_lanes(sum);
}

// out[c] (+)= the first of dot_partial's sums over all tiles
// out [C]; partials [tiles][2][C]
// grid: ceil(C/32) blocks of 32 x 8; a block owns 32 channels
// any number of tiles
extern "C" __global__ void __launch_bounds__(256) column_sums(float* out, const float* __restrict__ partials,
                                                              int channels, int tiles, int add) {
  const int c = block_channel();
  const float sum = add_tiles(partials, channels, c, tiles).x;
  if (threadIdx.y == 0 && c < channels) out[c] = add ? out[c] + sum : sum;
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
// statistics [2][C]; affine [3][C]; running_*, gamma, beta [C]; partials [ceil(rows/tile_rows)][2][C]
// grid: ceil(C/32) blocks of 32 x 8; a block owns 32 channels
// rows >= 1
extern "C" __global__ void __launch_bounds__(256)
    norm_forward_batch(float* __restrict__ statistics, float* __restrict__ affine, float* __restrict__ running_mean,
                       float* __restrict__ running_var, const float* __restrict__ partials,
                       const float* __restrict__ gamma, const float* __restrict__ beta, Rows shape, int tile_rows,
                       float eps, float momentum, int update) {
  const int c = block_channel(), channels = shape.channels;
  Moments sum = {0.0f, 0.0f, 0.0f};
  if (c < channels) {
    for (int tile = threadIdx.y; tile < ceil_div(shape.rows, tile_rows); tile += LANES) {
      const int count = min(tile_rows, shape.rows - tile * tile_rows);
      sum.merge(count, partials[(Offset(tile) * 2) * channels + c], partials[(Offset(tile) * 2 + 1) * channels + c]);
    }
  }
  sum = merge_lanes(sum);
  if (threadIdx.y == 0 && c < channels) {
    set_affine(statistics, affine, sum.mean, sum.m2 / shape.rows, gamma[c], beta[c], eps, channels, c);
    if (update) {
      const float unbiased = sum.m2 / max(shape.rows - 1, 1);
      running_mean[c] += momentum * (sum.mean - running_mean[c]);
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
// slope, statistics [2][C]; partials [ceil(rows/tile_rows)][2][C]; affine [3][C]; tgamma, tbeta [C]
// grid: ceil(C/32) blocks of 32 x 8; a block owns 32 channels
// rows >= 1
extern "C" __global__ void __launch_bounds__(256)
    norm_tangent(float* __restrict__ slope, const float* __restrict__ partials, const float* __restrict__ statistics,
                 const float* __restrict__ affine, const float* __restrict__ tgamma, const float* __restrict__ tbeta,
                 Rows shape, int tile_rows, int batch) {
  const int c = block_channel(), channels = shape.channels;
  const float2 sum = add_tiles(partials, channels, c, batch ? ceil_div(shape.rows, tile_rows) : 0);
  if (threadIdx.y == 0 && c < channels) {
    const float rstd = statistics[channels + c], scale = affine[c];
    slope[c] = (tgamma[c] - scale * (sum.y / shape.rows)) * rstd;
    slope[channels + c] = tbeta[c] - scale * (sum.x / shape.rows);
  }
}

// dgamma (+)= sum d·x̂, dbeta (+)= sum d; B = -A·rstd·(sum d·x̂)/rows, D = -A·(sum d)/rows, both 0 unless batch
// slope [2][C]; dgamma, dbeta [C]; partials [ceil(rows/tile_rows)][2][C]; statistics [2][C]; affine [3][C]
// grid: ceil(C/32) blocks of 32 x 8; a block owns 32 channels
// rows >= 1
extern "C" __global__ void __launch_bounds__(256)
    norm_backward(float* __restrict__ slope, float* __restrict__ dgamma, float* __restrict__ dbeta,
                  const float* __restrict__ partials, const float* __restrict__ statistics,
                  const float* __restrict__ affine, Rows shape, int tile_rows, int batch, int add) {
  const int c = block_channel(), channels = shape.channels;
  const float2 sum = add_tiles(partials, channels, c, ceil_div(shape.rows, tile_rows));
  if (threadIdx.y == 0 && c < channels) {
    const float rstd = statistics[channels + c], scale = affine[c];
    slope[c] = batch ? -scale * rstd * (sum.y / shape.rows) : 0.0f;
    slope[channels + c] = batch ? -scale * (sum.x / shape.rows) : 0.0f;
    dgamma[c] = add ? dgamma[c] + sum.y : sum.y;
    dbeta[c] = add ? dbeta[c] + sum.x : sum.x;
  }
}

// out[n] += sum over the sample's rows and channels of d·(tgamma·x̂ + tbeta)
// out [samples]; x, d [rows][C]; statistics [2][C] mean, rstd; tgamma, tbeta [C]
// grid: samples blocks of 256; a block owns one sample of sample_rows rows
// sample_rows·C < 2^31 - 256
extern "C" __global__ void __launch_bounds__(256)
    norm_contract(float* out, const float* __restrict__ x, const float* __restrict__ d,
                  const float* __restrict__ statistics, const float* __restrict__ tgamma,
                  const float* __restrict__ tbeta, int sample_rows, int channels) {
  const Divider by_channels(channels);
  const int len = sample_rows * channels;
  const Offset start = Offset(blockIdx.x) * len;
  float sum = 0.0f;
  for (int i = threadIdx.x; i < len; i += blockDim.x) {
    const int c = by_channels.mod(i);
    const float normal = (x[start + i] - statistics[c]) * statistics[channels + c];
    sum = __fmaf_rn(d[start + i], __fmaf_rn(tgamma[c], normal, tbeta[c]), sum);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) out[blockIdx.x] += sum;
}
