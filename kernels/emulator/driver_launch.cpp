// Modules, functions and launches.
//
// A module's image is not looked at: the kernels are compiled into this library and found by name. A launch copies its
// arguments by value, as the driver does, and refuses what the driver would let crash: pointers that lie in no live
// buffer, integers that are really device addresses, configurations outside of the limits.
#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>

#include "driver.h"
#include "memory.h"
#include "registry.h"
#include "scheduler.h"
#include "stream.h"
#include "tensor_map.h"
#include "text.h"

using namespace emulator;

namespace {

constexpr size_t default_shared = 48 << 10;

struct Function {
  const Kernel* kernel;
  size_t max_dynamic_shared = default_shared;  // cuFuncSetAttribute
};

struct Module {
  std::mutex mutex;
  std::map<std::string, std::unique_ptr<Function>> functions;
};

Function& function_of(Handle handle) { return *static_cast<Function*>(handle); }

// The value of an argument, aligned for any type.
class Argument {
 public:
  explicit Argument(size_t bytes) : bytes_(bytes), lines_((bytes + sizeof(Line) - 1) / sizeof(Line)) {}
  char* data() { return lines_.data()->bytes; }
  const char* data() const { return lines_.data()->bytes; }
  size_t size() const { return bytes_; }

 private:
  struct alignas(128) Line {
    char bytes[128];
  };
  size_t bytes_;
  std::vector<Line> lines_;
};
using Arguments = std::vector<Argument>;

// The value of an argument as an address, 0 if it is too short for one.
uint64_t as_address(const Argument& value) {
  uint64_t address = 0;
  if (value.size() == sizeof address) memcpy(&address, value.data(), sizeof address);
  return address;
}

Outcome copy_arguments(const Kernel& kernel, void** given, Arguments& arguments) {
  for (unsigned i = 0; i < kernel.parameter_count; i++) {
    Argument value(kernel.parameters[i].size);
    void* source = nullptr;
    if (!read_guarded(&source, given + i, sizeof source) || !read_guarded(value.data(), source, value.size())) {
      return {invalid_value, text("kernel %s: argument %u of %u cannot be read: too few arguments?", kernel.name, i,
                                  kernel.parameter_count)};
    }
    arguments.push_back(std::move(value));
  }
  return {};
}

Outcome check_arguments(const Kernel& kernel, const Arguments& arguments) {
  for (unsigned i = 0; i < kernel.parameter_count; i++) {
    const Parameter& parameter = kernel.parameters[i];
    const uint64_t value = as_address(arguments[i]);
    const void* address = reinterpret_cast<const void*>(value);
    if (parameter.kind == Kind::pointer && value != 0) {
      if (!find_buffer(address) && !is_pinned(address)) {
        return {invalid_value, text("kernel %s: argument %u should be a device pointer, but %p lies %s", kernel.name, i,
                                    address, describe_address(address).c_str())};
      }
      if (value % parameter.pointee_alignment != 0) {
        return {invalid_value, text("kernel %s: argument %u: %p is misaligned for elements that need %zu bytes",
                                    kernel.name, i, address, parameter.pointee_alignment)};
      }
    } else if (parameter.kind == Kind::integer && value != 0 && find_buffer(address)) {
      return {invalid_value,
              text("kernel %s: argument %u should be an integer, but %p is a device pointer", kernel.name, i, address)};
    } else if (parameter.kind == Kind::tensor_map) {
      const std::string fault = check_tensor(*reinterpret_cast<const TensorMap*>(arguments[i].data()));
      if (!fault.empty()) return {invalid_value, text("kernel %s: argument %u %s", kernel.name, i, fault.c_str())};
    }
  }
  return {};
}

// What was passed may have been overrun without touching a guard page.
Outcome check_buffers_after(const Kernel& kernel, const Arguments& arguments) {
  for (unsigned i = 0; i < kernel.parameter_count; i++) {
    if (kernel.parameters[i].kind != Kind::pointer) continue;
    const std::string fault = check_surroundings(reinterpret_cast<const void*>(as_address(arguments[i])));
    if (!fault.empty()) return {illegal_address, text("kernel %s, argument %u: %s", kernel.name, i, fault.c_str())};
  }
  return {};
}

Outcome check_configuration(const Function& function, dim3 grid, dim3 block, size_t shared) {
  const Kernel& kernel = *function.kernel;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64) {
    return {invalid_value, text("kernel %s: block of %ux%ux%u threads", kernel.name, block.x, block.y, block.z)};
  }
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 2147483647u || grid.y > 65535 || grid.z > 65535) {
    return {invalid_value, text("kernel %s: grid of %ux%ux%u blocks", kernel.name, grid.x, grid.y, grid.z)};
  }
  if (kernel.max_threads != 0 && threads > kernel.max_threads) {
    return {invalid_value, text("kernel %s: block of %u threads, __launch_bounds__ promises at most %u", kernel.name,
                                static_cast<unsigned>(threads), kernel.max_threads)};
  }
  if (shared > function.max_dynamic_shared) {
    return {invalid_value, text("kernel %s: %zu bytes of dynamic shared memory, the limit is %zu until cuFuncSetAttribute "
                                "raises it (at most to %d)", kernel.name, shared, function.max_dynamic_shared,
                                shared_memory_opt_in())};
  }
  return {};
}

