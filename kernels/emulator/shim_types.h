// CUDA's vector types and bf16, with CUDA's alignment. __float2bfloat16_rn gives cuda_bf16.h's bits for every input.
#pragma once

#define EMULATOR_VECTOR_TYPES(T, prefix) \
  struct alignas(sizeof(T) * 2) prefix##2 { T x, y; }; \
  struct prefix##3 { T x, y, z; }; \
  struct alignas(sizeof(T) * 4 < 16 ? sizeof(T) * 4 : 16) prefix##4 { T x, y, z, w; }; \
  inline prefix##2 make_##prefix##2(T x, T y) { return {x, y}; } \
  inline prefix##3 make_##prefix##3(T x, T y, T z) { return {x, y, z}; } \
  inline prefix##4 make_##prefix##4(T x, T y, T z, T w) { return {x, y, z, w}; }

EMULATOR_VECTOR_TYPES(float, float)
EMULATOR_VECTOR_TYPES(double, double)
EMULATOR_VECTOR_TYPES(int, int)
EMULATOR_VECTOR_TYPES(unsigned char, uchar)
EMULATOR_VECTOR_TYPES(unsigned short, ushort)
#undef EMULATOR_VECTOR_TYPES

// uint3 is threadIdx's type and stands in runtime.h.
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline unsigned __float_as_uint(float f) { return __builtin_bit_cast(unsigned, f); }
inline float __uint_as_float(unsigned u) { return __builtin_bit_cast(float, u); }
inline int __float_as_int(float f) { return __builtin_bit_cast(int, f); }
inline float __int_as_float(int i) { return __builtin_bit_cast(float, i); }
inline long long __double_as_longlong(double d) { return __builtin_bit_cast(long long, d); }
inline double __longlong_as_double(long long i) { return __builtin_bit_cast(double, i); }

struct __nv_bfloat16 { uint16_t bits; };
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };

inline __nv_bfloat16 __float2bfloat16_rn(float f) {
  const uint32_t u = __float_as_uint(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {0x7fff};  // any NaN
  return {static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1)) >> 16)};
}
inline __nv_bfloat16 __float2bfloat16(float f) { return __float2bfloat16_rn(f); }
inline float __bfloat162float(__nv_bfloat16 b) { return __uint_as_float(static_cast<uint32_t>(b.bits) << 16); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {__bfloat162float(v.x), __bfloat162float(v.y)}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 b) { return b.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short u) { return {u}; }
