// Warp operations: each is one rendezvous of the lanes, in which the last to arrive does the work for all.
#pragma once

namespace emulator {

EMULATOR_HARDWARE inline void no_work(void**) {}

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

inline int lane_id() { return static_cast<int>(current_thread->lane); }

struct BallotOperand {
  bool predicate;
  unsigned result;
};

EMULATOR_HARDWARE inline void ballot_work(void** operands) {
  unsigned votes = 0;
  for (int lane = 0; lane < 32; lane++) {
    if (operands[lane] != nullptr && static_cast<BallotOperand*>(operands[lane])->predicate) votes |= 1u << lane;
  }
  for (int lane = 0; lane < 32; lane++) {
    if (operands[lane] != nullptr) static_cast<BallotOperand*>(operands[lane])->result = votes;
  }
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
  emulator::warp_collective(mask, emulator::no_work, nullptr, site);
}

template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATOR_SITE) {
  return emulator::shuffle(mask, value, (emulator::lane_id() & ~(width - 1)) | (source & (width - 1)), site);
}

// The other three: a source outside the segment of `width` lanes leaves the caller's own value.
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, EMULATOR_SITE) {
  const int lane = emulator::lane_id(), source = lane ^ bits;
  return emulator::shuffle(mask, value, source > (lane | (width - 1)) ? lane : source, site);
}

template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_SITE) {
  const int lane = emulator::lane_id(), source = lane + static_cast<int>(delta);
  return emulator::shuffle(mask, value, source > (lane | (width - 1)) ? lane : source, site);
}

template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_SITE) {
  const int lane = emulator::lane_id(), source = lane - static_cast<int>(delta);
  return emulator::shuffle(mask, value, source < (lane & ~(width - 1)) ? lane : source, site);
}

EMULATOR_HARDWARE inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_SITE) {
  emulator::BallotOperand operand{predicate != 0, 0};
  emulator::warp_collective(mask, emulator::ballot_work, &operand, site);
  return operand.result;
}

inline int __any_sync(unsigned mask, int predicate, EMULATOR_SITE) { return __ballot_sync(mask, predicate, site) != 0; }
inline int __all_sync(unsigned mask, int predicate, EMULATOR_SITE) { return __ballot_sync(mask, !predicate, site) == 0; }

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
