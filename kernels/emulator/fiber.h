// Fibers: a stack each, and a switch between them that saves six registers (10 to 16 ns).
#pragma once

#include <cstddef>

namespace emulator {

struct Fiber {
  void* stack_pointer = nullptr;  // while it does not run
  char* stack = nullptr;          // lowest usable byte; the guard page lies below
  size_t bytes = 0;
  void* asan_frames = nullptr;    // address sanitizer's record while it does not run
  void* tsan_identity = nullptr;
};

// A new fiber that will start in entry(), which must never return.
Fiber* create_fiber(void (*entry)());
void destroy_fiber(Fiber* fiber);

// Makes `fiber` stand for the host thread's own stack.
void adopt_host_stack(Fiber& fiber);

void switch_fiber(Fiber& from, Fiber& to);
// The first thing entry() must do.
void fiber_entered();
// To be called before leaving a fiber whose frames are not going to be finished.
void abandon_frames(Fiber& fiber);

bool in_stack_guard(const Fiber& fiber, const void* address);

}  // namespace emulator
