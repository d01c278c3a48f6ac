// The memory of shared arrays: like device buffers (memory.h) each ends at a forbidden page, as near as its alignment
// allows, and what lies between holds a canary. Under a sanitizer they are heap blocks of the exact size.
#pragma once

#include <cstddef>
#include <string>

namespace emulator {

struct SharedArray {
  const void* key;  // null: the dynamic array
  char* data;
  size_t bytes, alignment;
  char* mapping;
  size_t mapped_bytes;  // both guard pages included
};

SharedArray map_shared(const void* key, size_t bytes, size_t alignment);
void unmap_shared(const SharedArray& array);

// Makes it as at the beginning of a block: NaN, canary intact.
void clear_shared(const SharedArray& array);
bool canary_is_intact(const SharedArray& array);
bool in_guard(const SharedArray& array, const void* address);

// "the SHARED array of 256 bytes"
std::string describe(const SharedArray& array);

}  // namespace emulator
