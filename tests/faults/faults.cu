// Kernels with planted mistakes, in no build of l2b: part of the emulator's library, and for GPUs an image of their own
// (scripts/gpu-check). tests/emulator demands that each ends in a clear diagnosis (or, for races, in a wrong result in at
// least one order), scripts/sanitize and scripts/gpu-check that the sanitizers see theirs.
#include "dialect.cuh"

// ---- correct kernels that the tests need

// y[i] += a * x[i]
extern "C" __global__ void __launch_bounds__(256) fault_none(float* y, const float* x, int n, float a) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) y[i] += a * x[i];
}

// y[b] = sum over x[b][0..n): one block per row, through shared memory
extern "C" __global__ void __launch_bounds__(256) fault_none_row_sum(float* y, const float* x, int n) {
  float v = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) v += x[blockIdx.x * n + i];
  v = block_sum(v);
  if (threadIdx.x == 0) y[blockIdx.x] = v;
}

// out[i] = product high words and a double sum: the 64-bit parts of the dialect; one thread
struct FaultParams {
  double x;
  unsigned long long factor;
  unsigned small;
};
extern "C" __global__ void fault_none_params(double* out, FaultParams p) {
  if (threadIdx.x == 0) {
    out[0] = static_cast<double>(__umul64hi(p.factor, p.factor));
    out[1] = static_cast<double>(__umulhi(p.small, p.small));
    out[2] = __fma_rn(p.x, p.x, sqrt(p.x));
  }
}

// d [16][8] += a [16][16] b [8][16]^T in bf16, operands by ldmatrix; then the same with the rounded values in tf32.
extern "C" __global__ void __launch_bounds__(32) fault_none_mma(float* d, float* d_tf32, const __nv_bfloat16* a,
                                                                const __nv_bfloat16* b) {
  SHARED(__nv_bfloat16, sa, [16][24]);  // rows of 48 bytes: 16-byte aligned, free of bank conflicts
  SHARED(__nv_bfloat16, sb, [16][24]);  // rows 8..15 repeat 0..7: the x4 load wants four matrices
  const int lane = threadIdx.x, group = lane >> 2, member = lane & 3;
  for (int i = lane; i < 32; i += 32) {
    cp_async16(&sa[i >> 1][(i & 1) * 8], a + (i >> 1) * 16 + (i & 1) * 8);
    cp_async16(&sb[i >> 1][(i & 1) * 8], b + ((i >> 1) & 7) * 16 + (i & 1) * 8);
  }
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  uint32_t fa[1][4], four[4], fb[1][2];
  ldmatrix_x4(fa[0], &sa[lane & 15][(lane >> 4) * 8]);
  ldmatrix_x4(four, &sb[lane & 7][(lane >> 3 & 1) * 8]);
  fb[0][0] = four[0];
  fb[0][1] = four[1];
  float sum[1][1][4] = {};
  mma_bf16_tile(sum, fa, fb);
  float sum_tf32[1][1][4] = {};
  for (int k = 0; k < 16; k += 8) {
    uint32_t ta[1][4], tb[1][2];
    for (int r = 0; r < 4; r++) {
      ta[0][r] = to_tf32(__bfloat162float(sa[group + (r & 1) * 8][k + member + (r >> 1) * 4]));
    }
    for (int r = 0; r < 2; r++) tb[0][r] = to_tf32(__bfloat162float(sb[group][k + member + r * 4]));
    mma_tf32_tile(sum_tf32, ta, tb);
  }
  for (int r = 0; r < 4; r++) {
    const int at = (group + (r >> 1) * 8) * 8 + member * 2 + (r & 1);
    d[at] = sum[0][0][r];
    d_tf32[at] = sum_tf32[0][0][r];
  }
}

// y = x^T for an 8x8 matrix of 16-bit elements, by the transposing load (all four matrices are the same)
extern "C" __global__ void __launch_bounds__(32) fault_none_transpose(uint32_t* y, const uint32_t* x) {
  SHARED(uint32_t, s, [8][4]);
  s[threadIdx.x >> 2][threadIdx.x & 3] = x[threadIdx.x];
  __syncthreads();
  uint32_t r[4];
  ldmatrix_x4_trans(r, s[threadIdx.x & 7]);
  y[threadIdx.x] = r[3];
}

