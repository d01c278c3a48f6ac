// The state of a block's asynchronous units of sm_90a: barriers in shared memory, bulk copies under way, and matrix
// products of warpgroups under way.
#pragma once

#include <bitset>
#include <vector>

#include "runtime.h"

namespace emulator {

struct MBarrier {
  uint64_t* address;
  uint32_t expected, missing;  // arrivals of a phase, and how many the current one lacks
  int64_t bytes;               // announced and not yet copied
  uint64_t phase;
  char edges[2];               // addresses for the race checker, for phases in turn
};

struct BulkCopy {
  TensorMap map;
  int at[5];
  uint32_t dst;
  uint64_t* barrier;
};

// Registers of a warpgroup that products under way add to: until they are waited for, the registers hold NaN and the
// values are here.
struct Accumulators {
  unsigned n;
  uint64_t group;              // of the last product that adds to them
  float* registers[128];       // n / 2 of each thread
  std::bitset<128> delivered;  // threads that have them back
  std::vector<float> values;   // [64][n]
};

// Registers that hold a thread's part of operand A, and what they held at the product's issue: it reads them later.
struct Fragment {
  const uint32_t* registers;
  uint32_t values[4];
};

struct MatrixProduct {
  WgmmaOperands operands;
  std::vector<Fragment> fragments;  // of each thread, or none
  uint64_t group;
  std::bitset<4> done;  // warps whose 16 rows have been computed
};

struct Warpgroup {
  unsigned arrived = 0;
  Site site;
  WgmmaOperands operands[128];
  std::vector<Accumulators> accumulators;
  std::vector<MatrixProduct> products;  // not yet done, oldest first
  uint64_t drawn_group = ~uint64_t{0};  // for which `early` was drawn
  bool early = false;                   // its products run at their issue
};

}  // namespace emulator
