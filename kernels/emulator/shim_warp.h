// Warp operations: each is one rendezvous of the lanes, in which the last to arrive does the work for all.
#pragma once

namespace emulator {

template <class T>
struct ShuffleOperand {
  T value;
  int source;
};

template <class T>
EMULATOR_HARDWARE void shuffle_work(void** operands) {
  T result[32];
  for (int lane = 0; lane < 32; lane++) {
    if (operands[lane] == nullptr) continue;
    const auto* source = static_cast<ShuffleOperand<T>*>(operands[static_cast<ShuffleOperand<T>*>(operands[lane])->source]);
    // Reading a lane outside the mask is undefined: all bits set is NaN for floats, -1 for integers.
    if (source != nullptr) result[lane] = source->value;
    else memset(static_cast<void*>(&result[lane]), 0xFF, sizeof(T));
  }
  for (int lane = 0; lane < 32; lane++) {
    if (operands[lane] != nullptr) static_cast<ShuffleOperand<T>*>(operands[lane])->value = result[lane];
  }
}

template <class T>
EMULATOR_HARDWARE inline T shuffle(unsigned mask, T value, int source, const Site& site) {
  ShuffleOperand<T> operand{value, source};
  warp_collective(mask, shuffle_work<T>, &operand, site);
  return operand.value;
}

// The xor butterfly of dialect.cuh done in one go: the same pairs in the same order, so the same rounding.
template <class T, T (*combine)(T, T)>
EMULATOR_HARDWARE void reduce_work(void** operands) {
  T value[32], next[32];
  for (int lane = 0; lane < 32; lane++) value[lane] = *static_cast<T*>(operands[lane]);
  for (int offset = 16; offset > 0; offset >>= 1) {
    for (int lane = 0; lane < 32; lane++) next[lane] = combine(value[lane], value[lane ^ offset]);
    memcpy(value, next, sizeof value);
  }
  for (int lane = 0; lane < 32; lane++) *static_cast<T*>(operands[lane]) = value[lane];
}

template <class T>
EMULATOR_HARDWARE inline T sum_of(T x, T y) { return x + y; }
template <class T>
EMULATOR_HARDWARE inline T max_of(T x, T y) { return max(x, y); }

}  // namespace emulator

inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATOR_SITE) {
  emulator::warp_barrier(mask, site);
}

template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, EMULATOR_SITE) {
  return emulator::shuffle(mask, value, (static_cast<int>(emulator::current_thread->lane) ^ bits) & 31, site);
}

template <class T>
EMULATOR_HARDWARE inline T warp_sum(T v, EMULATOR_SITE) {
  emulator::warp_collective(0xffffffffu, emulator::reduce_work<T, emulator::sum_of<T>>, &v, site);
  return v;
}

template <class T>
EMULATOR_HARDWARE inline T warp_max(T v, EMULATOR_SITE) {
  emulator::warp_collective(0xffffffffu, emulator::reduce_work<T, emulator::max_of<T>>, &v, site);
  return v;
}
