// Planted mistakes with what exists on sm_90a only, as in faults.cu: each kernel is correct when `planted` is 0.
#include "dialect.cuh"

// y [elements of the box] = the box of the tensor `map` (64 or 32 channels, swizzled by as many or not) that begins at c0, c1, c2, c3,
// fetched by one bulk copy. One block of 128 threads; DYN_SMEM holds the box.
struct FaultBox {
  int at[4];
  int elements, row_bytes, swizzled, planted;
};
extern "C" __global__ void __launch_bounds__(128) fault_tensor_copy(uint16_t* y, const __grid_constant__ TensorMap map,
                                                                    FaultBox box) {
  DYN_SMEM_SWIZZLED(smem);
  SHARED(uint64_t, full, [1]);
  const uint32_t bytes = box.elements * 2;
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    mbarrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    prefetch_tensor_map(map);
    mbarrier_arrive_expect(full, box.planted == 2 ? bytes + 16 : bytes);
    unsigned char* dst = box.planted == 3 ? smem + 128 : box.planted == 4 ? smem + 1024 : smem;
    tensor_copy(dst, map, box.at[0], box.at[1], box.at[2], box.at[3], full);
  }
  if (box.planted != 1) mbarrier_wait(full, 0);
  for (int i = threadIdx.x; i < box.elements; i += 128) {
    uint32_t at = i * 2;
    if (box.swizzled != 0) at ^= (at >> 7 & (box.row_bytes / 16 - 1)) << 4;
    y[i] = *reinterpret_cast<const uint16_t*>(smem + at);
  }
  if (box.planted == 1) mbarrier_wait(full, 0);
  __syncthreads();
  if (threadIdx.x == 0) mbarrier_invalidate(full);
}

// y[tile][half] = sum of half of the tile's 64 x 64 integers, tile = 0..tiles-1, through a ring of two buffers: warp 0 copies,
// warps 1 and 2 (one row of the tile a thread) sum. map: rows of 64 channels, box 64 x 64, three dimensions, not swizzled.
enum FaultRing { ring_correct, ring_no_full_wait, ring_no_empty_wait, ring_wrong_parity, ring_no_release, ring_three_arrivals };
extern "C" __global__ void __launch_bounds__(96) fault_ring(int* y, const __grid_constant__ TensorMap map, int tiles,
                                                            int planted) {
  constexpr int STAGES = 2, TILE = 64 * 64 * 2;
  DYN_SMEM_SWIZZLED(smem);
  SHARED(uint64_t, full, [STAGES]);
  SHARED(uint64_t, empty, [STAGES]);
  const int warp = threadIdx.x / 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      mbarrier_init(&full[i], 1);
      mbarrier_init(&empty[i], 2);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  if (warp == 0) {
    if (threadIdx.x == 0) {
      for (int tile = 0; tile < tiles; tile++) {
        const int stage = tile % STAGES;
        const uint32_t turn = tile / STAGES & 1;
        if (planted != ring_no_empty_wait) mbarrier_wait(&empty[stage], planted == ring_wrong_parity ? turn : turn ^ 1);
        mbarrier_arrive_expect(&full[stage], TILE);
        tensor_copy(smem + stage * TILE, map, 0, tile * 64, 0, &full[stage]);
      }
    }
  } else {
    const int row = threadIdx.x - 32;
    for (int tile = 0; tile < tiles; tile++) {
      const int stage = tile % STAGES;
      if (planted != ring_no_full_wait) mbarrier_wait(&full[stage], tile / STAGES & 1);
      const uint16_t* values = reinterpret_cast<const uint16_t*>(smem + stage * TILE) + row * 64;
      int sum = 0;
      for (int i = 0; i < 64; i++) sum += values[i];
      __syncwarp();
      if (row % 32 == 0 && planted != ring_no_release) {
        mbarrier_arrive(&empty[stage]);
        if (planted == ring_three_arrivals) mbarrier_arrive(&empty[stage]);
      }
      const int total = warp_sum(sum);
      if (row % 32 == 0) y[tile * 2 + row / 32] = total;
    }
  }
}

// d [64][N] = a [64][depth] b^T, depth a multiple of 64; b [N][depth], or transposed b [depth][N]; box of a: 64 x 64,
// box of b: 64 depths x N, or 64 columns x 64 depths. One warpgroup, one buffer, one product of 16 in two groups a turn.
// REGISTERS: a goes through registers; b not transposed is then not swizzled either, its box 8 depths x N.
enum FaultProduct { product_correct, product_no_wait, product_no_commit, product_no_fence, product_early_copy,
                    product_changed, product_uneven, product_swapped_offsets, product_fragment_changed,
                    product_no_fragment_fence };
