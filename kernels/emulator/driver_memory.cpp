// Allocation, copies and memset.
//
// Copies check both ends against the live buffers, when they are queued and again when they run. A pageable host buffer
// behaves as mostly with the real driver: as a source it is copied at once (the driver stages it, which it promises nowhere:
// set_staging), as a destination the call returns when the data has arrived. Pinned memory is read and written when the copy
// runs: too early a look shows.
#include <cstring>
#include <memory>
#include <vector>

#include "driver.h"
#include "memory.h"
#include "sanitizer.h"
#include "stream.h"
#include "text.h"

using namespace emulator;

namespace {

void* pointer(CUdeviceptr address) { return reinterpret_cast<void*>(address); }

Outcome check_device_range(const char* end, CUdeviceptr address, size_t bytes) {
  const std::string fault = check_range(pointer(address), bytes);
  if (fault.empty()) return {};
  return {invalid_value, std::string(end) + ": " + fault};
}

Outcome stream_of(Handle handle, StreamRef& stream) {
  stream = find_stream(handle);
  return stream == nullptr ? Outcome{invalid_handle, "no such stream"} : Outcome{};
}

Outcome allocate(CUdeviceptr* result, size_t bytes) {
  if (bytes == 0) return {invalid_value, "allocation of 0 bytes"};
  void* address = allocate_device(bytes);
  if (address == nullptr) {
    size_t buffers, used;
    device_memory_in_use(buffers, used);
    return {out_of_memory, text("%zu bytes asked for, %zu of %zu are free", bytes, memory_size() - used, memory_size())};
  }
  *result = reinterpret_cast<CUdeviceptr>(address);
  return {};
}

Outcome release(CUdeviceptr address) {
  const std::string fault = free_device(pointer(address));
  return fault.empty() ? Outcome{} : Outcome{invalid_value, fault};
}

Outcome queue_memset(CUdeviceptr dst, unsigned char value, size_t bytes, const StreamRef& stream) {
  if (Outcome bad = check_device_range("destination", dst, bytes); !bad.ok()) return bad;
  return enqueue(stream, [=](OrderOption) {
    if (Outcome bad = check_device_range("destination", dst, bytes); !bad.ok()) return bad;
    sanitizer::fill(pointer(dst), value, bytes);
    return Outcome{};
  });
}

Outcome queue_host_to_device(CUdeviceptr dst, const void* src, size_t bytes, const StreamRef& stream) {
  if (Outcome bad = check_device_range("destination", dst, bytes); !bad.ok()) return bad;
  // A captured copy keeps the address: its source is read at every replay.
  std::shared_ptr<std::vector<char>> staged;
  if (!is_pinned(src) && staging() && capture_status(stream) == 0) {
    staged = std::make_shared<std::vector<char>>(bytes);
    sanitizer::copy(staged->data(), src, bytes);
  }
  return enqueue(stream, [=](OrderOption) {
    if (Outcome bad = check_device_range("destination", dst, bytes); !bad.ok()) return bad;
    sanitizer::copy(pointer(dst), staged != nullptr ? staged->data() : src, bytes);
    return Outcome{};
  });
}

Outcome queue_device_to_host(void* dst, CUdeviceptr src, size_t bytes, const StreamRef& stream) {
  if (Outcome bad = check_device_range("source", src, bytes); !bad.ok()) return bad;
  Outcome queued = enqueue(stream, [=](OrderOption) {
    if (Outcome bad = check_device_range("source", src, bytes); !bad.ok()) return bad;
    sanitizer::copy(dst, pointer(src), bytes);
    return Outcome{};
  });
  if (!queued.ok() || is_pinned(dst) || capture_status(stream) != 0) return queued;
  return wait_stream(stream);
}

Outcome queue_device_to_device(CUdeviceptr dst, CUdeviceptr src, size_t bytes, const StreamRef& stream) {
  auto check = [=]() -> Outcome {
    if (Outcome bad = check_device_range("destination", dst, bytes); !bad.ok()) return bad;
    if (Outcome bad = check_device_range("source", src, bytes); !bad.ok()) return bad;
    if (dst < src + bytes && src < dst + bytes && bytes > 0) return {invalid_value, "source and destination overlap"};
    return {};
  };
  if (Outcome bad = check(); !bad.ok()) return bad;
  return enqueue(stream, [=](OrderOption) {
    if (Outcome bad = check(); !bad.ok()) return bad;
    sanitizer::copy(pointer(dst), pointer(src), bytes);
    return Outcome{};
  });
}

// A synchronous call: the same on the null stream, then a wait; forbidden while capturing.
template <class Queue>
int synchronous(const char* function, Queue queue) {
  return driver_call(function, [&] {
    if (Outcome forbidden = forbid_while_capturing(function); !forbidden.ok()) return forbidden;
    const StreamRef stream = find_stream(nullptr);
    if (Outcome queued = queue(stream); !queued.ok()) return queued;
    return wait_stream(stream);
  });
}

template <class Queue>
int asynchronous(const char* function, Handle handle, Queue queue) {
  return driver_call(function, [&] {
    StreamRef stream;
    if (Outcome unknown = stream_of(handle, stream); !unknown.ok()) return unknown;
    return queue(stream);
  });
}

}  // namespace

DRIVER_API cuMemAlloc_v2(CUdeviceptr* result, size_t bytes) {
  return driver_call("cuMemAlloc_v2", [&] {
    if (Outcome forbidden = forbid_while_capturing("cuMemAlloc_v2"); !forbidden.ok()) return forbidden;
    return allocate(result, bytes);
  });
}

