// Small things every kernel file uses: 64-bit offsets, division by a number known only at run time,
// runs of numbers in either storage type.
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

// 1 / n for n > 0, right but for its last bit: by Newton's iteration from a guess within an eighth. A division would be a
// call, around which registers are spilled.
__device__ __forceinline__ float reciprocal(int n) {
  const float x = static_cast<float>(n);
  float r = __uint_as_float(0x7ef311c7u - __float_as_uint(x));
  UNROLL for (int i = 0; i < 4; i++) r = __fmaf_rn(r, __fmaf_rn(-x, r, 1.0f), r);
  return r;
}

// A number as memory holds it: float, or __nv_bfloat16 (rounded to nearest, ties to even, when it is stored).
__device__ __forceinline__ float widened(float v) { return v; }
__device__ __forceinline__ float widened(__nv_bfloat16 v) { return __bfloat162float(v); }

template <class T>
__device__ __forceinline__ T narrowed(float v) {
  if constexpr (sizeof(T) == 4) return v;
  else return __float2bfloat16_rn(v);
}

// Numbers of T in one 16-byte access.
template <class T>
constexpr int WIDE = 16 / static_cast<int>(sizeof(T));

__device__ __forceinline__ bool aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// W consecutive numbers in registers.
template <int W>
struct Pack {
  float v[W];
};

// Four bf16 of 8 bytes, eight of 16 bytes, and back.
__device__ __forceinline__ Pack<4> unpack_bf16(uint2 t) {
  return {__uint_as_float(t.x << 16), __uint_as_float(t.x & 0xffff0000u), __uint_as_float(t.y << 16),
          __uint_as_float(t.y & 0xffff0000u)};
}
__device__ __forceinline__ uint2 pack_bf16(const Pack<4>& u) {
  return make_uint2(bf16_pair(u.v[0], u.v[1]), bf16_pair(u.v[2], u.v[3]));
}
__device__ __forceinline__ Pack<8> unpack_bf16(uint4 t) {
  const unsigned words[4] = {t.x, t.y, t.z, t.w};
  Pack<8> out;
  UNROLL for (int i = 0; i < 4; i++) {
    out.v[2 * i] = __uint_as_float(words[i] << 16);
    out.v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
  return out;
}
__device__ __forceinline__ uint4 pack_bf16(const Pack<8>& u) {
  return make_uint4(bf16_pair(u.v[0], u.v[1]), bf16_pair(u.v[2], u.v[3]), bf16_pair(u.v[4], u.v[5]),
                    bf16_pair(u.v[6], u.v[7]));
}

// Loads and stores W numbers: 16 bytes at a time where they are that many, at addresses aligned to 16 bytes, or 8 bytes
// at addresses aligned to 8; W = 1 takes any channel count and any address.
template <int W, class T>
__device__ __forceinline__ Pack<W> load_pack(const T* p) {
  Pack<W> out;
  if constexpr (W == 4 && sizeof(T) == 2) {
    out = unpack_bf16(load_vec<uint2>(p));
  } else if constexpr (W * sizeof(T) % 16 != 0) {
    UNROLL for (int i = 0; i < W; i++) out.v[i] = widened(p[i]);
  } else if constexpr (sizeof(T) == 2) {
    out = unpack_bf16(load_vec<uint4>(p));
  } else {
    UNROLL for (int i = 0; i < W; i += 4) {
      const float4 t = load_vec<float4>(p + i);
      out.v[i] = t.x, out.v[i + 1] = t.y, out.v[i + 2] = t.z, out.v[i + 3] = t.w;
    }
  }
  return out;
}

template <int W, class T>
__device__ __forceinline__ void store_pack(T* p, const Pack<W>& u) {
  if constexpr (W == 4 && sizeof(T) == 2) {
    store_vec(p, pack_bf16(u));
  } else if constexpr (W * sizeof(T) % 16 != 0) {
    UNROLL for (int i = 0; i < W; i++) p[i] = narrowed<T>(u.v[i]);
  } else if constexpr (sizeof(T) == 2) {
    store_vec(p, pack_bf16(u));
  } else {
    UNROLL for (int i = 0; i < W; i += 4) store_vec(p + i, make_float4(u.v[i], u.v[i + 1], u.v[i + 2], u.v[i + 3]));
  }
}

// W numbers on their way from memory to where they are needed: as they are stored where a Pack would take more registers.
template <class T, int W>
struct Stored {
  Pack<W> v;
  __device__ __forceinline__ void load(const T* p) { v = load_pack<W>(p); }
  __device__ __forceinline__ Pack<W> values() const { return v; }
};
template <>
struct Stored<__nv_bfloat16, 4> {
  uint2 v;
  __device__ __forceinline__ void load(const __nv_bfloat16* p) { v = load_vec<uint2>(p); }
  __device__ __forceinline__ Pack<4> values() const { return unpack_bf16(v); }
};

// The values that a reader finds where u is stored as T.
template <class T, int W>
__device__ __forceinline__ Pack<W> as_stored(Pack<W> u) {
  if constexpr (sizeof(T) == 2) {
    if constexpr (W == 8 || W == 4) u = unpack_bf16(pack_bf16(u));
    else UNROLL for (int i = 0; i < W; i++) u.v[i] = widened(narrowed<T>(u.v[i]));
  }
  return u;
}
