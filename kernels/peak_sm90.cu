// How fast Hopper's tensor cores are where nothing holds them up, as kernels/peak.cu: operands stay in shared memory,
// accumulators in registers. What mma.sync reaches there is well below what wgmma does.
#include "peak.cuh"

// out[thread] = sum of its accumulators after rounds · 8 products m64n128k16 of its warpgroup
// out [grid · 256]
// grid: any number of blocks of 256, 48 KB of DYN_SMEM: 64 columns' worth of depth for two left operands of each
// warpgroup [64][64] and one right operand [128][64], under the 128-byte swizzle (which permutes random values)
extern "C" __global__ void __launch_bounds__(256, 1) peak_wgmma(float* __restrict__ out, int rounds) {
  constexpr int CHAINS = 2, DEPTH = 64, LEFT = 64 * DEPTH * 2, WORDS = (4 * LEFT + 128 * DEPTH * 2) / 4;
  DYN_SMEM_SWIZZLED(smem);
  uint32_t* words = reinterpret_cast<uint32_t*>(smem);
  for (int i = threadIdx.x; i < WORDS; i += 256) words[i] = seed_bf16(blockIdx.x * WORDS + i);
  fence_proxy_async();
  __syncthreads();
  const unsigned char* left = smem + threadIdx.x / 128 * CHAINS * LEFT;
  const unsigned char* right = smem + 4 * LEFT;
  float sum[CHAINS][64];
  UNROLL for (int j = 0; j < CHAINS; j++) {
    UNROLL for (int r = 0; r < 64; r++) sum[j][r] = 0.0f;
  }
  for (int i = 0; i < rounds; i++) {
    wgmma_fence(sum);
    UNROLL for (int k = 0; k < DEPTH; k += 16) {
      const uint64_t b = wgmma_operand(right + k * 2, 1024);
      UNROLL for (int j = 0; j < CHAINS; j++) wgmma_bf16<false>(sum[j], wgmma_operand(left + j * LEFT + k * 2, 1024), b, true);
    }
    wgmma_commit();
    wgmma_wait<1>(sum);
  }
  wgmma_wait<0>(sum);
  float total = 0.0f;
  UNROLL for (int j = 0; j < CHAINS; j++) {
    UNROLL for (int r = 0; r < 64; r++) total += sum[j][r];
  }
  out[thread_index()] = total;
}
