// How fast the multiply-add units are where nothing holds them up: operands and accumulators stay in registers. It is
// the denominator of every share of the peak that `l2b bench` prints. Values are like activations, neither zeros nor equal,
// since power, and so the clock, depends on them.
#include "peak.cuh"

// out[thread] = sum of its accumulators after rounds · 8 · 32 multiply-adds
// out [grid · 256]
// grid: any number of blocks of 256; a thread owns 32 independent chains
extern "C" __global__ void __launch_bounds__(256) peak_f32(float* __restrict__ out, int rounds) {
  constexpr int CHAINS = 32, REPEATS = 8;
  const unsigned thread = static_cast<unsigned>(thread_index());
  float sum[CHAINS];
  const float a = seed_value(thread), b = seed_value(thread + 7919);
  UNROLL for (int j = 0; j < CHAINS; j++) sum[j] = seed_value(thread + 31 * j);
  // |a| < 1: a chain ends near b / (1 - a), whatever its length.
  for (int i = 0; i < rounds; i++) {
    UNROLL for (int k = 0; k < REPEATS; k++) {
      UNROLL for (int j = 0; j < CHAINS; j++) sum[j] = __fmaf_rn(sum[j], a, b);
    }
  }
  float total = 0.0f;
  UNROLL for (int j = 0; j < CHAINS; j++) total += sum[j];
  out[thread] = total;
}

// Operands of a warp-level matrix instruction: one value (tf32) or two (bf16) in a register.
struct PackTf32 {
  __device__ __forceinline__ static uint32_t pack(unsigned i) { return to_tf32(seed_value(i)); }
};
struct PackBf16 {
  __device__ __forceinline__ static uint32_t pack(unsigned i) { return seed_bf16(i); }
};

// out[thread] = sum of its accumulators after `rounds` times `multiply` of 4 x 4 tiles
template <class Pack, class Multiply>
__device__ __forceinline__ void peak_matrix(float* out, int rounds, Multiply multiply) {
  constexpr int TILES = 4;
  const unsigned thread = static_cast<unsigned>(thread_index());
  uint32_t a[TILES][4], b[TILES][2];
  float sum[TILES][TILES][4] = {};
  UNROLL for (int i = 0; i < TILES; i++) {
    UNROLL for (int r = 0; r < 4; r++) a[i][r] = Pack::pack(thread * 24 + i * 4 + r);
    UNROLL for (int r = 0; r < 2; r++) b[i][r] = Pack::pack(thread * 24 + 16 + i * 2 + r);
  }
  for (int i = 0; i < rounds; i++) multiply(sum, a, b);
  float total = 0.0f;
  UNROLL for (int i = 0; i < TILES; i++) {
    UNROLL for (int j = 0; j < TILES; j++) {
      UNROLL for (int r = 0; r < 4; r++) total += sum[i][j][r];
    }
  }
  out[thread] = total;
}

// rounds · 16 times m16n8k8 on tf32 operands; the rest as peak_f32, a warp owning its 4 x 4 tiles
extern "C" __global__ void __launch_bounds__(256) peak_tf32(float* __restrict__ out, int rounds) {
  peak_matrix<PackTf32>(out, rounds, [](auto& sum, const auto& a, const auto& b) { mma_tf32_tile(sum, a, b); });
}

// rounds · 16 times m16n8k16 on bf16 operands; the rest as peak_tf32
extern "C" __global__ void __launch_bounds__(256) peak_bf16(float* __restrict__ out, int rounds) {
  peak_matrix<PackBf16>(out, rounds, [](auto& sum, const auto& a, const auto& b) { mma_bf16_tile(sum, a, b); });
}
