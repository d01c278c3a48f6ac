// What CUDA threads of a block do together: barrier, warp operations, asynchronous copies, shared memory.
#include <cstring>

#include "sanitizer.h"
#include "scheduler.h"

namespace emulator {

void block_barrier(Site site) { active_scheduler->barrier(site); }
void warp_barrier(uint32_t mask, Site site) { active_scheduler->warp_barrier(mask, site); }
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

// Alone among them it orders what the lanes do to memory.
void Scheduler::warp_barrier(uint32_t mask, Site site) {
  ThreadState& t = self();
  char* edge = &warps_[t.warp].edges[t.warp_barriers++ & 1];
  sanitizer::release(edge);
  warp_collective(mask, [](void**) {}, nullptr, site);
  sanitizer::acquire(edge);
}

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
  pass(4);  // another lane may overtake the last to arrive
}

// Lets others go first, in random order and one time out of `chance`.
void Scheduler::pass(unsigned chance) {
  if (launch_.order.order != Order::random || draw() % chance != 0) return;
  make_ready(self());
  run_next(false);
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

static constexpr size_t static_limit = 48 << 10;  // of ptxas
static constexpr size_t static_alignment = 16, dynamic_alignment = 128, swizzle_alignment = 1024;  // of the dialect

// An array of this size that an earlier launch of this host thread left, or a new one.
SharedArray Scheduler::take_shared(const void* key, size_t bytes, size_t alignment) {
  for (SharedArray& spare : spare_shared_) {
    if (spare.bytes != bytes || spare.alignment != alignment) continue;
    SharedArray array = spare;
    spare = spare_shared_.back();
    spare_shared_.pop_back();
    array.key = key;
    return array;
  }
  return map_shared(key, bytes, alignment);
}

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
  shared_.push_back(take_shared(key, bytes, static_alignment));
  clear_shared(shared_.back());
  return shared_.back().data;
}

// At the beginning of every block: nothing of the block before may be readable, so all is NaN again.
void Scheduler::make_shared_memory() {
#if defined(EMULATOR_THREAD_SANITIZER)
  release_shared_memory();  // only fresh memory has no race history
  drop_spare_shared();
#endif
  if (block_.dynamic_shared_bytes > 0 && block_.dynamic_shared == nullptr) {
    const size_t alignment = launch_.kernel->sm90 ? swizzle_alignment : dynamic_alignment;
    shared_.push_back(take_shared(nullptr, block_.dynamic_shared_bytes, alignment));
    block_.dynamic_shared = reinterpret_cast<unsigned char*>(shared_.back().data);
  }
  for (const SharedArray& array : shared_) clear_shared(array);
}

void Scheduler::check_shared_memory() {
  for (const SharedArray& array : shared_) {
    if (!error_.empty() || canary_is_intact(array)) continue;
    error_ = where_block() + ": bytes past the end of " + describe(array) + " were overwritten";
  }
}

void Scheduler::release_shared_memory() {
  spare_shared_.insert(spare_shared_.end(), shared_.begin(), shared_.end());
  shared_.clear();
  static_shared_bytes_ = 0;
  block_.dynamic_shared = nullptr;
  constexpr size_t kept = 32;
  if (spare_shared_.size() > kept) drop_spare_shared();
}

void Scheduler::drop_spare_shared() {
  for (const SharedArray& array : spare_shared_) unmap_shared(array);
  spare_shared_.clear();
}

}  // namespace emulator
