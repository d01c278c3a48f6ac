// Devices, contexts, error names; the functions by which tests steer the emulator.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "driver.h"
#include "memory.h"
#include "options.h"
#include "registry.h"
#include "stream.h"
#include "text.h"

namespace emulator {

static thread_local std::string last_error;

void keep_error(const char* function, const Outcome& outcome) {
  if (outcome.code == not_ready) return;  // an answer, no error
  last_error = std::string(function) + ": " + outcome.text;
  if (verbose()) fprintf(stderr, "emulator: %s\n", last_error.c_str());
}

namespace {

// One device, one context; a context's handle is this address.
char context;
thread_local void* current_context = nullptr;

struct LeakReport {
  ~LeakReport() {
    if (!report_leaks()) return;
    const std::string list = list_buffers();
    if (!list.empty()) fprintf(stderr, "emulator: device buffers never freed:\n%s", list.c_str());
  }
} leak_report;

// CUdevice_attribute's numbers. An H100's values, where the engine may look at them.
int attribute_value(int attribute) {
  switch (attribute) {
    case 1: return 1024;             // MAX_THREADS_PER_BLOCK
    case 2: case 3: return 1024;     // MAX_BLOCK_DIM_X, Y
    case 4: return 64;               // MAX_BLOCK_DIM_Z
    case 5: return 2147483647;       // MAX_GRID_DIM_X
    case 6: case 7: return 65535;    // MAX_GRID_DIM_Y, Z
    case 8: return 48 << 10;         // MAX_SHARED_MEMORY_PER_BLOCK
    case 10: return 32;              // WARP_SIZE
    case 12: return 65536;           // MAX_REGISTERS_PER_BLOCK
    case 13: return 1980000;         // CLOCK_RATE, kHz
    case 16: return 1;               // MULTIPROCESSOR_COUNT: a resident block takes every tile; small work fills it
    case 31: return 1;               // CONCURRENT_KERNELS
    case 36: return 2619000;         // MEMORY_CLOCK_RATE, kHz
    case 37: return 5120;            // GLOBAL_MEMORY_BUS_WIDTH, bits
    case 38: return 50 << 20;        // L2_CACHE_SIZE
    case 39: return 2048;            // MAX_THREADS_PER_MULTIPROCESSOR
    case 41: return 1;               // UNIFIED_ADDRESSING
    case 75: return capability_major();  // COMPUTE_CAPABILITY_MAJOR
    case 76: return capability_minor();  // COMPUTE_CAPABILITY_MINOR
    case 81: return 228 << 10;       // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
    case 82: return 65536;           // MAX_REGISTERS_PER_MULTIPROCESSOR
    case 97: return shared_memory_opt_in();  // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    case 106: return 32;             // MAX_BLOCKS_PER_MULTIPROCESSOR
    case 115: return 1;              // MEMORY_POOLS_SUPPORTED
    default: return 0;
  }
}

struct ErrorName {
  int code;
  const char *name, *description;
};
constexpr ErrorName error_names[] = {
    {success, "CUDA_SUCCESS", "no error"},
    {invalid_value, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {out_of_memory, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {invalid_device, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {invalid_handle, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {not_found, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {not_ready, "CUDA_ERROR_NOT_READY", "device not ready"},
    {illegal_address, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {launch_failed, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {not_supported, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {capture_unsupported, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {capture_invalidated, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {capture_unmatched, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not ended in the same stream as it began"},
    {capture_unjoined, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
    {capture_isolation, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"},
    {capture_implicit, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", "operation would make the legacy stream depend on a capturing blocking stream"},
    {captured_event, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"},
    {capture_wrong_thread, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "attempt to terminate a thread-local capture sequence from another thread"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

const ErrorName* find_error(int code) {
  for (const ErrorName& error : error_names) {
    if (error.code == code) return &error;
  }
  return nullptr;
}

}  // namespace

int shared_memory_opt_in() {
  if (capability_major() == 8 && capability_minor() == 0) return 163 << 10;
  return capability_major() >= 9 ? 227 << 10 : 99 << 10;
}

}  // namespace emulator

using namespace emulator;

DRIVER_API cuInit(unsigned) {
  return driver_call("cuInit", []() -> Outcome {
    if (!environment_error().empty()) return {invalid_value, environment_error()};
    return {};
  });
}
DRIVER_API cuDriverGetVersion(int* version) {
  *version = 13000;
  return success;
}
DRIVER_API cuDeviceGetCount(int* count) {
  *count = 1;
  return success;
}
DRIVER_API cuDeviceGet(CUdevice* device, int ordinal) {
  return driver_call("cuDeviceGet", [&]() -> Outcome {
    *device = ordinal;
    if (ordinal != 0) return {invalid_device, text("device %d does not exist, the emulator has one", ordinal)};
    return {};
  });
}
DRIVER_API cuDeviceGetName(char* name, int length, CUdevice) {
  snprintf(name, static_cast<size_t>(length), "CPU emulator");
  return success;
}
DRIVER_API cuDeviceGetUuid_v2(char* uuid, CUdevice) {
  memcpy(uuid, "l2b-cpu-emulator", 16);
  return success;
}
DRIVER_API cuDeviceGetAttribute(int* value, int attribute, CUdevice) {
  *value = attribute_value(attribute);
  return success;
}
DRIVER_API cuDeviceTotalMem_v2(size_t* bytes, CUdevice) {
  *bytes = memory_size();
  return success;
}

DRIVER_API cuDevicePrimaryCtxRetain(Handle* result, CUdevice) {
  return driver_call("cuDevicePrimaryCtxRetain", [&] {
    *result = &context;
    return Outcome{};
  });
}
DRIVER_API cuDevicePrimaryCtxRelease_v2(CUdevice) { return success; }
DRIVER_API cuCtxSetCurrent(Handle handle) {
  current_context = handle;
  return success;
}
DRIVER_API cuCtxGetCurrent(Handle* handle) {
  *handle = current_context;
  return success;
}
DRIVER_API cuCtxSetFlags(unsigned) { return success; }
DRIVER_API cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  *least = *greatest = 0;
  return success;
}
DRIVER_API cuCtxSynchronize() {
  return driver_call("cuCtxSynchronize", [] {
    if (Outcome forbidden = forbid_while_capturing("cuCtxSynchronize"); !forbidden.ok()) return forbidden;
    return wait_all();
  });
}

DRIVER_API cuGetErrorName(int code, const char** name) {
  const ErrorName* error = find_error(code);
  *name = error != nullptr ? error->name : "CUDA_ERROR_UNKNOWN";
  return success;
}
DRIVER_API cuGetErrorString(int code, const char** description) {
  const ErrorName* error = find_error(code);
  *description = error != nullptr ? error->description : "unknown error";
  return success;
}

// ---- for tests, found by dlsym

// What the calling host thread's last failing driver call had to say; empty if none failed. Valid until the next one.
EXPORTED const char* l2b_emulator_last_error() { return last_error.c_str(); }

// See options.h. 1: understood.
EXPORTED int l2b_emulator_set_order(const char* spec) { return set_order(spec) ? 1 : 0; }
EXPORTED void l2b_emulator_set_event_waits(int kept) { set_event_waits(kept != 0); }
EXPORTED void l2b_emulator_set_staging(int kept) { set_staging(kept != 0); }
EXPORTED int l2b_emulator_set_failure(const char* spec) { return set_failure(spec) ? 1 : 0; }

EXPORTED void l2b_emulator_memory_in_use(size_t* buffers, size_t* bytes) { device_memory_in_use(*buffers, *bytes); }

// Name of the index-th kernel and the sizes of its parameters, comma-separated; null past the last one.
EXPORTED const char* l2b_emulator_kernel(size_t index, const char** sizes) {
  static const std::vector<const Kernel*> kernels = all_kernels();
  static thread_local std::string list;
  if (index >= kernels.size()) return nullptr;
  list.clear();
  for (unsigned i = 0; i < kernels[index]->parameter_count; i++) {
    list += (i > 0 ? "," : "") + std::to_string(kernels[index]->parameters[i].size);
  }
  *sizes = list.c_str();
  return kernels[index]->name;
}
