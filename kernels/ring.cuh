// A ring of stages in shared memory, between those who fill it and those who use it.
#pragma once
#include "dialect.cuh"

// Position in a ring; `parity` is that of the turn.
template <int STAGES>
struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == STAGES) stage = 0, parity ^= 1;
  }
};