// Frees only when nothing queued can use the buffer any more, as the driver does.
DRIVER_API cuMemFree_v2(CUdeviceptr address) {
  return driver_call("cuMemFree_v2", [&]() -> Outcome {
    if (address == 0) return {};
    if (Outcome forbidden = forbid_while_capturing("cuMemFree_v2"); !forbidden.ok()) return forbidden;
    Outcome waited = wait_all();
    Outcome released = release(address);
    return waited.ok() ? released : waited;
  });
}

// Allocating and freeing in a capture would make memory nodes, which are left out: no step of the engine allocates.
static Outcome refuse_in_capture(const char* function) {
  if (Outcome forbidden = forbid_while_capturing(function); !forbidden.ok()) return forbidden;
  return {not_supported, std::string(function) + " in a relaxed capture (memory nodes)"};
}

// Ordered in a stream. The memory itself is there at once: a use that runs before this point of the stream would go
// unnoticed, one after the free does not.
DRIVER_API cuMemAllocAsync(CUdeviceptr* result, size_t bytes, Handle handle) {
  return asynchronous("cuMemAllocAsync", handle, [&](const StreamRef& stream) -> Outcome {
    if (capture_status(stream) != 0) return refuse_in_capture("cuMemAllocAsync");
    return allocate(result, bytes);
  });
}
DRIVER_API cuMemFreeAsync(CUdeviceptr address, Handle handle) {
  return asynchronous("cuMemFreeAsync", handle, [&](const StreamRef& stream) -> Outcome {
    if (address == 0) return {};
    if (capture_status(stream) != 0) return refuse_in_capture("cuMemFreeAsync");
    return enqueue(stream, [=](OrderOption) { return release(address); });
  });
}

// There is one pool, which keeps nothing: every attribute reads 0 and takes any value.
DRIVER_API cuDeviceGetDefaultMemPool(Handle* pool, CUdevice) {
  static char the_pool;
  *pool = &the_pool;
  return success;
}
DRIVER_API cuDeviceGetMemPool(Handle* pool, CUdevice device) { return cuDeviceGetDefaultMemPool(pool, device); }
DRIVER_API cuMemPoolSetAttribute(Handle, int, void*) { return success; }
DRIVER_API cuMemPoolGetAttribute(Handle, int, uint64_t* value) {
  *value = 0;
  return success;
}
DRIVER_API cuMemPoolTrimTo(Handle, size_t) { return success; }

DRIVER_API cuMemHostAlloc(void** result, size_t bytes, unsigned) {
  return driver_call("cuMemHostAlloc", [&]() -> Outcome {
    *result = allocate_pinned(bytes);
    return *result == nullptr ? Outcome{out_of_memory, text("%zu bytes of pinned memory", bytes)} : Outcome{};
  });
}
DRIVER_API cuMemFreeHost(void* address) {
  return driver_call("cuMemFreeHost", [&]() -> Outcome {
    Outcome waited = wait_all();
    if (!free_pinned(address)) return {invalid_value, text("%p is no pinned buffer", address)};
    return waited;
  });
}

DRIVER_API cuMemGetInfo_v2(size_t* available, size_t* total) {
  return driver_call("cuMemGetInfo_v2", [&] {
    size_t buffers, used;
    device_memory_in_use(buffers, used);
    *total = memory_size();
    *available = *total - used;
    return Outcome{};
  });
}

DRIVER_API cuMemsetD8Async(CUdeviceptr dst, unsigned char value, size_t bytes, Handle handle) {
  return asynchronous("cuMemsetD8Async", handle,
                      [&](const StreamRef& stream) { return queue_memset(dst, value, bytes, stream); });
}
DRIVER_API cuMemsetD8_v2(CUdeviceptr dst, unsigned char value, size_t bytes) {
  return synchronous("cuMemsetD8_v2", [&](const StreamRef& stream) { return queue_memset(dst, value, bytes, stream); });
}
DRIVER_API cuMemcpyHtoDAsync_v2(CUdeviceptr dst, const void* src, size_t bytes, Handle handle) {
  return asynchronous("cuMemcpyHtoDAsync_v2", handle,
                      [&](const StreamRef& stream) { return queue_host_to_device(dst, src, bytes, stream); });
}
DRIVER_API cuMemcpyHtoD_v2(CUdeviceptr dst, const void* src, size_t bytes) {
  return synchronous("cuMemcpyHtoD_v2",
                     [&](const StreamRef& stream) { return queue_host_to_device(dst, src, bytes, stream); });
}
DRIVER_API cuMemcpyDtoHAsync_v2(void* dst, CUdeviceptr src, size_t bytes, Handle handle) {
  return asynchronous("cuMemcpyDtoHAsync_v2", handle,
                      [&](const StreamRef& stream) { return queue_device_to_host(dst, src, bytes, stream); });
}
DRIVER_API cuMemcpyDtoH_v2(void* dst, CUdeviceptr src, size_t bytes) {
  return synchronous("cuMemcpyDtoH_v2",
                     [&](const StreamRef& stream) { return queue_device_to_host(dst, src, bytes, stream); });
}
DRIVER_API cuMemcpyDtoDAsync_v2(CUdeviceptr dst, CUdeviceptr src, size_t bytes, Handle handle) {
  return asynchronous("cuMemcpyDtoDAsync_v2", handle,
                      [&](const StreamRef& stream) { return queue_device_to_device(dst, src, bytes, stream); });
}
DRIVER_API cuMemcpyDtoD_v2(CUdeviceptr dst, CUdeviceptr src, size_t bytes) {
  return synchronous("cuMemcpyDtoD_v2",
                     [&](const StreamRef& stream) { return queue_device_to_device(dst, src, bytes, stream); });
}