Outcome launch(Handle handle, dim3 grid, dim3 block, size_t shared, Handle stream_handle, void** given) {
  const StreamRef stream = find_stream(stream_handle);
  if (stream == nullptr) return {invalid_handle, "no such stream"};
  const Function& function = function_of(handle);
  const Kernel& kernel = *function.kernel;
  if (Outcome bad = check_configuration(function, grid, block, shared); !bad.ok()) return bad;
  Arguments arguments;
  if (Outcome bad = copy_arguments(kernel, given, arguments); !bad.ok()) return bad;
  if (Outcome bad = check_arguments(kernel, arguments); !bad.ok()) return bad;

  const size_t shared_limit =
      function.max_dynamic_shared > default_shared ? static_cast<size_t>(shared_memory_opt_in()) : default_shared;
  return enqueue(stream, [=, &kernel](OrderOption order) -> Outcome {
    // Again, because a graph may be replayed when its buffers are gone.
    if (Outcome bad = check_arguments(kernel, arguments); !bad.ok()) return bad;
    Arguments values = arguments;  // kernels may assign to their parameters
    std::vector<void*> addresses;
    for (auto& value : values) addresses.push_back(value.data());
    // The launch arguments are shared by all CUDA threads of the launch; each makes its own copy in Kernel::call.
    const std::string error =
        Scheduler::current().run({&kernel, grid, block, shared, shared_limit, addresses.data(), order});
    if (!error.empty()) return {launch_failed, error};
    return check_buffers_after(kernel, arguments);
  });
}

}  // namespace

DRIVER_API cuModuleLoadData(Handle* result, const void*) {
  return driver_call("cuModuleLoadData", [&] {
    if (Outcome forbidden = forbid_while_capturing("cuModuleLoadData"); !forbidden.ok()) return forbidden;
    *result = new Module;
    return Outcome{};
  });
}
DRIVER_API cuModuleUnload(Handle module) {
  return driver_call("cuModuleUnload", [&] {
    Outcome waited = wait_all();
    delete static_cast<Module*>(module);
    return waited;
  });
}
DRIVER_API cuModuleGetFunction(Handle* result, Handle module_handle, const char* name) {
  return driver_call("cuModuleGetFunction", [&]() -> Outcome {
    const Kernel* kernel = find_kernel(name);
    if (kernel == nullptr) return {not_found, text("no kernel is called %s", name)};
    if (kernel->sm90 && (capability_major() != 9 || capability_minor() != 0)) {
      return {not_found, text("kernel %s is there for sm_90a only", name)};
    }
    auto& module = *static_cast<Module*>(module_handle);
    const std::lock_guard lock(module.mutex);
    auto& function = module.functions[name];
    if (function == nullptr) function = std::make_unique<Function>(Function{kernel});
    *result = function.get();
    return {};
  });
}

// CUfunction_attribute's numbers: 0 MAX_THREADS_PER_BLOCK, 8 MAX_DYNAMIC_SHARED_SIZE_BYTES,
// 9 PREFERRED_SHARED_MEMORY_CARVEOUT. Registers and local memory are the compiler's and not known here.
DRIVER_API cuFuncGetAttribute(int* value, int attribute, Handle handle) {
  const Function& function = function_of(handle);
  switch (attribute) {
    case 0: *value = function.kernel->max_threads != 0 ? static_cast<int>(function.kernel->max_threads) : 1024; break;
    case 8: *value = static_cast<int>(function.max_dynamic_shared); break;
    default: *value = 0;
  }
  return success;
}
DRIVER_API cuFuncSetAttribute(Handle handle, int attribute, int value) {
  return driver_call("cuFuncSetAttribute", [&]() -> Outcome {
    if (attribute == 9) return {};
    if (attribute != 8) return {invalid_value, text("function attribute %d cannot be set", attribute)};
    if (value < 0 || value > shared_memory_opt_in()) {
      return {invalid_value, text("%d bytes of dynamic shared memory, the device has %d", value, shared_memory_opt_in())};
    }
    function_of(handle).max_dynamic_shared = static_cast<size_t>(value);
    return {};
  });
}
DRIVER_API cuFuncGetParamInfo(Handle handle, size_t index, size_t* offset, size_t* size) {
  const Kernel& kernel = *function_of(handle).kernel;
  if (index >= kernel.parameter_count) return invalid_value;
  size_t position = 0;
  for (size_t i = 0; i <= index; i++) {
    const Parameter& p = kernel.parameters[i];
    position = (position + p.alignment - 1) / p.alignment * p.alignment;
    *offset = position;
    *size = p.size;
    position += p.size;
  }
  return success;
}
// By threads and shared memory alone: registers are not known.
DRIVER_API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Handle, int threads, size_t dynamic_shared) {
  const size_t by_threads = 2048 / static_cast<size_t>(std::max(threads, 1));
  const size_t by_shared = (228 << 10) / (dynamic_shared + 1024);
  *blocks = static_cast<int>(std::min({by_threads, by_shared, size_t{32}}));
  return success;
}

DRIVER_API cuLaunchKernel(Handle function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                          unsigned block_y, unsigned block_z, unsigned shared_bytes, Handle stream, void** arguments,
                          void** extra) {
  return driver_call("cuLaunchKernel", [&]() -> Outcome {
    if (extra != nullptr) return {not_supported, "arguments by CU_LAUNCH_PARAM_BUFFER"};
    return launch(function, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes, stream, arguments);
  });
}
