// The kernel table: see registry.h.
#include "registry.h"

#include <map>

namespace emulator {

// A function's static, because registrations run before main in no particular order.
static std::map<std::string, const Kernel*>& table() {
  static std::map<std::string, const Kernel*> kernels;
  return kernels;
}

void Registration::add(const Kernel* kernels, size_t count) {
  for (size_t i = 0; i < count; i++) table()[kernels[i].name] = &kernels[i];
}

const Kernel* find_kernel(const std::string& name) {
  const auto found = table().find(name);
  return found == table().end() ? nullptr : found->second;
}

std::vector<const Kernel*> all_kernels() {
  std::vector<const Kernel*> all;
  for (const auto& [name, kernel] : table()) all.push_back(kernel);
  return all;
}

}  // namespace emulator
