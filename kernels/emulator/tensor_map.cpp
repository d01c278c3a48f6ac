// Tensor maps: see tensor_map.h.
#include "tensor_map.h"

#include <algorithm>
#include <cstring>

#include "driver.h"
#include "memory.h"
#include "text.h"

namespace emulator {

size_t TensorBox::rows() const {
  size_t rows = 1;
  for (unsigned d = 1; d < rank; d++) rows *= box[d];
  return rows;
}

size_t TensorBox::extent() const {
  size_t bytes = size_t{dims[0]} * element_bytes;
  for (unsigned d = 1; d < rank; d++) bytes += (dims[d] - 1) * strides[d - 1];
  return bytes;
}

const TensorBox* decode(const TensorMap& map) {
  const auto* tensor = reinterpret_cast<const TensorBox*>(&map);
  return tensor->magic == TensorBox::mark ? tensor : nullptr;
}

std::string check_tensor(const TensorMap& map) {
  const TensorBox* tensor = decode(map);
  if (tensor == nullptr) return "is no tensor map that cuTensorMapEncodeTiled wrote";
  const std::string fault = check_range(tensor->address, tensor->extent());
  return fault.empty() ? fault : "is a tensor map: " + fault;
}

void copy_box(const TensorBox& tensor, const int* at, unsigned char* shared, uint32_t address) {
  const size_t row_bytes = tensor.row_bytes();
  const size_t rows = tensor.rows();
  // The part of a row that lies inside the tensor, in bytes of the row.
  const auto element = [&](int64_t i) {
    return static_cast<size_t>(std::clamp<int64_t>(i, 0, tensor.box[0])) * TensorBox::element_bytes;
  };
  const size_t inside_from = element(-int64_t{at[0]}), inside_to = element(int64_t{tensor.dims[0]} - at[0]);
  for (size_t row = 0; row < rows; row++) {
    bool inside = inside_from < inside_to;
    int64_t offset = int64_t{at[0]} * TensorBox::element_bytes;
    size_t rest = row;
    for (unsigned d = 1; d < tensor.rank; d++) {
      const int64_t i = at[d] + static_cast<int64_t>(rest % tensor.box[d]);
      rest /= tensor.box[d];
      inside = inside && i >= 0 && i < tensor.dims[d];
      offset += i * static_cast<int64_t>(tensor.strides[d - 1]);
    }
    for (size_t chunk = 0; chunk < row_bytes; chunk += 16) {
      unsigned char bytes[16] = {};
      const size_t from = std::max(chunk, inside_from), to = std::min(chunk + 16, inside_to);
      if (inside && from < to) memcpy(bytes + (from - chunk), tensor.address + offset + from, to - from);
      const auto plain = static_cast<uint32_t>(address + row * row_bytes + chunk);
      // 16, but the compiler does not know: a call that the race checker sees.
      const uint32_t place = tensor.swizzle != 0 ? swizzled(plain, tensor.swizzle) : plain;
      memcpy(shared + place, bytes, std::min<size_t>(row_bytes, 16));
    }
  }
}

}  // namespace emulator

using namespace emulator;

// Numbers of CUtensorMapDataType (UINT16, FLOAT16, BFLOAT16), CUtensorMapSwizzle, and 0 for no interleave, zero fill.
DRIVER_API cuTensorMapEncodeTiled(TensorMap* map, int type, uint32_t rank, void* address, const uint64_t* dims,
                                  const uint64_t* strides, const uint32_t* box, const uint32_t* element_strides,
                                  int interleave, int swizzle, int, int fill) {
  return driver_call("cuTensorMapEncodeTiled", [&]() -> Outcome {
    constexpr int none = 0, swizzle_64 = 2, swizzle_128 = 3;
    if (reinterpret_cast<uintptr_t>(map) % 128 != 0) return {invalid_value, "the tensor map is no multiple of 128 bytes"};
    if (type != 1 && type != 6 && type != 9) return {not_supported, text("tensor map of elements of type %d", type)};
    if (rank < 3 || rank > TensorBox::max_rank) return {not_supported, text("tensor map of %u dimensions", rank)};
    if (interleave != none || fill != 0) return {not_supported, "tensor map with interleave or a fill other than zero"};
    if (swizzle != none && swizzle != swizzle_64 && swizzle != swizzle_128) {
      return {not_supported, text("tensor map with swizzle %d", swizzle)};
    }
    if (reinterpret_cast<uintptr_t>(address) % 16 != 0) {
      return {invalid_value, text("tensor map: address %p is no multiple of 16", address)};
    }
    TensorBox tensor{};
    tensor.magic = TensorBox::mark;
    tensor.rank = rank;
    tensor.address = static_cast<char*>(address);
    tensor.swizzle = swizzle == none ? 0 : swizzle == swizzle_64 ? 64 : 128;
    for (unsigned d = 0; d < rank; d++) {
      if (dims[d] == 0 || dims[d] > uint64_t{1} << 32) {
        return {invalid_value, text("tensor map: dimension %u of %llu elements", d, (unsigned long long)dims[d])};
      }
      if (box[d] == 0 || box[d] > 256) return {invalid_value, text("tensor map: box of %u along dimension %u", box[d], d)};
      if (element_strides[d] != 1) return {not_supported, "tensor map that skips elements"};
      tensor.dims[d] = static_cast<uint32_t>(std::min<uint64_t>(dims[d], UINT32_MAX));
      tensor.box[d] = static_cast<uint16_t>(box[d]);
      if (d == 0) continue;
      if (strides[d - 1] % 16 != 0 || strides[d - 1] >= uint64_t{1} << 40) {
        return {invalid_value, text("tensor map: stride of %llu bytes along dimension %u is no multiple of 16 below 2^40",
                                    (unsigned long long)strides[d - 1], d)};
      }
      tensor.strides[d - 1] = strides[d - 1];
    }
    if (tensor.row_bytes() % 16 != 0) return {invalid_value, text("tensor map: box rows of %zu bytes", tensor.row_bytes())};
    if (tensor.swizzle != 0 && tensor.row_bytes() > tensor.swizzle) {
      return {invalid_value, text("tensor map: box rows of %zu bytes, the %u-byte swizzle takes no more than that",
                                  tensor.row_bytes(), tensor.swizzle)};
    }
    *map = {};
    memcpy(static_cast<void*>(map), &tensor, sizeof tensor);
    if (const std::string fault = check_tensor(*map); !fault.empty()) return {invalid_value, fault};
    return {};
  });
}