template <int N, bool TRANSPOSED, bool REGISTERS = false>
__device__ __forceinline__ void fault_wgmma_body(float* d, const TensorMap& a, const TensorMap& b, int depth,
                                                 int planted) {
  constexpr int A = 64 * 128, B = N * 128;
  DYN_SMEM_SWIZZLED(smem);
  SHARED(uint64_t, full, [1]);
  const int thread = threadIdx.x;
  if (thread == 0) {
    mbarrier_init(full, 1);
    mbarrier_init_fence();
  }
  __syncthreads();
  auto fetch = [&](int k) {
    if (thread == 0 && k < depth) {
      mbarrier_arrive_expect(full, A + B);
      tensor_copy(smem, a, k, 0, 0, full);
      if (TRANSPOSED) {
        for (int n = 0; n < N; n += 64) tensor_copy(smem + A + n * 128, b, n, k, 0, full);
      } else if (REGISTERS) {
        for (int i = 0; i < 64; i += 8) tensor_copy(smem + A + i * N * 2, b, k + i, 0, 0, full);
      } else {
        tensor_copy(smem + A, b, k, 0, 0, full);
      }
    }
  };
  float sum[1][N / 2];
  // The first product overwrites it, or adds.
  for (int i = 0; i < N / 2; i++) sum[0][i] = REGISTERS ? 0.0f : static_cast<float>(thread);
  uint32_t fragments[4][4];
  fetch(0);
  for (int k = 0; k < depth; k += 64) {
    mbarrier_wait(full, k / 64 & 1);
    if (planted != product_no_fence || k == 0) wgmma_fence(sum);
    for (int step = 0; step < 4; step++) {
      const uint64_t left = wgmma_operand(smem + step * 32, 1024);
      constexpr bool narrow = REGISTERS && !TRANSPOSED;
      const bool swapped = planted == product_swapped_offsets;
      const int next_rows = narrow ? 128 : 1024, next_columns = narrow ? N * 16 : 64 * 128;
      const int stride = swapped ? next_columns : next_rows, leading = swapped ? next_rows : next_columns;
      const uint64_t right = TRANSPOSED ? wgmma_operand(smem + A + step * 2048, stride, leading)
                             : narrow   ? wgmma_operand<16>(smem + A + step * N * 32, stride, leading)
                                        : wgmma_operand(smem + A + step * 32, 1024);
      if constexpr (REGISTERS) {
        uint32_t(&own)[4] = fragments[step];
        for (int i = 0; i < 4; i++) {
          const int row = thread / 32 * 16 + thread % 32 / 4 + i % 2 * 8, chunk = step * 2 + i / 2;
          own[i] = *reinterpret_cast<const uint32_t*>(smem + row * 128 + (chunk ^ (row & 7)) * 16 + thread % 4 * 4);
        }
        if (planted == product_no_fragment_fence && step == 2) wgmma_wait<1>(own);
        else wgmma_fence(own);
        wgmma_bf16<TRANSPOSED>(sum[0], own, right);
        if (planted == product_fragment_changed) own[1] = 0;
      } else {
        wgmma_bf16<TRANSPOSED>(sum[0], left, right, k + step > 0);
      }
      if (planted == product_changed && step == 1) sum[0][3] = 1;
      if (planted == product_uneven && step == 1 && thread < 32) wgmma_commit();
      if (step == 1) wgmma_commit();
    }
    if (planted != product_no_commit) wgmma_commit();
    if (planted == product_early_copy) {
      wgmma_wait<1>(sum);  // leaves the second group under way
      __syncthreads();
      fetch(k + 64);
    }
    if (planted != product_no_wait) wgmma_wait<0>(sum);
    if (planted != product_early_copy) {
      __syncthreads();
      fetch(k + 64);
    }
  }
  for (int i = 0; i < N / 2; i++) {
    const int row = thread / 32 * 16 + thread % 32 / 4 + 8 * (i / 2 % 2), column = 8 * (i / 4) + 2 * (thread % 4) + i % 2;
    d[row * N + column] = sum[0][i];
  }
}

extern "C" __global__ void __launch_bounds__(128) fault_wgmma_64_registers(
    float* d, const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, int depth, int planted) {
  fault_wgmma_body<64, false, true>(d, a, b, depth, planted);
}
extern "C" __global__ void __launch_bounds__(128) fault_wgmma_128(float* d, const __grid_constant__ TensorMap a,
                                                                  const __grid_constant__ TensorMap b, int depth,
                                                                  int planted) {
  fault_wgmma_body<128, false>(d, a, b, depth, planted);
}
extern "C" __global__ void __launch_bounds__(128) fault_wgmma_128_transposed(
    float* d, const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, int depth, int planted) {
  fault_wgmma_body<128, true>(d, a, b, depth, planted);
}
extern "C" __global__ void __launch_bounds__(128) fault_wgmma_64_registers_transposed(
    float* d, const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, int depth, int planted) {
  fault_wgmma_body<64, true, true>(d, a, b, depth, planted);
}
