// What a kernel asks of the emulator: who am I, barriers, warp operations, shared memory, asynchronous copies, failing.
// The shim headers spell CUDA's names in these terms; scheduler.cpp and collectives.cpp implement them.
//
// The idea: every CUDA thread of a block is a fiber (a stack of its own on one host thread). A fiber runs until it must
// wait for another one; blocks run one after the other. A kernel without barriers therefore never switches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// What cuTensorMapEncodeTiled writes (tensor_map.h); a kernel takes it by value.
struct alignas(128) TensorMap {
  uint64_t opaque[16];
};

namespace emulator {

// Where in the kernel's source a call stands: two threads that meet must stand at the same place. As a default argument
// source_location::current() gives the caller's place (__builtin_LINE() in a constructor would give this header's).
struct Site {
  const char* file = "";
  uint32_t line = 0, column = 0;
  constexpr Site() = default;
  constexpr Site(std::source_location s) : file(s.file_name()), line(s.line()), column(s.column()) {}
  bool operator==(const Site& other) const {
    return line == other.line && column == other.column && file == other.file;
  }
};
#define EMULATOR_SITE ::emulator::Site site = std::source_location::current()

struct Block {
  uint3 index;
  dim3 dim, grid;
  unsigned char* dynamic_shared;
  size_t dynamic_shared_bytes;
};

struct Thread {
  uint3 index;
  unsigned linear;  // x fastest
  unsigned lane, warp;
};

// The thread and block that run now on this host thread. initial-exec: one load instead of a call for each threadIdx.
extern __thread Thread* current_thread __attribute__((tls_model("initial-exec")));
extern __thread Block* current_block __attribute__((tls_model("initial-exec")));

// The work of a warp operation: operands[lane] is what that lane passed. Run once, by the last lane to arrive, directly
// on the memory of the other lanes' fibers: one switch per lane, however much the operation does.
using Collective = void (*)(void** operands);

void block_barrier(Site site);
void warp_barrier(uint32_t mask, Site site);
void warp_collective(uint32_t mask, Collective work, void* operand, Site site);
void spin_pause(Site site);

// The shared array that belongs to `key` in the running block: made at first use, of exactly this size, full of NaN.
void* shared_array(const void* key, size_t bytes);

void cp_async(void* dst, const void* src, uint32_t bytes, bool valid, Site site);
void cp_async_commit();
void cp_async_wait(uint32_t pending);

// Of sm_90a (mbarrier.cpp, wgmma.cpp): see dialect.cuh for what each does.
uint32_t shared_address(const void* p);
void mbarrier_init(uint64_t* barrier, uint32_t arrivals, Site site);
void mbarrier_invalidate(uint64_t* barrier, Site site);
void mbarrier_arrive(uint64_t* barrier, uint32_t expected_bytes, Site site);
void mbarrier_wait(uint64_t* barrier, uint32_t parity, Site site);
void tensor_copy(void* dst, const TensorMap& map, const int* at, unsigned rank, uint64_t* barrier, Site site);

struct WgmmaOperands {
  float* accumulators;  // n / 2 registers of the calling thread
  unsigned n;
  const uint32_t* fragment;  // A in four registers of the calling thread; null: `a` says where it lies
  uint64_t a, b;             // descriptors
  bool transposed_b, accumulate;
};
void wgmma(const WgmmaOperands& operands, Site site);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(uint32_t pending, Site site);

// Ends the launch with an error that names kernel, block and thread. Does not return: the block's fibers are abandoned.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

inline void check_aligned(const void* p, size_t alignment, const char* what, const Site& site) {
  if (reinterpret_cast<uintptr_t>(p) % alignment != 0) {
    fail("misaligned %s: address %p is no multiple of %zu, at %s:%u", what, p, alignment, site.file, site.line);
  }
}

}  // namespace emulator

// Code that stands for hardware (it touches other threads' operands) is not checked for races.
#ifdef EMULATOR_THREAD_SANITIZER
#define EMULATOR_HARDWARE __attribute__((no_sanitize("thread")))
#else
#define EMULATOR_HARDWARE
#endif
