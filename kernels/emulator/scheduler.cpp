// Launch, blocks, and the choice of who runs next: see scheduler.h.
#include "scheduler.h"

#include <cstdlib>
#include <numeric>

#include "sanitizer.h"

namespace emulator {

__thread Thread* current_thread __attribute__((tls_model("initial-exec")));
__thread Block* current_block __attribute__((tls_model("initial-exec")));
__thread Scheduler* active_scheduler __attribute__((tls_model("initial-exec")));

Scheduler& Scheduler::current() {
  static thread_local Scheduler scheduler;
  return scheduler;
}

Scheduler::~Scheduler() {
  drop_fibers();
  drop_spare_shared();
}

void Scheduler::drop_fibers() {
  for (Fiber* fiber : fibers_) destroy_fiber(fiber);
  fibers_.clear();
  idle_.clear();
}

uint32_t Scheduler::draw() {  // xorshift
  random_ ^= random_ << 13;
  random_ ^= random_ >> 17;
  random_ ^= random_ << 5;
  return random_;
}

std::string Scheduler::run(const Launch& launch) {
  install_fault_handlers();
  adopt_host_stack(host_);
  launch_ = launch;
  random_ = launch.order.seed * 2654435761u | 1;
  error_.clear();
  time_warnings_ = 0;

  const dim3 grid = launch.grid, dim = launch.block;
  const unsigned threads = dim.x * dim.y * dim.z;
  threads_.resize(threads);
  for (unsigned i = 0; i < threads; i++) {
    ThreadState& t = threads_[i];
    t.linear = i;
    t.index = {i % dim.x, i / dim.x % dim.y, i / dim.x / dim.y};
    t.lane = i % 32;
    t.warp = i / 32;
  }
  warps_.resize((threads + 31) / 32);
  warpgroups_.resize(threads / 128);
  unsigned ring = 1;
  while (ring < threads) ring *= 2;
  ready_.resize(ring);
  // What a fiber may append to is given its size now, so that no allocation falls into a race checker's view.
  shared_.reserve(64);
  spare_shared_.reserve(128);
  mbarriers_.reserve(most_mbarriers);
  bulk_copies_.reserve(1024);
  fibers_.reserve(2048);
  idle_.reserve(2048);

  block_.dim = dim;
  block_.grid = grid;
  block_.dynamic_shared = nullptr;
  block_.dynamic_shared_bytes = launch.dynamic_shared_bytes;
  current_block = &block_;
  active_scheduler = this;
  sanitizer::release(&block_start_edge_);

  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  // A random order without a table: multiples of a number prime to the count visit every block once.
  uint64_t stride = 1;
  if (launch.order.order == Order::random && blocks > 1) {
    stride = 0x9E3779B97F4A7C15ull % blocks | 1;
    while (std::gcd(stride, blocks) != 1) stride++;
  }
  const LaunchTimer timer;
  for (uint64_t i = 0; i < blocks && error_.empty(); i++) {
    uint64_t b = i;
    if (launch.order.order == Order::reversed) b = blocks - 1 - i;
    if (launch.order.order == Order::random) {
      b = (static_cast<unsigned __int128>(i) * stride + launch.order.seed) % blocks;
    }
    run_block({static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
               static_cast<unsigned>(b / grid.x / grid.y)});
  }
  sanitizer::acquire(&block_end_edge_);
  release_shared_memory();
  active_scheduler = nullptr;
  if (!error_.empty()) drop_fibers();  // some stopped in the middle of a kernel
  return error_;
}

void Scheduler::run_block(uint3 index) {
  block_.index = index;
  // Blocks are ordered one after the other for the race checker: it looks for races within a block.
  sanitizer::acquire(&block_end_edge_);
  sanitizer::release(&block_start_edge_);
  reset_block();
  make_shared_memory();
  const auto count = static_cast<unsigned>(threads_.size());
  for (unsigned i = 0; i < count; i++) make_ready(threads_[in_order(i, count)]);

  ThreadState* first = take_ready();
  first->fiber = fiber_for(*first);
  current_thread = first;
  running_ = first->fiber;
  switch_fiber(host_, *first->fiber);  // returns when the last thread has exited, or by abandon()
  running_ = nullptr;
  current_thread = nullptr;
  check_shared_memory();
}

void Scheduler::reset_block() {
  const auto count = static_cast<unsigned>(threads_.size());
  first_ = count_ = exited_ = at_barrier_ = 0;
  for (ThreadState& t : threads_) {
    t.fiber = nullptr;
    t.pauses = 0;
    t.copies.clear();
    t.copy_groups.clear();
    t.wgmma_groups = 0;
    t.wgmma_fenced = t.fragments_fenced = false;
    t.warp_barriers = 0;
  }
  preferred_ = nullptr;
  mbarriers_.clear();
  bulk_copies_.clear();
  for (Warpgroup& group : warpgroups_) {
    group.arrived = 0;
    group.accumulators.clear();
    group.products.clear();
    group.drawn_group = ~uint64_t{0};
  }
  for (unsigned w = 0; w < warps_.size(); w++) {
    const unsigned lanes = count - w * 32;
    warps_[w].lanes = lanes >= 32 ? 0xffffffffu : (1u << lanes) - 1;
    for (WarpOperation& operation : warps_[w].operations) operation.mask = 0;
  }
#if defined(EMULATOR_THREAD_SANITIZER)
  // One identity for each CUDA thread: reusing a fiber would order two threads that nothing orders.
  while (fibers_.size() < count) fibers_.push_back(create_fiber(fiber_main));
#endif
}

void Scheduler::fiber_main() {
  fiber_entered();
  Scheduler& scheduler = *active_scheduler;
  for (;;) {
    sanitizer::acquire(&scheduler.block_start_edge_);
    scheduler.launch_.kernel->call(scheduler.launch_.arguments);
    sanitizer::release(&scheduler.block_end_edge_);
    scheduler.thread_exits();
    scheduler.run_next(true);
  }
}

void Scheduler::thread_exits() {
  ThreadState& t = self();
  t.state = State::exited;
  t.fiber = nullptr;
  exited_++;
  warps_[t.warp].lanes &= ~(1u << t.lane);
  if (at_barrier_ > 0) {
    fail("the thread exited while %u others wait at the barrier %s:%u (return before a barrier)", at_barrier_,
         base_name(barrier_site_.file), barrier_site_.line);
  }
}

void Scheduler::make_ready(ThreadState& thread) {
  thread.state = State::ready;
  ready_[(first_ + count_++) & (ready_.size() - 1)] = &thread;
}

ThreadState* Scheduler::take_ready() {
  if (count_ == 0) return nullptr;
  const auto wrap = static_cast<unsigned>(ready_.size() - 1);
  if (launch_.order.order == Order::random) {
    unsigned chosen = draw() % count_;
    for (unsigned i = 0; preferred_ != nullptr && i < count_; i++) {
      if (ready_[(first_ + i) & wrap] == preferred_) chosen = i;
    }
    preferred_ = nullptr;
    std::swap(ready_[(first_ + chosen) & wrap], ready_[first_ & wrap]);
  }
  count_--;
  return ready_[first_++ & wrap];
}

Fiber* Scheduler::fiber_for(ThreadState& thread) {
#if defined(EMULATOR_THREAD_SANITIZER)
  return fibers_[thread.linear];
#else
  (void)thread;
  if (idle_.empty()) {
    fibers_.push_back(create_fiber(fiber_main));
    return fibers_.back();
  }
  Fiber* fiber = idle_.back();
  idle_.pop_back();
  return fiber;
#endif
}

// Leaves the running thread, which waits or (finished) has exited, for the next one that can run. Returns when the
// thread left is chosen again; for a finished one, when its fiber is to start another thread.
void Scheduler::run_next(bool finished) {
  if (time_warnings_ > 0) fail("the launch used more than %u seconds of CPU time", launch_seconds());
  Fiber* me = running_;
#if !defined(EMULATOR_THREAD_SANITIZER)
  if (finished) idle_.push_back(me);  // first in line for a thread that has not started: no switch at all
#else
  (void)finished;
#endif
  if (launch_.order.order == Order::random && !bulk_copies_.empty() && draw() % 4 == 0) complete_a_copy();
  ThreadState* next = take_ready();
  // Forward order copies as late as possible: when nobody can go on without it.
  while (next == nullptr && exited_ < threads_.size() && complete_a_copy()) next = take_ready();
  if (next == nullptr) {
    if (exited_ < threads_.size()) report_deadlock();
    if (!bulk_copies_.empty()) fail("the block ended while %zu bulk copies were under way", bulk_copies_.size());
    running_ = &host_;
    switch_fiber(*me, host_);
    return;
  }
  if (next->fiber == nullptr) next->fiber = fiber_for(*next);
  current_thread = next;
  if (next->fiber != me) {
    running_ = next->fiber;
    switch_fiber(*me, *next->fiber);
  }
}

void Scheduler::wait(State state, Site site) {
  self().state = state;
  self().site = site;
  self().pauses = 0;
  run_next(false);
}

void Scheduler::abandon(std::string message) {
  error_ = std::move(message);
  abandon_frames(*running_);
  Fiber* me = running_;
  running_ = &host_;
  switch_fiber(*me, host_);
  abort();  // nobody resumes an abandoned fiber
}

}  // namespace emulator
