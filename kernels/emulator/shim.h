// CUDA C++ on the CPU: those words of the language that the kernels use and dialect.cuh does not define itself. Under g++ this header (with
// its parts shim_types.h, shim_math.h, shim_warp.h, shim_copy.h, shim_matrix.h, shim_sm90.h) takes the place of nvcc's built-ins.
// A name that is missing here fails to compile: add it to the part it belongs to.
#pragma once

#include <cmath>
#include <cstring>
#include <stdint.h>
#include <type_traits>

#include "runtime.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)  // read by build.rs, enforced at launch
#define __grid_constant__

#define threadIdx (::emulator::current_thread->index)
#define blockIdx (::emulator::current_block->index)
#define blockDim (::emulator::current_block->dim)
#define gridDim (::emulator::current_block->grid)

// Instrumented code is not unrolled: the convolutions would take minutes to compile.
#if defined(EMULATOR_ADDRESS_SANITIZER) || defined(EMULATOR_THREAD_SANITIZER)
#define UNROLL _Pragma("GCC unroll 1")
#else
#define UNROLL _Pragma("GCC unroll 64")
#endif
#define NO_UNROLL _Pragma("GCC unroll 1")

// The lambda's static is a key unique to this variable (and to each instantiation of a template it stands in).
#define SHARED(T, name, ...) \
  auto& name = *static_cast<T(*) __VA_ARGS__>(::emulator::shared_array([] { \
    static char key; \
    return &key; \
  }(), sizeof(T __VA_ARGS__)))
#define DYN_SMEM(name) unsigned char* const name = ::emulator::current_block->dynamic_shared

#include "shim_types.h"

#include "shim_math.h"
#include "shim_warp.h"
#include "shim_copy.h"
#include "shim_matrix.h"
#include "shim_sm90.h"

inline void __syncthreads(EMULATOR_SITE) { emulator::block_barrier(site); }
inline void spin_pause(EMULATOR_SITE) { emulator::spin_pause(site); }
