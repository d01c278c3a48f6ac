// Tensor maps: how a bulk copy finds a box of a tensor in device memory. The driver's 128 bytes are opaque; here they
// hold a TensorBox. Only what the kernels use can be encoded: tiles of 16-bit elements, zero outside of the tensor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "runtime.h"

namespace emulator {

struct TensorBox {
  static constexpr unsigned max_rank = 5, element_bytes = 2;
  static constexpr uint32_t mark = 0x70616d54;  // "Tmap"

  uint32_t magic;
  uint32_t rank;
  char* address;
  uint64_t strides[max_rank - 1];  // bytes between neighbours along dimensions 1, 2...; dimension 0 is dense
  uint32_t dims[max_rank];
  uint16_t box[max_rank];
  uint16_t swizzle;  // 0; 64 or 128: 16-byte chunks of so many bytes are permuted by the number of their 128 bytes

  size_t row_bytes() const { return size_t{box[0]} * element_bytes; }
  size_t rows() const;
  size_t bytes() const { return rows() * row_bytes(); }
  // Bytes from the first to the last element of the tensor.
  size_t extent() const;
};
static_assert(sizeof(TensorBox) <= sizeof(TensorMap));

// Null if `map` was not encoded.
const TensorBox* decode(const TensorMap& map);
// Empty if the tensor lies in a live device buffer, else what is wrong.
std::string check_tensor(const TensorMap& map);
// Where byte `address` of shared memory lies under the 64-byte or 128-byte swizzle. It repeats after 8 times as much.
inline uint32_t swizzled(uint32_t address, uint32_t bytes) { return address ^ (address >> 7 & (bytes / 16 - 1)) << 4; }
// Copies the box that begins at element `at` to shared memory, whose byte 0 is `shared`.
void copy_box(const TensorBox& tensor, const int* at, unsigned char* shared, uint32_t address);

}  // namespace emulator
