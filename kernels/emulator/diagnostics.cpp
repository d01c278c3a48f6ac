// Errors of a launch, and how a fault of the processor or an endless loop becomes one.
//
// A signal handler may do next to nothing. It therefore only redirects the interrupted thread to a function on a stack
// kept for that purpose, which then composes the message at leisure and abandons the block.
#include <setjmp.h>
#include <signal.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>
#include <sys/syscall.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>

#include "memory.h"
#include "sanitizer.h"
#include "scheduler.h"
#include "text.h"

namespace emulator {

const char* base_name(const char* path) {
  const char* slash = strrchr(path, '/');
  return slash != nullptr ? slash + 1 : path;
}

std::string Scheduler::where_block() const {
  const uint3 b = block_.index;
  return text("kernel %s, block (%u,%u,%u)", launch_.kernel->name, b.x, b.y, b.z);
}

std::string Scheduler::where() const {
  const uint3 t = current_thread->index;
  return where_block() + text(", thread (%u,%u,%u)", t.x, t.y, t.z);
}

void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const std::string message = format_text(format, arguments);
  va_end(arguments);
  active_scheduler->abandon(active_scheduler->where() + ": " + message);
}

// "0-31,40": the first eight runs of consecutive numbers.
static std::string list_runs(const std::vector<unsigned>& numbers) {
  std::string list;
  unsigned runs = 0;
  for (size_t i = 0; i < numbers.size();) {
    size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) last++;
    if (runs > 0) list += ",";
    if (runs++ == 8) return list + "...";
    list += std::to_string(numbers[i]);
    if (last > i) list += "-" + std::to_string(numbers[last]);
    i = last + 1;
  }
  return list;
}

void Scheduler::report_deadlock() {
  std::map<std::string, std::vector<unsigned>> groups;
  for (const ThreadState& t : threads_) {
    std::string state;
    if (t.state == State::exited) state = "exited";
    else if (t.state == State::at_barrier) state = text("wait at the barrier %s:%u", base_name(t.site.file), t.site.line);
    else if (t.state == State::at_mbarrier) state = describe_mbarrier_wait(t);
    else if (t.state == State::in_warpgroup_operation) state = text("wait in the warpgroup operation %s:%u", base_name(t.site.file), t.site.line);
    else state = text("wait in the warp operation %s:%u (mask %08x)", base_name(t.site.file), t.site.line, t.mask);
    groups[state].push_back(t.linear);
  }
  std::string message = where_block() + ": deadlock:";
  for (const auto& [state, threads] : groups) {
    message += text("\n  %zu threads %s [%s]", threads.size(), state.c_str(), list_runs(threads).c_str());
  }
  abandon(message);
}

std::string Scheduler::describe_fault(const void* address) const {
  for (const Fiber* fiber : fibers_) {
    if (in_stack_guard(*fiber, address)) return "stack overflow of the thread";
  }
  const char* p = static_cast<const char*>(address);
  for (const SharedArray& array : shared_) {
    if (!in_guard(array, address)) continue;
    const char* end = array.data + array.bytes;
    if (p >= end) return text("access %td bytes past the end of %s", p - end, describe(array).c_str());
    return text("access %td bytes before %s", array.data - p, describe(array).c_str());
  }
  return text("access to %p, %s", address, describe_address(address).c_str());
}

void Scheduler::cpu_time_is_up() { time_warnings_ = time_warnings_ + 1; }

