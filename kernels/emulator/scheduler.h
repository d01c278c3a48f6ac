// Runs the blocks of a launch: one scheduler for each host thread, its CUDA threads as fibers. See runtime.h for the idea.
//   scheduler.cpp    launch, blocks, the choice of who runs next
//   collectives.cpp  barrier, warp operations, asynchronous copies, shared memory
//   diagnostics.cpp  the errors: fail(), deadlock report, faults of the processor, endless launches
#pragma once

#include <string>
#include <vector>

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

enum class State : uint8_t { ready, at_barrier, in_warp_operation, exited };

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
  void warp_collective(uint32_t mask, Collective work, void* operand, Site site);
  void spin_pause(Site site);
  void* shared_array(const void* key, size_t bytes);
  void cp_async(const PendingCopy& copy);
  void cp_async_commit();
  void cp_async_wait(uint32_t pending);
  [[noreturn]] void abandon(std::string message);

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

  unsigned at_barrier_ = 0;
  Site barrier_site_;
  unsigned barrier_generation_ = 0;
  char barrier_edge_[2];  // addresses for the race checker: one for each of two successive barriers

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
