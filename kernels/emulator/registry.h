// The table of kernels that the emulated driver looks names up in. For every .cu file build.rs writes a small source
// file that includes it and registers its kernels with EMULATOR_KERNEL; the compiler derives the parameter list.
#pragma once

#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "runtime.h"

namespace emulator {

enum class Kind : char { pointer, integer, floating, structure, tensor_map };

struct Parameter {
  Kind kind;
  size_t size, alignment;
  size_t pointee_alignment;  // 1 unless a pointer
};

struct Kernel {
  const char* name;
  void (*call)(void** arguments);  // as for cuLaunchKernel: the addresses of the parameters
  const Parameter* parameters;
  unsigned parameter_count;
  unsigned max_threads;  // of __launch_bounds__; 0 for none
  bool sm90;             // compiled for sm_90a alone: only there may it use what dialect.cuh has under that name
};

template <class T>
constexpr size_t pointee_alignment() {
  if constexpr (std::is_pointer_v<T>) {
    if constexpr (!std::is_void_v<std::remove_pointer_t<T>>) return alignof(std::remove_pointer_t<T>);
  }
  return 1;
}

template <class T>
constexpr Parameter describe() {
  const Kind kind = std::is_pointer_v<T>          ? Kind::pointer
                    : std::is_floating_point_v<T> ? Kind::floating
                    : std::is_integral_v<T>       ? Kind::integer
                    : std::is_same_v<T, TensorMap> ? Kind::tensor_map
                                                   : Kind::structure;
  return {kind, sizeof(T), alignof(T), pointee_alignment<T>()};
}

// Unpacks void** into a call of F, and describes F's parameters.
template <auto F, class Type = decltype(F)>
struct Call;
template <auto F, class... P>
struct Call<F, void (*)(P...)> {
  static constexpr unsigned count = sizeof...(P);
  static constexpr Parameter parameters[count] = {describe<P>()...};
  static void call(void** arguments) { unpack(arguments, std::make_index_sequence<count>{}); }

 private:
  template <size_t... I>
  static void unpack(void** arguments, std::index_sequence<I...>) {
    F(*static_cast<std::remove_cv_t<P>*>(arguments[I])...);
  }
};

#define EMULATOR_KERNEL(name, max_threads, sm90)                                                                \
  {                                                                                                             \
    #name, ::emulator::Call<&name>::call, ::emulator::Call<&name>::parameters, ::emulator::Call<&name>::count, \
        max_threads, sm90                                                                                       \
  }

// A static object of this type in each generated source file enters the file's kernels.
struct Registration {
  template <size_t N>
  explicit Registration(const Kernel (&kernels)[N]) { add(kernels, N); }

 private:
  static void add(const Kernel* kernels, size_t count);
};

const Kernel* find_kernel(const std::string& name);  // null: unknown
std::vector<const Kernel*> all_kernels();            // by name

}  // namespace emulator