namespace {

constexpr size_t rescue_stack_bytes = 64 << 10;
struct Fault {
  int signal = 0;
  void* address = nullptr;
};
thread_local Fault fault;
thread_local sigjmp_buf* guarded_read = nullptr;
// On the heap: thread-local memory of a library that is loaded late is scarce.
thread_local std::unique_ptr<char[]> rescue_stack;

constexpr int faults[] = {SIGSEGV, SIGBUS, SIGFPE};
struct sigaction previous[3];

// Runs on rescue_stack in place of the faulting thread.
[[noreturn]] void rescue() {
  if (fault.signal == SIGXCPU) fail("the launch used more than %u seconds of CPU time: an endless loop?", launch_seconds());
  if (fault.signal == SIGFPE) fail("integer division by zero");
  if (fault.address == nullptr) fail("access to a null, impossible or misaligned address");
  fail("%s", active_scheduler->describe_fault(fault.address).c_str());
}

void redirect_to_rescue(void* context, int signal, void* address) {
  fault = {signal, address};
  auto* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  // As if called: 8 off a multiple of 16.
  registers[REG_RSP] = (reinterpret_cast<greg_t>(rescue_stack.get()) + rescue_stack_bytes) / 16 * 16 - 8;
  registers[REG_RIP] = reinterpret_cast<greg_t>(&rescue);
}

void on_fault(int signal, siginfo_t* info, void* context) {
  if (guarded_read != nullptr) siglongjmp(*guarded_read, 1);
  if (active_scheduler != nullptr && active_scheduler->in_kernel()) {
    redirect_to_rescue(context, signal, info->si_addr);
    return;
  }
  // Not ours: hand it to whoever was there before (the host program's own handler, or the default).
  for (int i = 0; i < 3; i++) {
    if (faults[i] != signal) continue;
    if ((previous[i].sa_flags & SA_SIGINFO) != 0) {
      previous[i].sa_sigaction(signal, info, context);
    } else if (previous[i].sa_handler == SIG_DFL || previous[i].sa_handler == SIG_IGN) {
      sigaction(signal, &previous[i], nullptr);  // returning repeats the access, which now meets the default
    } else {
      previous[i].sa_handler(signal);
    }
  }
}

void on_time(int, siginfo_t* info, void* context) {
  auto* scheduler = static_cast<Scheduler*>(info->si_value.sival_ptr);
  scheduler->cpu_time_is_up();
  // The first warning is read at the next switch. When a second comes, the kernel has not switched since, so it is the
  // kernel's own code that was interrupted, not the scheduler's: redirecting is safe.
  if (scheduler->second_warning() && scheduler->in_kernel()) redirect_to_rescue(context, SIGXCPU, nullptr);
}

void give_this_thread_its_stacks() {
  if (rescue_stack != nullptr) return;
  rescue_stack.reset(new char[rescue_stack_bytes]);
  stack_t present{};
  sigaltstack(nullptr, &present);
  if ((present.ss_flags & SS_DISABLE) == 0) return;  // the host program made one
  constexpr size_t bytes = 32 << 10;
  struct SignalStack {
    std::unique_ptr<char[]> memory{new char[bytes]};
    ~SignalStack() {
      stack_t none{};
      none.ss_flags = SS_DISABLE;
      sigaltstack(&none, nullptr);
    }
  };
  static thread_local SignalStack stack;
  stack_t mine{};
  mine.ss_sp = stack.memory.get();
  mine.ss_size = bytes;
  sigaltstack(&mine, nullptr);
}

}  // namespace

void install_fault_handlers() {
  static const bool installed = [] {
    if (sanitizer::present) return false;  // it has handlers of its own
    struct sigaction action {};
    action.sa_sigaction = on_fault;
    // NODEFER: the handler's end is not reached by the redirected thread's next fault.
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < 3; i++) sigaction(faults[i], &action, &previous[i]);
    return true;
  }();
  (void)installed;
  give_this_thread_its_stacks();
  static const bool timed = [] {
    struct sigaction action {};
    action.sa_sigaction = on_time;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    sigaction(SIGXCPU, &action, nullptr);
    return true;
  }();
  (void)timed;
}

// One timer for each host thread, on its own CPU clock: a busy machine ends no launch.
static timer_t thread_timer() {
  static thread_local struct Owner {
    timer_t timer{};
    Owner() {
      sigevent event{};
      event.sigev_notify = SIGEV_THREAD_ID;
      event.sigev_signo = SIGXCPU;
      event.sigev_value.sival_ptr = &Scheduler::current();
      event._sigev_un._tid = static_cast<pid_t>(syscall(SYS_gettid));
      timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer);
    }
    ~Owner() { timer_delete(timer); }
  } owner;
  return owner.timer;
}

LaunchTimer::LaunchTimer() {
  const time_t seconds = launch_seconds();
  const itimerspec spec{{1, 0}, {seconds, 0}};  // then every second
  timer_settime(thread_timer(), 0, &spec, nullptr);
}

LaunchTimer::~LaunchTimer() {
  const itimerspec off{};
  timer_settime(thread_timer(), 0, &off, nullptr);
}

bool read_guarded(void* dst, const void* src, size_t bytes) {
  install_fault_handlers();
  sigjmp_buf here;
  if (sigsetjmp(here, 0) != 0) {
    guarded_read = nullptr;
    return false;
  }
  guarded_read = &here;
  memcpy(dst, src, bytes);
  guarded_read = nullptr;
  return true;
}

}  // namespace emulator
