// What can be set from outside: by environment variables, or at run time for the calling host thread alone, so that
// tests that run side by side do not disturb each other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace emulator {

// Empty if all variables were understood.
const std::string& environment_error();

// The order in which threads, blocks and independent streams run. forward also does as little as a wait demands,
// reversed as much as it can; random draws everything.
enum class Order { forward, reversed, random };

struct OrderOption {
  Order order = Order::forward;
  uint32_t seed = 1;
};

// L2B_EMULATOR_ORDER = forward | reversed | random[:seed]
OrderOption order_option();
// Sets it for the calling thread; null returns to the environment's. False: not understood, nothing changed.
bool set_order(const char* spec);

// L2B_EMULATOR_FAIL = FUNCTION:N[:CODE]: from now on the calling thread's N-th call of that driver function fails with
// CODE (default: 2 for allocations, else 999). Counts one call; returns the code, or 0 for no failure.
int planned_failure(const char* function);
bool set_failure(const char* spec);

// Whether the calling thread's cuStreamWaitEvent does anything: a test of events takes them away and must then fail.
bool event_waits();
void set_event_waits(bool kept);

// Whether a copy from pageable host memory that the calling thread asks for has read it when the call returns. The driver
// may leave that to the copy itself.
bool staging();
void set_staging(bool kept);

size_t memory_size();              // L2B_EMULATOR_MEMORY, bytes or with K, M, G; default 8G
int capability_major();            // L2B_EMULATOR_CC, default 9.0
int capability_minor();
unsigned launch_seconds();         // L2B_EMULATOR_LAUNCH_SECONDS: CPU time after which a launch counts as endless
bool report_leaks();               // L2B_EMULATOR_LEAKS=1: list buffers never freed at the end of the process
bool verbose();                    // L2B_EMULATOR_VERBOSE=1: print every error as it is returned

}  // namespace emulator
