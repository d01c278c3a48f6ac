// The sanitizers must be told about stacks that change under them and about memory that begins a new life. All of it is
// empty in the ordinary build. The emulator's own sources are compiled with the macro alone, not with -fsanitize=thread:
// what the scheduler does between two CUDA threads must not order them.
#pragma once

#include <cstddef>

#if defined(EMULATOR_ADDRESS_SANITIZER)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(EMULATOR_THREAD_SANITIZER)
extern "C" {
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void* __tsan_get_current_fiber();
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#endif

namespace emulator::sanitizer {

#if defined(EMULATOR_ADDRESS_SANITIZER) || defined(EMULATOR_THREAD_SANITIZER)
inline constexpr bool present = true;
#else
inline constexpr bool present = false;
#endif

// Bytes that no kernel may touch (the tail behind a buffer), and the opposite.
inline void poison([[maybe_unused]] void* p, [[maybe_unused]] size_t bytes) {
#if defined(EMULATOR_ADDRESS_SANITIZER)
  __asan_poison_memory_region(p, bytes);
#endif
}
inline void unpoison([[maybe_unused]] void* p, [[maybe_unused]] size_t bytes) {
#if defined(EMULATOR_ADDRESS_SANITIZER)
  __asan_unpoison_memory_region(p, bytes);
#endif
}

// An edge of the happens-before order: all that precedes a release of p precedes what follows an acquire of p.
inline void acquire([[maybe_unused]] void* p) {
#if defined(EMULATOR_THREAD_SANITIZER)
  __tsan_acquire(p);
#endif
}
inline void release([[maybe_unused]] void* p) {
#if defined(EMULATOR_THREAD_SANITIZER)
  __tsan_release(p);
#endif
}

// While one lives, allocation resets the race history of its memory and nothing is reported.
struct Unwatched {
#if defined(EMULATOR_THREAD_SANITIZER)
  Unwatched() {
    AnnotateIgnoreReadsBegin("", 0);
    AnnotateIgnoreWritesBegin("", 0);
  }
  ~Unwatched() {
    AnnotateIgnoreWritesEnd("", 0);
    AnnotateIgnoreReadsEnd("", 0);
  }
#else
  Unwatched() {}
#endif
};

// memset and memcpy by single instructions: the sanitizers intercept the library's functions, even when called from
// code that is not instrumented.
inline void fill(void* p, int value, size_t bytes) {
  asm volatile("rep stosb" : "+D"(p), "+c"(bytes) : "a"(value) : "memory");
}
inline void copy(void* dst, const void* src, size_t bytes) {
  asm volatile("rep movsb" : "+D"(dst), "+S"(src), "+c"(bytes)::"memory");
}

}  // namespace emulator::sanitizer
