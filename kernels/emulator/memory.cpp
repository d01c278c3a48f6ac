// Device and pinned memory: see memory.h.
#include "memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <deque>
#include <map>
#include <mutex>

#include "options.h"
#include "sanitizer.h"
#include "text.h"

namespace emulator {

namespace {

constexpr size_t page = 4096;
constexpr size_t alignment = 256;  // of the real driver
constexpr uint8_t fresh = 0xFF;    // NaN as f32, f64 and bf16

// Around a buffer: NaN again as f32 and bf16 (so that reading it shows), but different from fresh memory.
uint8_t surrounding(const char* p) { return reinterpret_cast<uintptr_t>(p) % 2 == 0 ? 0xA5 : 0xFF; }

struct Allocation {
  size_t bytes;
  char* pages;  // what may be touched: [pages, pages + page_bytes), guards outside
  size_t page_bytes;
};

struct Freed {
  char* address;
  Allocation allocation;
};

std::mutex mutex;
// Leaked on purpose: buffers may outlive static destruction.
auto& live = *new std::map<char*, Allocation>;
auto& freed = *new std::deque<Freed>;
auto& pinned = *new std::map<char*, size_t>;
size_t bytes_in_use = 0;

// Forbidden address space costs nothing but map entries, of which a process has some 65 thousand.
constexpr size_t remembered_frees = 2048;

#if defined(EMULATOR_ADDRESS_SANITIZER) || defined(EMULATOR_THREAD_SANITIZER)

// The sanitizer's own allocator surrounds and quarantines what it hands out, and names the line of a wrong access.
Allocation map_buffer(size_t bytes, char*& address) {
  const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  address = static_cast<char*>(aligned_alloc(alignment, rounded));
  sanitizer::fill(address, fresh, bytes);
  sanitizer::poison(address + bytes, rounded - bytes);
  return {bytes, address, bytes};
}

void unmap_buffer(char* address, const Allocation& allocation) {
  freed.push_back({address, allocation});
  if (freed.size() > remembered_frees) freed.pop_front();
  free(address);
}

#else

Allocation map_buffer(size_t bytes, char*& address) {
  const size_t page_bytes = (bytes + page - 1) / page * page;
  void* mapping =
      mmap(nullptr, page_bytes + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return {};
  char* pages = static_cast<char*>(mapping) + page;
  if (mprotect(pages, page_bytes, PROT_READ | PROT_WRITE) != 0) {
    munmap(mapping, page_bytes + 2 * page);
    return {};
  }
  // As far to the back as alignment allows: overruns are commoner than underruns.
  char* end = pages + page_bytes;
  address = reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(end - bytes) & ~uintptr_t{alignment - 1});
  for (char* p = pages; p < address; p++) *p = static_cast<char>(surrounding(p));
  sanitizer::fill(address, fresh, bytes);
  for (char* p = address + bytes; p < end; p++) *p = static_cast<char>(surrounding(p));
  return {bytes, pages, page_bytes};
}

void unmap_buffer(char* address, const Allocation& allocation) {
  // Mapping afresh gives the memory back and forbids the addresses in one step.
  mmap(allocation.pages, allocation.page_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
       -1, 0);
  freed.push_back({address, allocation});
  if (freed.size() > remembered_frees) {
    const Allocation& oldest = freed.front().allocation;
    munmap(oldest.pages - page, oldest.page_bytes + 2 * page);
    freed.pop_front();
  }
}

#endif

// The allocation whose bytes, end included, hold p. A buffer that begins at p wins over one that ends there.
std::map<char*, Allocation>::iterator find_live(const void* p) {
  char* address = static_cast<char*>(const_cast<void*>(p));
  auto next = live.upper_bound(address);
  if (next == live.begin()) return live.end();
  --next;
  return address <= next->first + next->second.bytes ? next : live.end();
}

std::string damage(const char* address, const Allocation& a) {
  const char* first = nullptr;
  const char* last = nullptr;
  auto look = [&](const char* from, const char* to) {
    for (const char* p = from; p < to; p++) {
      if (static_cast<uint8_t>(*p) == surrounding(p)) continue;
      if (first == nullptr) first = p;
      last = p;
    }
  };
  look(address + a.bytes, a.pages + a.page_bytes);
  if (first != nullptr) {
    return text("bytes %td to %td past the end of the device buffer %p of %zu bytes were overwritten",
                first - (address + a.bytes), last - (address + a.bytes), address, a.bytes);
  }
  look(a.pages, address);
  if (first != nullptr) {
    return text("bytes %td to %td before the device buffer %p of %zu bytes were overwritten", address - last,
                address - first, address, a.bytes);
  }
  return {};
}

std::string relation(const char* p, const char* address, const Allocation& a, const char* state) {
  const char* end = address + a.bytes;
  if (p >= end) return text("%td bytes past the end of the %sdevice buffer %p of %zu bytes", p - end, state, address, a.bytes);
  if (p < address) return text("%td bytes before the %sdevice buffer %p of %zu bytes", address - p, state, address, a.bytes);
  return text("at byte %td of the %sdevice buffer %p of %zu bytes", p - address, state, address, a.bytes);
}

}  // namespace

void* allocate_device(size_t bytes) {
  const std::lock_guard lock(mutex);
  if (bytes > memory_size() - bytes_in_use) return nullptr;
  char* address = nullptr;
  const Allocation allocation = map_buffer(bytes, address);
  if (address == nullptr) return nullptr;
  live[address] = allocation;
  bytes_in_use += bytes;
  return address;
}

std::string free_device(void* address) {
  const std::lock_guard lock(mutex);
  const auto found = live.find(static_cast<char*>(address));
  if (found == live.end()) return text("%p is not the beginning of a live device buffer", address);
  const Allocation allocation = found->second;
  std::string result = damage(found->first, allocation);
  live.erase(found);
  bytes_in_use -= allocation.bytes;
  unmap_buffer(static_cast<char*>(address), allocation);
  return result;
}

void* allocate_pinned(size_t bytes) {
  void* p = aligned_alloc(page, (bytes + page - 1) / page * page);
  if (p == nullptr) return nullptr;
  const std::lock_guard lock(mutex);
  pinned[static_cast<char*>(p)] = bytes;
  return p;
}

bool free_pinned(void* address) {
  const std::lock_guard lock(mutex);
  if (pinned.erase(static_cast<char*>(address)) == 0) return false;
  free(address);
  return true;
}

bool is_pinned(const void* address) {
  const std::lock_guard lock(mutex);
  char* p = static_cast<char*>(const_cast<void*>(address));
  auto next = pinned.upper_bound(p);
  if (next == pinned.begin()) return false;
  --next;
  return p < next->first + next->second;
}

std::optional<Buffer> find_buffer(const void* address) {
  const std::lock_guard lock(mutex);
  const auto found = find_live(address);
  if (found == live.end()) return {};
  return Buffer{found->first, found->second.bytes};
}

std::string check_range(const void* address, size_t bytes) {
  if (bytes == 0) return {};
  const std::lock_guard lock(mutex);
  const auto found = find_live(address);
  const char* p = static_cast<const char*>(address);
  if (found == live.end()) return text("%p lies in no live device buffer", address);
  const size_t room = found->first + found->second.bytes - p;
  if (bytes <= room) return {};
  return text("%zu bytes from byte %td of the device buffer %p reach past its end at %zu bytes", bytes, p - found->first,
              found->first, found->second.bytes);
}

std::string check_surroundings(const void* address) {
  const std::lock_guard lock(mutex);
  const auto found = find_live(address);
  return found == live.end() ? std::string() : damage(found->first, found->second);
}

std::string describe_address(const void* address) {
  // After a fault too, but only one of a kernel, and no kernel runs while its host thread holds the lock.
  const std::lock_guard lock(mutex);
  const char* p = static_cast<const char*>(address);
  for (const auto& [start, a] : live) {
    if (p >= a.pages - page && p < a.pages + a.page_bytes + page) return relation(p, start, a, "");
  }
  for (const Freed& f : freed) {
    if (p >= f.allocation.pages - page && p < f.allocation.pages + f.allocation.page_bytes + page) {
      return relation(p, f.address, f.allocation, "freed ");
    }
  }
  return "in no device buffer";
}

void device_memory_in_use(size_t& buffers, size_t& bytes) {
  const std::lock_guard lock(mutex);
  buffers = live.size();
  bytes = bytes_in_use;
}

std::string list_buffers() {
  const std::lock_guard lock(mutex);
  std::string list;
  for (const auto& [start, a] : live) list += text("  device buffer %p of %zu bytes\n", start, a.bytes);
  return list;
}

}  // namespace emulator
