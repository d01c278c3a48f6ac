// The emulated driver API: the subset of libcuda that the engine calls through cudarc, by topic:
//   driver_context.cpp  devices, contexts, error names, and the l2b_emulator_* functions
//   driver_memory.cpp   allocation, copies, memset
//   driver_stream.cpp   streams, events, graphs
//   driver_launch.cpp   modules, functions, launches
// Every function is one call of `driver_call`, which fails on demand (options.h) and keeps the text of an error.
#pragma once

#include <cstddef>
#include <cstdint>

#include "options.h"
#include "outcome.h"

// cuda.h is not there: the emulator builds without a CUDA toolkit. Handles are pointers, enumerations int.
using CUdeviceptr = unsigned long long;
using CUdevice = int;
using Handle = void*;

// Nothing else of the library is visible: it is loaded with RTLD_GLOBAL next to the host program's own symbols.
#define EXPORTED extern "C" __attribute__((visibility("default")))
#define DRIVER_API EXPORTED int

namespace emulator {

void keep_error(const char* function, const Outcome& outcome);

// Bytes of shared memory that cuFuncSetAttribute can open to a block on this compute capability.
int shared_memory_opt_in();

template <class Body>
int driver_call(const char* function, Body body) {
  Outcome outcome;
  if (const int code = planned_failure(function)) outcome = {code, "failure asked for by L2B_EMULATOR_FAIL"};
  else outcome = body();
  if (!outcome.ok()) keep_error(function, outcome);
  return outcome.code;
}

}  // namespace emulator
