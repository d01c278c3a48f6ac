// Small things every kernel file uses: 64-bit offsets, division by a number known only at run time, runs of floats.
// Warp and block sums stand in dialect.cuh.
#pragma once
#include "dialect.cuh"

// Element offsets: tensors may exceed 2^31 elements, rows and channels each stay below.
typedef long long Offset;

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

__device__ __forceinline__ Offset thread_index() { return Offset(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ __forceinline__ Offset thread_count() { return Offset(gridDim.x) * blockDim.x; }

// n / d and n % d for 0 <= n < 2^31 by one multiplication: the quotient is n · ceil(2^(31+L) / d) >> (31+L) with
// L = ceil(log2 d), exact for these n (Granlund and Montgomery, "Division by invariant integers using
// multiplication", 1994). Making one costs a 64-bit division: once per thread, before the loop.
struct Divider {
  int d;
  int shift;
  unsigned factor;

  __device__ __forceinline__ explicit Divider(int divisor) : d(divisor) {
    shift = 31 + (32 - __clz(divisor - 1));
    factor = static_cast<unsigned>(((1ull << shift) + divisor - 1) / divisor);
  }
  __device__ __forceinline__ int div(int n) const {
    return static_cast<int>(static_cast<unsigned long long>(static_cast<unsigned>(n)) * factor >> shift);
  }
  __device__ __forceinline__ int mod(int n) const { return n - div(n) * d; }
};

// W consecutive floats. W = 4 is one 16-byte access and needs that alignment; W = 1 takes any channel count.
template <int W>
struct Pack {
  float v[W];
};

template <int W>
__device__ __forceinline__ Pack<W> load_pack(const float* p) {
  Pack<W> out;
  if constexpr (W == 4) {
    const float4 t = load_vec<float4>(p);
    out.v[0] = t.x, out.v[1] = t.y, out.v[2] = t.z, out.v[3] = t.w;
  } else {
    out.v[0] = *p;
  }
  return out;
}

template <int W>
__device__ __forceinline__ void store_pack(float* p, const Pack<W>& u) {
  if constexpr (W == 4) {
    store_vec(p, make_float4(u.v[0], u.v[1], u.v[2], u.v[3]));
  } else {
    *p = u.v[0];
  }
}