extern "C" __global__ void fault_none_dynamic_shared(float* y, int n) {
  DYN_SMEM(bytes);
  float* s = reinterpret_cast<float*>(bytes);
  for (int i = threadIdx.x; i < n; i += blockDim.x) s[i] = static_cast<float>(i);
  __syncthreads();
  if (threadIdx.x == 0) y[0] = s[n - 1];
}

// ---- races

// The barrier between writing and reading is missing. Right in forward order: the last thread reads, and runs last.
extern "C" __global__ void fault_missing_barrier(float* y, const float* x) {
  SHARED(float, s, [256]);
  s[threadIdx.x] = x[blockIdx.x * blockDim.x + threadIdx.x];
  if (threadIdx.x == blockDim.x - 1) {
    float sum = 0;
    for (int i = 0; i < static_cast<int>(blockDim.x); i++) sum += s[i];
    y[blockIdx.x] = sum;
  }
}

// The second barrier of the loop is missing: a thread overwrites what its neighbour has yet to read.
extern "C" __global__ void fault_missing_second_barrier(float* y) {
  SHARED(float, s, [64]);
  float sum = 0;
  for (int turn = 0; turn < 4; turn++) {
    s[threadIdx.x] = static_cast<float>(turn * 64 + threadIdx.x);
    __syncthreads();
    sum += s[(threadIdx.x + 1) % 64];
  }
  y[threadIdx.x] = sum;
}

// The copy is read without having been waited for.
extern "C" __global__ void fault_missing_wait(float* y, const float* x) {
  SHARED(float, s, [128]);
  cp_async16(s + threadIdx.x * 4, x + threadIdx.x * 4);
  cp_async_commit();
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}

// ---- control flow

extern "C" __global__ void fault_early_exit(float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  __syncthreads();
  y[i] = 1;
}

// Threads from the n-th on pass the barrier by and go on: what NVIDIA's own example for synccheck does.
extern "C" __global__ void fault_skipped_barrier(float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) {
    y[i] = 0;
    __syncthreads();
  }
  y[i] += 1;
}

extern "C" __global__ void fault_divergent_barrier(float* y) {
  if (threadIdx.x < 40) {
    __syncthreads();
  } else {
    y[threadIdx.x] = 0;
    __syncthreads();
  }
  y[threadIdx.x] = 1;
}

extern "C" __global__ void fault_divergent_warp(float* y) {
  float v = 1;
  if (threadIdx.x & 1) v = __shfl_xor_sync(0xffffffffu, v, 1);
  else __syncwarp();
  y[threadIdx.x] = v;
}

extern "C" __global__ void fault_deadlock(float* y) {
  float v = 1;
  if ((threadIdx.x & 31) < 16) __syncthreads();
  else v = __shfl_xor_sync(0xffffffffu, v, 1);
  y[threadIdx.x] = v;
}

extern "C" __global__ void fault_endless_wait(volatile int* flag) {
  while (*flag == 0) spin_pause();
}

// Nothing here lets another thread run, so only the time limit ends it.
extern "C" __global__ void fault_endless_loop(volatile int* flag) {
  while (*flag == 0) {
  }
}

// sm_90a alone has it, and this file is for all.
extern "C" __global__ void fault_mbarrier_elsewhere(float* y) {
  SHARED(uint64_t, barrier, [1]);
  if (threadIdx.x == 0) mbarrier_init(barrier, 1);
  y[threadIdx.x] = 1;
}

// ---- memory

extern "C" __global__ void fault_past_end(float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i <= n) y[i] = 1;  // one too far
}

extern "C" __global__ void fault_past_shared(float* y) {
  SHARED(float, s, [64]);
  s[threadIdx.x + 1] = 1;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}

extern "C" __global__ void fault_past_dynamic_shared(float* y) {
  DYN_SMEM(bytes);
  float* s = reinterpret_cast<float*>(bytes);
  s[threadIdx.x + 1] = 1;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}

extern "C" __global__ void fault_misaligned(float* y, const float* x) {
  store_vec(y, load_vec<float4>(x + threadIdx.x));
}

extern "C" __global__ void fault_uninitialised_shared(float* y) {
  SHARED(float, s, [64]);
  y[threadIdx.x] = s[threadIdx.x];
}

extern "C" __global__ void fault_stack_overflow(float* y) {
  volatile float large[40000];
  for (int i = 39999; i >= 0; i--) large[i] = static_cast<float>(i);
  y[threadIdx.x] = large[threadIdx.x];
}

extern "C" __global__ void fault_division_by_zero(int* y, int n) { y[threadIdx.x] = 100 / n; }
