// Runs the blocks of a launch: one scheduler for each host thread, its CUDA threads as fibers. See runtime.h for the idea.
//   scheduler.cpp    launch, blocks, the choice of who runs next
//   collectives.cpp  barrier, warp operations, asynchronous copies, shared memory
//   mbarrier.cpp     mbarriers, bulk copies (sm_90a)
//   wgmma.cpp        matrix products of warpgroups (sm_90a)
//   diagnostics.cpp  the errors: fail(), deadlock report, faults of the processor, endless launches
#pragma once

#include <string>
#include <vector>

#include "async.h"
#include "fiber.h"
#include "options.h"
#include "registry.h"
#include "runtime.h"
#include "shared_memory.h"

namespace emulator {

struct Launch {
  const Kernel* kernel;
  dim3 grid, block;
  size_t dynamic_shared_bytes;
  size_t shared_limit;  // static and dynamic together
  void** arguments;
  OrderOption order;
};

enum class State : uint8_t {
  ready,
  at_barrier,
  in_warp_operation,
  at_mbarrier,
  in_warpgroup_operation,
  exited
};

constexpr size_t most_mbarriers = 64;  // of a block

struct PendingCopy {
  void* dst;
  const void* src;
  uint32_t bytes;
  bool valid;
};

struct ThreadState : Thread {
  Fiber* fiber = nullptr;  // null before it starts and after it ends
  State state = State::ready;
  Site site;           // where it waits
  uint32_t mask = 0;   // of the warp operation it waits in
  unsigned pauses = 0; // spin_pause calls since it last met another thread
  std::vector<PendingCopy> copies;      // not yet executed
  std::vector<uint32_t> copy_groups;    // for every open group, how many of `copies` it and its elders hold
  unsigned barrier = 0;        // at_mbarrier: its place in mbarriers_
  uint32_t parity = 0;         // of the phase waited for
  uint64_t wgmma_groups = 0;   // committed
  bool wgmma_fenced = false;   // since products under way last gave registers back
  bool fragments_fenced = false;  // since the last wait, after which they may have been written
  unsigned warp_barriers = 0;     // that it has come to
};

struct WarpOperation {
  uint32_t mask = 0;  // 0: free
  uint32_t arrived = 0;
  Collective work = nullptr;
  Site site;
  void* operands[32];
};

struct Warp {
  uint32_t lanes;  // that the block has and that have not exited
  WarpOperation operations[8];
  char edges[2];  // addresses for the race checker: one for each of two successive __syncwarp
};

class Scheduler {
 public:
  // Of the calling host thread; made on first use.
  static Scheduler& current();
  ~Scheduler();

  // Runs all blocks. Empty for success, else the error; the remaining blocks are then left out.
  std::string run(const Launch& launch);

  // Called by running CUDA threads (runtime.h).
  void barrier(Site site);
  void warp_barrier(uint32_t mask, Site site);
  void warp_collective(uint32_t mask, Collective work, void* operand, Site site);
  void spin_pause(Site site);
  void* shared_array(const void* key, size_t bytes);
  void cp_async(const PendingCopy& copy);
  void cp_async_commit();
  void cp_async_wait(uint32_t pending);
  uint32_t shared_address(const void* p);
  void mbarrier_init(uint64_t* barrier, uint32_t arrivals, Site site);
  void mbarrier_invalidate(uint64_t* barrier, Site site);
  void mbarrier_arrive(uint64_t* barrier, uint32_t expected_bytes, Site site);
  void mbarrier_wait(uint64_t* barrier, uint32_t parity, Site site);
  void tensor_copy(const BulkCopy& copy, Site site);
  void wgmma(const WgmmaOperands& operands, Site site);
  void wgmma_fence() { self().wgmma_fenced = self().fragments_fenced = true; }
  void wgmma_commit() { self().wgmma_groups++; }
  void wgmma_wait(uint32_t pending, Site site);
  [[noreturn]] void abandon(std::string message);

  bool runs_sm90() const { return launch_.kernel->sm90; }

