// Device memory: every buffer in pages of its own between two guard pages, so that running past its end faults at once;
// the bytes between its end and the page's (buffers begin at multiples of 256) hold a pattern that is checked later.
// Fresh memory reads as NaN. A freed buffer's pages stay forbidden for a while, so that a late use is recognised.
#pragma once

#include <cstddef>
#include <optional>
#include <string>

namespace emulator {

struct Buffer {
  char* address;
  size_t bytes;
};

// Null when the device's memory (L2B_EMULATOR_MEMORY) has no room left.
void* allocate_device(size_t bytes);
// Empty for success, else what is wrong: no such buffer, or bytes around it were overwritten.
std::string free_device(void* address);

// Page-locked host memory: asynchronous copies from and to it are not staged, they read and write it when they run.
void* allocate_pinned(size_t bytes);
bool free_pinned(void* address);
bool is_pinned(const void* address);

// The live device buffer that an address lies in (its end included: an empty slice at the end is no error).
std::optional<Buffer> find_buffer(const void* address);
// Empty if [address, address + bytes) lies in one live buffer, else what is wrong with it.
std::string check_range(const void* address, size_t bytes);
// Empty if nothing was written around the buffer that `address` lies in.
std::string check_surroundings(const void* address);
// For a fault: where an address lies in relation to the buffers, live and freed.
std::string describe_address(const void* address);

void device_memory_in_use(size_t& buffers, size_t& bytes);
std::string list_buffers();

}  // namespace emulator
