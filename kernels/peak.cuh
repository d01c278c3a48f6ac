// Operands of the kernels that measure how fast multiply-adds can be.
#pragma once
#include "common.cuh"

// A number in +-[0.5, 1) that differs from thread to thread.
__device__ __forceinline__ float seed_value(unsigned i) {
  const unsigned mixed = (i + 1) * 2654435761u;
  return __uint_as_float(0x3f000000u | mixed >> 9) * ((mixed & 1) != 0 ? -1.0f : 1.0f);
}

// Two of them in bf16.
__device__ __forceinline__ uint32_t seed_bf16(unsigned i) {
  return (__float_as_uint(seed_value(i)) & 0xffff0000u) | __float_as_uint(seed_value(i + 65537)) >> 16;
}
