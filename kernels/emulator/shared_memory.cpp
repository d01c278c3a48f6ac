// Shared arrays: see shared_memory.h.
#include "shared_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "sanitizer.h"
#include "text.h"

namespace emulator {

static constexpr size_t page = 4096;
static constexpr unsigned char canary = 0xA5;

static size_t round_up(size_t bytes, size_t multiple) { return (bytes + multiple - 1) / multiple * multiple; }

SharedArray map_shared(const void* key, size_t bytes, size_t alignment) {
  const sanitizer::Unwatched unwatched;
  if (sanitizer::present) {
    // A little more than the array, poisoned, so that a first step over the end is seen whatever follows in the heap.
    const size_t total = round_up(bytes + 64, alignment);
    auto* data = static_cast<char*>(aligned_alloc(alignment, total));
    sanitizer::poison(data + bytes, total - bytes);
    return {key, data, bytes, alignment, data, total};
  }
  const size_t usable = round_up(bytes, page);
  void* mapping = mmap(nullptr, usable + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) abort();
  char* first = static_cast<char*>(mapping) + page;
  if (mprotect(first, usable, PROT_READ | PROT_WRITE) != 0) abort();
  char* data = first + usable - round_up(bytes, alignment);
  return {key, data, bytes, alignment, static_cast<char*>(mapping), usable + 2 * page};
}

void unmap_shared(const SharedArray& array) {
  const sanitizer::Unwatched unwatched;
  if (sanitizer::present) {
    sanitizer::unpoison(array.mapping, array.mapped_bytes);
    free(array.mapping);
  } else {
    munmap(array.mapping, array.mapped_bytes);
  }
}

static size_t slack(const SharedArray& array) { return round_up(array.bytes, array.alignment) - array.bytes; }

void clear_shared(const SharedArray& array) {
  sanitizer::fill(array.data, 0xFF, array.bytes);
  if (!sanitizer::present) sanitizer::fill(array.data + array.bytes, canary, slack(array));
}

bool canary_is_intact(const SharedArray& array) {
  if (sanitizer::present) return true;  // the bytes are the sanitizer's to watch, and not even we may read them
  const auto* tail = reinterpret_cast<const unsigned char*>(array.data + array.bytes);
  return std::all_of(tail, tail + slack(array), [](unsigned char c) { return c == canary; });
}

bool in_guard(const SharedArray& array, const void* address) {
  const char* p = static_cast<const char*>(address);
  return p >= array.mapping && p < array.mapping + array.mapped_bytes;
}

std::string describe(const SharedArray& array) {
  return text("the %s array of %zu bytes", array.key != nullptr ? "SHARED" : "DYN_SMEM", array.bytes);
}

}  // namespace emulator
