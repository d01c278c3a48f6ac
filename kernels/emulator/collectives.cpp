// What CUDA threads of a block do together: barrier, warp operations, asynchronous copies, shared memory.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "sanitizer.h"
#include "scheduler.h"

namespace emulator {

void block_barrier(Site site) { active_scheduler->barrier(site); }
void warp_collective(uint32_t mask, Collective work, void* operand, Site site) {
  active_scheduler->warp_collective(mask, work, operand, site);
}
void spin_pause(Site site) { active_scheduler->spin_pause(site); }
void* shared_array(const void* key, size_t bytes) { return active_scheduler->shared_array(key, bytes); }
void cp_async(void* dst, const void* src, uint32_t bytes, bool valid, Site site) {
  check_aligned(dst, bytes, "cp.async destination", site);
  if (valid) check_aligned(src, bytes, "cp.async source", site);
  active_scheduler->cp_async({dst, src, bytes, valid});
}
void cp_async_commit() { active_scheduler->cp_async_commit(); }
void cp_async_wait(uint32_t pending) { active_scheduler->cp_async_wait(pending); }

// ---- barrier

void Scheduler::barrier(Site site) {
  if (exited_ > 0) {
    fail("the thread reached the barrier %s:%u although %u threads of the block have exited", base_name(site.file),
         site.line, exited_);
  }
  if (at_barrier_ == 0) {
    barrier_site_ = site;
  } else if (!(barrier_site_ == site)) {
    fail("divergent barrier: the thread is at %s:%u:%u, others wait at %s:%u:%u", base_name(site.file), site.line,
         site.column, base_name(barrier_site_.file), barrier_site_.line, barrier_site_.column);
  }
  // Two addresses in turn: with one, a thread that is already at the next barrier would be ordered before one that has
  // not yet left this one.
  char* edge = &barrier_edge_[barrier_generation_ & 1];
  sanitizer::release(edge);
  if (++at_barrier_ < threads_.size()) {
    wait(State::at_barrier, site);
  } else {
    release_barrier();
    self().pauses = 0;
    if (launch_.order.order != Order::forward) {  // forward: the last to arrive goes on, which saves a switch
      make_ready(self());
      run_next(false);
    }
  }
  sanitizer::acquire(edge);
}

void Scheduler::release_barrier() {
  const auto count = static_cast<unsigned>(threads_.size());
  for (unsigned i = 0; i < count; i++) {
    ThreadState& t = threads_[in_order(i, count)];
    if (t.state == State::at_barrier) make_ready(t);
  }
  at_barrier_ = 0;
  barrier_generation_++;
}

// ---- warp operations

void Scheduler::warp_collective(uint32_t mask, Collective work, void* operand, Site site) {
  ThreadState& t = self();
  Warp& warp = warps_[t.warp];
  const uint32_t bit = 1u << t.lane;
  if ((mask & bit) == 0) {
    fail("warp operation %s:%u: mask %08x lacks the calling lane %u", base_name(site.file), site.line, mask, t.lane);
  }
  if ((mask & ~warp.lanes) != 0) {
    fail("warp operation %s:%u: lanes %08x of mask %08x have exited or do not exist (block of %zu threads)",
         base_name(site.file), site.line, mask & ~warp.lanes, mask, threads_.size());
  }
  WarpOperation* mine = nullptr;
  WarpOperation* unused = nullptr;
  for (WarpOperation& open : warp.operations) {
    if (open.mask == 0) {
      unused = &open;
    } else if ((open.mask & mask) != 0) {
      if (open.mask != mask || open.work != work || !(open.site == site)) {
        fail("divergent warp operation: lane %u is at %s:%u:%u (mask %08x), others wait at %s:%u:%u (mask %08x)", t.lane,
             base_name(site.file), site.line, site.column, mask, base_name(open.site.file), open.site.line,
             open.site.column, open.mask);
      }
      mine = &open;
    }
  }
  if (mine == nullptr) {
    if (unused == nullptr) fail("more than eight warp operations with different masks are open in one warp");
    mine = unused;
    mine->mask = mask;
    mine->arrived = 0;
    mine->work = work;
    mine->site = site;
    memset(mine->operands, 0, sizeof mine->operands);
  }
  mine->arrived |= bit;
  mine->operands[t.lane] = operand;
  if (mine->arrived != mask) {
    t.mask = mask;
    wait(State::in_warp_operation, site);
    return;
  }
  finish(*mine, t.warp);
  t.pauses = 0;
  if (launch_.order.order == Order::random && draw() % 4 == 0) {  // another lane may overtake the last to arrive
    make_ready(t);
    run_next(false);
  }
}

void Scheduler::finish(WarpOperation& operation, unsigned warp) {
  operation.work(operation.operands);
  for (unsigned i = 0; i < 32; i++) {
    const unsigned lane = in_order(i, 32);
    if ((operation.mask >> lane & 1) == 0) continue;
    ThreadState& t = threads_[warp * 32 + lane];
    if (&t != current_thread) make_ready(t);
  }
  operation.mask = 0;
}

// ---- waiting in a loop

void Scheduler::spin_pause(Site site) {
  // Blocks run one after the other, so only threads of this block can end the wait; each gets its turn many times.
  constexpr unsigned limit = 100000;
  if (++self().pauses > limit) {
    fail("the waiting loop at %s:%u did not end in %u turns; nothing else in the block changes what it waits for",
         base_name(site.file), site.line, limit);
  }
  make_ready(self());
  run_next(false);
}

// ---- asynchronous copies

static void execute(const PendingCopy& copy) {
  if (copy.valid) memcpy(copy.dst, copy.src, copy.bytes);
  else memset(copy.dst, 0, copy.bytes);
}

// Reversed order copies at once, which shows a stage overwritten while still in use; forward order copies as late as
// allowed, which shows a forgotten wait; random order tosses a coin for each copy.
void Scheduler::cp_async(const PendingCopy& copy) {
#if defined(EMULATOR_THREAD_SANITIZER)
  execute(copy);
#else
  const Order order = launch_.order.order;
  if (order == Order::reversed || (order == Order::random && draw() % 2 == 0)) execute(copy);
  else self().copies.push_back(copy);
#endif
}

void Scheduler::cp_async_commit() {
  ThreadState& t = self();
  t.copy_groups.push_back(static_cast<uint32_t>(t.copies.size()));
}

void Scheduler::cp_async_wait(uint32_t pending) {
  ThreadState& t = self();
  if (t.copy_groups.size() <= pending) return;
  const size_t groups = t.copy_groups.size() - pending;
  const uint32_t done = t.copy_groups[groups - 1];
  for (uint32_t i = 0; i < done; i++) execute(t.copies[i]);
  t.copies.erase(t.copies.begin(), t.copies.begin() + done);
  t.copy_groups.erase(t.copy_groups.begin(), t.copy_groups.begin() + static_cast<ptrdiff_t>(groups));
  for (uint32_t& end : t.copy_groups) end -= done;
}

// ---- shared memory

// Heap blocks of the exact size, so that the address sanitizer knows their ends. In the ordinary build a canary behind
// each is looked at when the block has run.
namespace {
constexpr size_t canary_bytes = 64;
constexpr int canary = 0xA5;
constexpr size_t static_limit = 48 << 10;  // of ptxas

void* allocate_shared(size_t bytes, size_t alignment) {
  const sanitizer::Unwatched unwatched;
  const size_t rounded = (bytes + canary_bytes + alignment - 1) / alignment * alignment;
  void* p = aligned_alloc(alignment, rounded);
  sanitizer::fill(p, 0xFF, bytes);
  sanitizer::fill(static_cast<char*>(p) + bytes, canary, rounded - bytes);
  sanitizer::poison(static_cast<char*>(p) + bytes, rounded - bytes);
  return p;
}

void release_shared(void* p, size_t bytes, size_t alignment) {
  const sanitizer::Unwatched unwatched;
  sanitizer::unpoison(p, (bytes + canary_bytes + alignment - 1) / alignment * alignment);
  free(p);
}

bool canary_is_intact(const void* p, size_t bytes) {
  const auto* tail = static_cast<const unsigned char*>(p) + bytes;
  // Under a sanitizer the bytes are its to watch, and not even we may read them.
  return sanitizer::present || std::all_of(tail, tail + canary_bytes, [](unsigned char c) { return c == canary; });
}

constexpr size_t static_alignment = 16, dynamic_alignment = 128;
}  // namespace

void* Scheduler::shared_array(const void* key, size_t bytes) {
  for (const SharedArray& array : shared_) {
    if (array.key == key) return array.data;
  }
  static_shared_bytes_ += (bytes + static_alignment - 1) / static_alignment * static_alignment;
  if (static_shared_bytes_ > static_limit) {
    fail("%zu bytes of SHARED arrays: the compiler allows %zu, more must come from DYN_SMEM", static_shared_bytes_,
         static_limit);
  }
  if (static_shared_bytes_ + block_.dynamic_shared_bytes > launch_.shared_limit) {
    fail("%zu bytes of SHARED arrays and %zu of DYN_SMEM exceed the limit of %zu bytes a block", static_shared_bytes_,
         block_.dynamic_shared_bytes, launch_.shared_limit);
  }
  void* data = allocate_shared(bytes, static_alignment);
  shared_.push_back({key, data, bytes});
  return data;
}

// At the beginning of every block: nothing of the block before may be readable, so all is NaN again.
void Scheduler::make_shared_memory() {
#if defined(EMULATOR_THREAD_SANITIZER)
  free_shared_memory();  // fresh memory has no race history
#endif
  for (const SharedArray& array : shared_) sanitizer::fill(array.data, 0xFF, array.bytes);
  if (block_.dynamic_shared_bytes == 0) return;
  if (block_.dynamic_shared == nullptr) {
    block_.dynamic_shared =
        static_cast<unsigned char*>(allocate_shared(block_.dynamic_shared_bytes, dynamic_alignment));
  }
  sanitizer::fill(block_.dynamic_shared, 0xFF, block_.dynamic_shared_bytes);
}

void Scheduler::free_shared_memory() {
  auto release = [&](void* data, size_t bytes, size_t alignment, const char* what) {
    if (error_.empty() && !canary_is_intact(data, bytes)) {
      error_ = std::string("kernel ") + launch_.kernel->name + ": bytes past the end of " + what + " of " +
               std::to_string(bytes) + " bytes were overwritten";
    }
    release_shared(data, bytes, alignment);
  };
  for (const SharedArray& array : shared_) release(array.data, array.bytes, static_alignment, "a SHARED array");
  shared_.clear();
  static_shared_bytes_ = 0;
  if (block_.dynamic_shared != nullptr) {
    release(block_.dynamic_shared, block_.dynamic_shared_bytes, dynamic_alignment, "the DYN_SMEM array");
  }
  block_.dynamic_shared = nullptr;
}

}  // namespace emulator
