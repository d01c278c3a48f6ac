// Barriers in shared memory (mbarrier) and bulk copies: what producers and consumers of sm_90a meet at.
#include <algorithm>

#include "sanitizer.h"
#include "scheduler.h"
#include "tensor_map.h"
#include "text.h"

namespace emulator {

// What only a kernel compiled for sm_90a may call.
static Scheduler& sm90_scheduler(const char* what, const Site& site) {
  if (!active_scheduler->runs_sm90()) {
    fail("%s at %s:%u exists on sm_90a only: the kernel must stand in a file named *_sm90.cu", what, base_name(site.file),
         site.line);
  }
  return *active_scheduler;
}

uint32_t shared_address(const void* p) { return active_scheduler->shared_address(p); }
void mbarrier_init(uint64_t* barrier, uint32_t arrivals, Site site) {
  sm90_scheduler("mbarrier", site).mbarrier_init(barrier, arrivals, site);
}
void mbarrier_invalidate(uint64_t* barrier, Site site) { active_scheduler->mbarrier_invalidate(barrier, site); }
void mbarrier_arrive(uint64_t* barrier, uint32_t expected_bytes, Site site) {
  active_scheduler->mbarrier_arrive(barrier, expected_bytes, site);
}
void mbarrier_wait(uint64_t* barrier, uint32_t parity, Site site) {
  active_scheduler->mbarrier_wait(barrier, parity, site);
}
void tensor_copy(void* dst, const TensorMap& map, const int* at, unsigned rank, uint64_t* barrier, Site site) {
  Scheduler& scheduler = sm90_scheduler("tensor_copy", site);
  const TensorBox* tensor = decode(map);
  if (tensor == nullptr) fail("tensor_copy at %s:%u: no tensor map", base_name(site.file), site.line);
  if (tensor->rank != rank) {
    fail("tensor_copy at %s:%u: %u coordinates for a tensor of %u dimensions", base_name(site.file), site.line, rank,
         tensor->rank);
  }
  BulkCopy copy{map, {}, scheduler.shared_address(dst), barrier};
  std::copy(at, at + rank, copy.at);
  const uint32_t alignment = tensor->swizzle != 0 ? tensor->swizzle * 8u : 128;
  if (copy.dst % alignment != 0) {
    fail("tensor_copy at %s:%u: byte %u of shared memory is no multiple of %u", base_name(site.file), site.line, copy.dst,
         alignment);
  }
  scheduler.tensor_copy(copy, site);
}

// ---- addresses

uint32_t Scheduler::shared_address(const void* p) {
  const auto* address = static_cast<const unsigned char*>(p);
  if (address < block_.dynamic_shared || address >= block_.dynamic_shared + block_.dynamic_shared_bytes) {
    fail("%p lies outside of the DYN_SMEM array", p);
  }
  return static_cast<uint32_t>(address - block_.dynamic_shared);
}

// ---- barriers in shared memory: their state is kept here, the word in shared memory only marks them

static constexpr uint64_t live_word = 0x6d62617272696572;  // "mbarrier"

MBarrier& Scheduler::find_mbarrier(const uint64_t* address, const Site& site) {
  for (MBarrier& barrier : mbarriers_) {
    if (barrier.address != address) continue;
    if (*address != live_word) {
      fail("the mbarrier at %s:%u has been overwritten", base_name(site.file), site.line);
    }
    return barrier;
  }
  fail("no mbarrier was initialised at the address given at %s:%u", base_name(site.file), site.line);
}

void Scheduler::mbarrier_init(uint64_t* address, uint32_t arrivals, Site site) {
  if (reinterpret_cast<uintptr_t>(address) % 8 != 0 || arrivals == 0 || arrivals >= 1u << 20) {
    fail("mbarrier for %u arrivals at %p, %s:%u", arrivals, static_cast<void*>(address), base_name(site.file), site.line);
  }
  for (const MBarrier& barrier : mbarriers_) {
    if (barrier.address == address) {
      fail("the mbarrier at %s:%u is initialised again without being invalidated", base_name(site.file), site.line);
    }
  }
  if (mbarriers_.size() == most_mbarriers) fail("more than %zu mbarriers in a block", most_mbarriers);
  *address = live_word;
  mbarriers_.push_back({address, arrivals, arrivals, 0, 0, {}});
}

void Scheduler::mbarrier_invalidate(uint64_t* address, Site site) {
  MBarrier& barrier = find_mbarrier(address, site);
  const auto index = static_cast<unsigned>(&barrier - mbarriers_.data());
  for (const ThreadState& t : threads_) {
    if (t.state == State::at_mbarrier && t.barrier == index) {
      fail("the mbarrier is invalidated at %s:%u while threads wait for it", base_name(site.file), site.line);
    }
  }
  if (barrier.bytes != 0) fail("the mbarrier is invalidated at %s:%u before its copies", base_name(site.file), site.line);
  *address = ~uint64_t{0};
  barrier.address = nullptr;  // its place stays taken: others are known by their place
}

void Scheduler::mbarrier_arrive(uint64_t* address, uint32_t expected_bytes, Site site) {
  MBarrier& barrier = find_mbarrier(address, site);
  sanitizer::release(&barrier.edges[barrier.phase & 1]);
  barrier.bytes += expected_bytes;
  if (barrier.bytes >= 1 << 20) fail("%lld bytes expected by one mbarrier", static_cast<long long>(barrier.bytes));
  if (barrier.missing == 0) {
    fail("more than %u arrivals in one phase of an mbarrier, at %s:%u", barrier.expected, base_name(site.file), site.line);
  }
  barrier.missing--;
  preferred_ = nullptr;
  end_phase_if_complete(barrier);
  // Whoever waited for this often runs before anyone else: that shows an arrival that comes too early.
  pass(preferred_ != nullptr ? 2 : 4);
  preferred_ = nullptr;
}

// A phase ends with its last arrival or with the last byte, whatever comes later.
void Scheduler::end_phase_if_complete(MBarrier& barrier) {
  if (barrier.missing != 0 || barrier.bytes != 0) return;
  barrier.missing = barrier.expected;
  barrier.phase++;
  const auto index = static_cast<unsigned>(&barrier - mbarriers_.data());
  const auto count = static_cast<unsigned>(threads_.size());
  for (unsigned i = 0; i < count; i++) {
    ThreadState& t = threads_[in_order(i, count)];
    if (t.state != State::at_mbarrier || t.barrier != index) continue;
    make_ready(t);
    preferred_ = &t;
  }
}

// Until the phase of this parity has ended: at once if it is not the current one's.
void Scheduler::mbarrier_wait(uint64_t* address, uint32_t parity, Site site) {
  if (parity > 1) fail("parity %u of an mbarrier at %s:%u", parity, base_name(site.file), site.line);
  MBarrier& barrier = find_mbarrier(address, site);
  self().barrier = static_cast<unsigned>(&barrier - mbarriers_.data());
  self().parity = parity;
  if ((barrier.phase & 1) == parity) wait(State::at_mbarrier, site);
  else pass(4);
  sanitizer::acquire(&barrier.edges[parity]);
}

std::string Scheduler::describe_mbarrier_wait(const ThreadState& thread) const {
  const MBarrier& barrier = mbarriers_[thread.barrier];
  return text("wait at %s:%u for parity %u of mbarrier %u (in initialisation order), which lacks %u of %u arrivals and "
              "%lld bytes", base_name(thread.site.file), thread.site.line, thread.parity, thread.barrier, barrier.missing,
              barrier.expected, static_cast<long long>(barrier.bytes));
}

// ---- bulk copies: as for cp.async, reversed order copies at once, forward as late as possible, random at any time and
// in any order

void Scheduler::tensor_copy(const BulkCopy& copy, Site site) {
  const size_t bytes = decode(copy.map)->bytes();
  if (copy.dst + bytes > block_.dynamic_shared_bytes) {
    fail("tensor_copy at %s:%u: %zu bytes from byte %u reach past the end of the DYN_SMEM array of %zu bytes",
         base_name(site.file), site.line, bytes, copy.dst, block_.dynamic_shared_bytes);
  }
  find_mbarrier(copy.barrier, site);
#if defined(EMULATOR_THREAD_SANITIZER)
  complete(copy);  // as a write of the thread that asked for it
#else
  const Order order = launch_.order.order;
  if (order == Order::reversed || (order == Order::random && draw() % 2 == 0)) complete(copy);
  else bulk_copies_.push_back(copy);
#endif
}

void Scheduler::complete(const BulkCopy& copy) {
  const TensorBox& tensor = *decode(copy.map);
  copy_box(tensor, copy.at, block_.dynamic_shared, copy.dst);
  MBarrier& barrier = find_mbarrier(copy.barrier, Site{});
#if defined(EMULATOR_THREAD_SANITIZER)
  sanitizer::release(&barrier.edges[barrier.phase & 1]);
#endif
  barrier.bytes -= static_cast<int64_t>(tensor.bytes());
  if (barrier.bytes <= -(1 << 20)) fail("copies of more bytes than an mbarrier was told to expect");
  end_phase_if_complete(barrier);
}

bool Scheduler::complete_a_copy() {
  if (bulk_copies_.empty()) return false;
  const size_t i = launch_.order.order == Order::random ? draw() % bulk_copies_.size() : 0;
  const BulkCopy copy = bulk_copies_[i];
  bulk_copies_.erase(bulk_copies_.begin() + static_cast<ptrdiff_t>(i));
  complete(copy);
  return true;
}

}  // namespace emulator
