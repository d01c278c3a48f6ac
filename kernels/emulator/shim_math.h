// Arithmetic built-ins. The file is compiled with -ffp-contract=off, so the explicitly rounded forms are the plain
// operators. Two kinds are missing on purpose: fast forms (__expf...), whose last bits cannot be had here, and atomics,
// whose sums would depend on the order: runs must repeat bit for bit.
#pragma once

inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
inline double __fma_rn(double x, double y, double z) { return __builtin_fma(x, y, z); }

inline unsigned __umulhi(unsigned x, unsigned y) { return static_cast<unsigned>(uint64_t(x) * y >> 32); }
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(x) * y >> 64);
}
inline int __clz(int x) { return x != 0 ? __builtin_clz(x) : 32; }

// Templates, so that no argument is converted to fit. As in CUDA, the maximum of floats passes over NaN.
template <class T>
  requires std::is_integral_v<T>
inline T min(T x, T y) { return y < x ? y : x; }
template <class T>
  requires std::is_integral_v<T>
inline T max(T x, T y) { return x < y ? y : x; }
template <class T>
  requires std::is_same_v<T, float>
inline T max(T x, T y) { return fmaxf(x, y); }