  // For diagnostics.
  bool in_kernel() const { return running_ != nullptr && running_ != &host_; }
  std::string where() const;
  std::string where_block() const;
  // What a faulting address belongs to, as the end of a sentence.
  std::string describe_fault(const void* address) const;
  void cpu_time_is_up();
  bool second_warning() const { return time_warnings_ > 1; }

 private:
  void run_block(uint3 index);
  void reset_block();
  SharedArray take_shared(const void* key, size_t bytes, size_t alignment);
  void make_shared_memory();
  void check_shared_memory();
  void release_shared_memory();
  void drop_spare_shared();
  static void fiber_main();
  void thread_exits();
  void run_next(bool finished);
  void wait(State state, Site site);
  ThreadState* take_ready();
  void make_ready(ThreadState& thread);
  Fiber* fiber_for(ThreadState& thread);
  void release_barrier();
  void finish(WarpOperation& operation, unsigned warp);
  void pass(unsigned chance);
  MBarrier& find_mbarrier(const uint64_t* address, const Site& site);
  void end_phase_if_complete(MBarrier& barrier);
  void complete(const BulkCopy& copy);
  bool complete_a_copy();
  std::string describe_mbarrier_wait(const ThreadState& thread) const;
  void issue(Warpgroup& group, unsigned first_thread);
  Accumulators& accumulators_of(Warpgroup& group, unsigned first_thread);
  void execute_products(Warpgroup& group, uint64_t before, std::bitset<4> warps);
  void multiply(const MatrixProduct& product, std::bitset<4> warps, Accumulators& accumulators);
  void load_operand(float* out, unsigned rows, uint64_t descriptor, bool transposed);
  [[noreturn]] void report_deadlock();
  uint32_t draw();
  void drop_fibers();
  ThreadState& self() const { return *static_cast<ThreadState*>(current_thread); }
  unsigned in_order(unsigned i, unsigned count) const {
    return launch_.order.order == Order::reversed ? count - 1 - i : i;
  }

  Launch launch_{};
  Block block_{};
  std::string error_;
  uint32_t random_ = 1;

  Fiber host_;                // the host thread's own stack
  Fiber* running_ = nullptr;
  std::vector<Fiber*> fibers_;  // all
  std::vector<Fiber*> idle_;    // those without a thread

  std::vector<ThreadState> threads_;
  std::vector<Warp> warps_;
  std::vector<ThreadState*> ready_;  // a ring: [first_, first_ + count_) modulo its size, a power of two
  unsigned first_ = 0, count_ = 0;
  unsigned exited_ = 0;
  ThreadState* preferred_ = nullptr;  // random order: who is to run next, if ready

  unsigned at_barrier_ = 0;
  Site barrier_site_;
  unsigned barrier_generation_ = 0;
  char barrier_edge_[2];  // addresses for the race checker: one for each of two successive barriers

  std::vector<MBarrier> mbarriers_;
  std::vector<BulkCopy> bulk_copies_;      // under way, oldest first
  std::vector<Warpgroup> warpgroups_;

  std::vector<SharedArray> shared_;        // of the running block
  std::vector<SharedArray> spare_shared_;  // kept for later launches: mapping costs more than most launches
  size_t static_shared_bytes_ = 0;
  char block_start_edge_, block_end_edge_;
  volatile int time_warnings_ = 0;
};

// The one whose launch runs on this host thread; null outside of launches. Cheaper than Scheduler::current().
extern __thread Scheduler* active_scheduler __attribute__((tls_model("initial-exec")));

// Installs the handlers for faults and for the time limit, once for the process and once for each host thread.
void install_fault_handlers();
// CPU time limit of the launch in progress on this host thread.
class LaunchTimer {
 public:
  LaunchTimer();
  ~LaunchTimer();
};
// The file name without its folders.
const char* base_name(const char* path);

// Copies the arguments of a launch, whose addresses the caller gave, and survives when there are fewer than the kernel
// has parameters. False: one of them could not be read.
bool read_guarded(void* dst, const void* src, size_t bytes);

}  // namespace emulator
