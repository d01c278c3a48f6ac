// Fibers for x86-64 (System V): see fiber.h.
#include "fiber.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>

#include "sanitizer.h"

// Saves the callee-saved registers and the stack pointer of the running fiber, takes those of the other.
extern "C" void l2b_emulator_switch(void** save, void* load);
asm(R"(
.text
.globl l2b_emulator_switch
.hidden l2b_emulator_switch
.type l2b_emulator_switch, @function
l2b_emulator_switch:
  .cfi_startproc
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmp *%rcx
  .cfi_endproc
.size l2b_emulator_switch, . - l2b_emulator_switch
)");

namespace emulator {

static constexpr size_t page = 4096;
// Instrumented frames are several times larger.
static constexpr size_t stack_bytes = sanitizer::present ? 256 << 10 : 64 << 10;

Fiber* create_fiber(void (*entry)()) {
  auto* fiber = new Fiber;
  void* mapping = mmap(nullptr, stack_bytes + page, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED || mprotect(mapping, page, PROT_NONE) != 0) abort();
  fiber->stack = static_cast<char*>(mapping) + page;
  fiber->bytes = stack_bytes;

  // Stacks are a power of two apart: without an offset the hot ends of 1024 of them would share a few cache sets.
  static thread_local unsigned made = 0;
  char* top = fiber->stack + stack_bytes - (made++ * 5 % 61) * 64;
  auto** slot = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t{63});
  // At entry the ABI expects the stack pointer 8 off a multiple of 16, as after a call; a return address of zero ends
  // a debugger's walk up the stack.
  *--slot = nullptr;
  *--slot = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; i++) *--slot = nullptr;
  fiber->stack_pointer = slot;
#if defined(EMULATOR_THREAD_SANITIZER)
  fiber->tsan_identity = __tsan_create_fiber(0);
#endif
  return fiber;
}

void destroy_fiber(Fiber* fiber) {
  abandon_frames(*fiber);
  munmap(fiber->stack - page, fiber->bytes + page);
#if defined(EMULATOR_THREAD_SANITIZER)
  __tsan_destroy_fiber(fiber->tsan_identity);
#endif
  delete fiber;
}

void adopt_host_stack(Fiber& fiber) {
#if defined(EMULATOR_ADDRESS_SANITIZER)
  pthread_attr_t attributes;
  pthread_getattr_np(pthread_self(), &attributes);
  void* lowest;
  pthread_attr_getstack(&attributes, &lowest, &fiber.bytes);
  pthread_attr_destroy(&attributes);
  fiber.stack = static_cast<char*>(lowest);
#endif
#if defined(EMULATOR_THREAD_SANITIZER)
  fiber.tsan_identity = __tsan_get_current_fiber();
#endif
  (void)fiber;
}

void switch_fiber(Fiber& from, Fiber& to) {
#if defined(EMULATOR_ADDRESS_SANITIZER)
  __sanitizer_start_switch_fiber(&from.asan_frames, to.stack, to.bytes);
#endif
#if defined(EMULATOR_THREAD_SANITIZER)
  __tsan_switch_to_fiber(to.tsan_identity, 1);  // 1: the switch itself orders nothing
#endif
  l2b_emulator_switch(&from.stack_pointer, to.stack_pointer);
#if defined(EMULATOR_ADDRESS_SANITIZER)
  __sanitizer_finish_switch_fiber(from.asan_frames, nullptr, nullptr);
#endif
}

void fiber_entered() {
#if defined(EMULATOR_ADDRESS_SANITIZER)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

// Frames that never end leave their red zones behind.
void abandon_frames(Fiber& fiber) { sanitizer::unpoison(fiber.stack, fiber.bytes); }

bool in_stack_guard(const Fiber& fiber, const void* address) {
  const char* p = static_cast<const char*>(address);
  return p >= fiber.stack - page && p < fiber.stack;
}

}  // namespace emulator
