// Matrix products of warpgroups (wgmma): D[64][n] += A[64][16] B[16][n], B and A in shared memory, in rows of 16 bytes or under
// the 128-byte swizzle, D (or A too) spread over the registers of 128 threads.
//
// A product runs some time between its issue and its wait: reversed order takes it at issue, forward order at the wait
// (of each warp, for its own 16 rows), random order draws for each group. Until then the threads' registers hold NaN, so
// that reading them without waiting shows, and operands overwritten too early spoil the result or are reported. Layouts
// and rules: PTX ISA, "Asynchronous Warpgroup Level Matrix".
#include <algorithm>
#include <cstring>

#include "scheduler.h"
#include "tensor_map.h"

namespace emulator {

static constexpr uint32_t poison = 0xFFFFFFFF;  // NaN

void wgmma(const WgmmaOperands& operands, Site site) { active_scheduler->wgmma(operands, site); }
void wgmma_fence() { active_scheduler->wgmma_fence(); }
void wgmma_commit() { active_scheduler->wgmma_commit(); }
void wgmma_wait(uint32_t pending, Site site) { active_scheduler->wgmma_wait(pending, site); }

// Where register i of thread t lies in D.
static size_t position(unsigned t, unsigned i, unsigned n) {
  const unsigned row = t / 32 * 16 + t % 32 / 4 + (i >> 1 & 1) * 8;
  const unsigned column = (i >> 2) * 8 + t % 4 * 2 + (i & 1);
  return size_t{row} * n + column;
}

void Scheduler::wgmma(const WgmmaOperands& operands, Site site) {
  if (!runs_sm90()) fail("wgmma at %s:%u exists on sm_90a only", base_name(site.file), site.line);
  const unsigned me = self().linear, number = me / 128;
  if (number >= warpgroups_.size()) fail("wgmma at %s:%u: no whole warpgroup", base_name(site.file), site.line);
  Warpgroup& group = warpgroups_[number];
  if (group.arrived == 0) group.site = site;
  if (!(group.site == site)) {
    fail("divergent warpgroup operation: the thread is at %s:%u, others wait at %s:%u", base_name(site.file), site.line,
         base_name(group.site.file), group.site.line);
  }
  group.operands[me % 128] = operands;
  if (++group.arrived < 128) {
    wait(State::in_warpgroup_operation, site);
    return;
  }
  group.arrived = 0;
  issue(group, number * 128);
  for (unsigned i = 0; i < 128; i++) {
    ThreadState& t = threads_[number * 128 + in_order(i, 128)];
    if (&t != current_thread) make_ready(t);
  }
  self().pauses = 0;
  pass(4);
}

void Scheduler::issue(Warpgroup& group, unsigned first_thread) {
  const WgmmaOperands& first = group.operands[0];
  const uint64_t number = threads_[first_thread].wgmma_groups;
  for (unsigned t = 1; t < 128; t++) {
    const WgmmaOperands& other = group.operands[t];
    if (other.a != first.a || (other.fragment == nullptr) != (first.fragment == nullptr) || other.b != first.b ||
        other.accumulate != first.accumulate) {
      fail("wgmma at %s:%u: threads %u and %u of the block give different operands", base_name(group.site.file),
           group.site.line, first_thread, first_thread + t);
    }
    if (threads_[first_thread + t].wgmma_groups != number) {
      fail("wgmma at %s:%u: threads %u and %u of the block have committed different numbers of groups",
           base_name(group.site.file), group.site.line, first_thread, first_thread + t);
    }
  }
  accumulators_of(group, first_thread).group = number;
  std::vector<Fragment> fragments;
  for (unsigned t = 0; t < 128 && first.fragment != nullptr; t++) {
    if (!threads_[first_thread + t].fragments_fenced) {
      fail("wgmma at %s:%u: no wgmma_fence since thread %u last waited and wrote operand registers",
           base_name(group.site.file), group.site.line, first_thread + t);
    }
    const uint32_t* registers = group.operands[t].fragment;
    fragments.push_back({registers, {registers[0], registers[1], registers[2], registers[3]}});
  }
  const Order order = launch_.order.order;
  // Drawn once for a group: what runs at its issue takes its elders along, and of many draws one would.
  if (group.drawn_group != number) group.early = draw() % 2 == 0;
  group.drawn_group = number;
  group.products.push_back({first, std::move(fragments), number, {}});
  if (order == Order::reversed || (order == Order::random && group.early)) execute_products(group, number + 1, 0xF);
}

// The accumulators of the operands just given: those under way, or the threads' registers, which are taken from them.
Accumulators& Scheduler::accumulators_of(Warpgroup& group, unsigned first_thread) {
  const unsigned n = group.operands[0].n;
  const auto under_way = std::find_if(group.accumulators.begin(), group.accumulators.end(), [&](const Accumulators& a) {
    return a.registers[0] == group.operands[0].accumulators;
  });
  const bool fresh = under_way == group.accumulators.end();
  if (!fresh && under_way->delivered.any()) {
    fail("wgmma at %s:%u: only %zu threads of the warpgroup have waited for its accumulators", base_name(group.site.file),
         group.site.line, under_way->delivered.count());
  }
  if (fresh) {
    group.accumulators.push_back({n, 0, {}, {}, std::vector<float>(size_t{64} * n)});
  }
  Accumulators& accumulators = fresh ? group.accumulators.back() : *under_way;
  for (unsigned t = 0; t < 128; t++) {
    float* registers = group.operands[t].accumulators;
    if (fresh && !threads_[first_thread + t].wgmma_fenced) {
      fail("wgmma at %s:%u: no wgmma_fence since thread %u last had its accumulators", base_name(group.site.file),
           group.site.line, first_thread + t);
    }
    if (fresh) accumulators.registers[t] = registers;
    for (unsigned i = 0; i < n / 2; i++) {
      uint32_t bits;
      memcpy(&bits, &registers[i], sizeof bits);
      if (fresh) {
        accumulators.values[position(t, i, n)] = registers[i];
        memcpy(&registers[i], &poison, sizeof poison);
      } else if (bits != poison || accumulators.registers[t] != registers) {
        fail("wgmma at %s:%u: thread %u has changed accumulators that are under way", base_name(group.site.file),
             group.site.line, first_thread + t);
      }
    }
  }
  return accumulators;
}

void Scheduler::wgmma_wait(uint32_t pending, Site site) {
  ThreadState& t = self();
  const unsigned number = t.linear / 128;
  if (number >= warpgroups_.size()) fail("wgmma_wait at %s:%u: no whole warpgroup", base_name(site.file), site.line);
  warp_collective(0xffffffffu, [](void**) {}, nullptr, site);
  t.fragments_fenced = false;
  if (t.wgmma_groups <= pending) return;
  Warpgroup& group = warpgroups_[number];
  const uint64_t before = t.wgmma_groups - pending;
  execute_products(group, before, 1u << t.warp % 4);
  for (Accumulators& a : group.accumulators) {
    const unsigned thread = t.linear % 128;
    if (a.group >= before || a.delivered[thread]) continue;
    for (unsigned i = 0; i < a.n / 2; i++) a.registers[thread][i] = a.values[position(thread, i, a.n)];
    a.delivered.set(thread);
    t.wgmma_fenced = false;
  }
  std::erase_if(group.accumulators, [](const Accumulators& a) { return a.delivered.all(); });
  pass(4);
}

// In the order of their issue, those of groups below `before`, the rows of `warps`.
void Scheduler::execute_products(Warpgroup& group, uint64_t before, std::bitset<4> warps) {
  for (MatrixProduct& product : group.products) {
    const std::bitset<4> missing = warps & ~product.done;
    if (product.group >= before || missing.none()) continue;
    for (Accumulators& a : group.accumulators) {
      if (a.registers[0] == product.operands.accumulators) multiply(product, missing, a);
    }
    product.done |= missing;
  }
  std::erase_if(group.products, [](const MatrixProduct& product) { return product.done.all(); });
}

static float bf16_value(uint16_t bits) { return __builtin_bit_cast(float, uint32_t{bits} << 16); }

// A matrix of `rows` rows (of A, or columns of B) and depth 16 as out[depth][rows].
// Descriptor: start, leading and stride offsets in units of 16 bytes, base offset 0, swizzle mode 1 (128 bytes) or 0.
//   depth runs along rows of the swizzle:  8 rows close together, the next 8 at `stride`; without swizzle a row is 8 depths, the
//                                          next 8 at `leading`
//   transposed, rows run along 128 bytes:  8 depths a kilobyte, the next 8 at `stride`; the next 64 rows at `leading`
void Scheduler::load_operand(float* out, unsigned rows, uint64_t descriptor, bool transposed) {
  const auto field = [&](int shift) { return static_cast<uint32_t>(descriptor >> shift & 0x3fff) << 4; };
  const uint32_t start = field(0), leading = field(16), stride = field(32);
  const uint32_t mode = static_cast<uint32_t>(descriptor >> 62), row_bytes = mode == 0 ? 16 : 128;
  if (mode > 1 || (mode == 0 && transposed) || (descriptor >> 49 & 7) != 0) {
    fail("wgmma descriptor %016llx: of no swizzle known here", static_cast<unsigned long long>(descriptor));
  }
  const auto chunk_at = [&](uint32_t plain, uint16_t (&chunk)[8]) {
    const uint32_t address = swizzled(plain, row_bytes);
    if (address + sizeof chunk > block_.dynamic_shared_bytes) {
      fail("wgmma descriptor %016llx reaches byte %u of %zu of DYN_SMEM", static_cast<unsigned long long>(descriptor),
           address, block_.dynamic_shared_bytes);
    }
    memcpy(chunk, block_.dynamic_shared + address, sizeof chunk);
  };
  uint16_t chunk[8];
  if (!transposed) {
    for (unsigned row = 0; row < rows; row++) {
      for (unsigned k = 0; k < 16; k += 8) {
        const uint32_t depth = mode == 0 ? k / 8 * leading : k * 2;
        chunk_at(start + row / 8 * stride + row % 8 * row_bytes + depth, chunk);
        for (unsigned i = 0; i < 8; i++) out[(k + i) * rows + row] = bf16_value(chunk[i]);
      }
    }
  } else {
    for (unsigned k = 0; k < 16; k++) {
      for (unsigned row = 0; row < rows; row += 8) {
        chunk_at(start + row / 64 * leading + k / 8 * stride + k % 8 * 128 + row % 64 * 2, chunk);
        for (unsigned i = 0; i < 8; i++) out[k * rows + row + i] = bf16_value(chunk[i]);
      }
    }
  }
}

// A [64][16] of registers, by row of mma's fragments: a thread's four hold {row, row + 8} x {two depths, two depths + 8}.
static void load_fragments(float* out, const std::vector<Fragment>& fragments, std::bitset<4> warps) {
  for (unsigned t = 0; t < fragments.size(); t++) {
    const Fragment& fragment = fragments[t];
    if (!warps[t / 32]) continue;
    for (unsigned i = 0; i < 4; i++) {
      if (fragment.registers[i] != fragment.values[i]) {
        fail("wgmma: thread %u of its warpgroup has changed operand registers of a product that is under way", t);
      }
      const unsigned row = t / 32 * 16 + t % 32 / 4 + i % 2 * 8, k = t % 4 * 2 + i / 2 * 8;
      out[k * 64 + row] = bf16_value(static_cast<uint16_t>(fragment.values[i]));
      out[(k + 1) * 64 + row] = bf16_value(static_cast<uint16_t>(fragment.values[i] >> 16));
    }
  }
}

void Scheduler::multiply(const MatrixProduct& product, std::bitset<4> warps, Accumulators& accumulators) {
  typedef float Row __attribute__((vector_size(32)));
  constexpr unsigned most = 256, block = 8;  // block: vectors of a row of D kept in registers
  const unsigned n = accumulators.n;
  float a[16 * 64];
  alignas(32) float b[16 * most];
  const WgmmaOperands& operands = product.operands;
  if (product.fragments.empty()) load_operand(a, 64, operands.a, false);
  else load_fragments(a, product.fragments, warps);
  load_operand(b, n, operands.b, operands.transposed_b);
  for (unsigned m = 0; m < 64; m++) {
    if (!warps[m / 16]) continue;
    float* d = accumulators.values.data() + size_t{m} * n;
    if (!operands.accumulate) std::fill(d, d + n, 0.0f);
    for (unsigned column = 0; column < n; column += block * 8) {
      Row sums[block];
      memcpy(sums, d + column, sizeof sums);
      for (unsigned k = 0; k < 16; k++) {
        const float factor = a[k * 64 + m];
        Row row[block];
        memcpy(row, b + size_t{k} * n + column, sizeof row);
#pragma GCC unroll 8
        for (unsigned j = 0; j < block; j++) sums[j] += factor * row[j];
      }
      memcpy(d + column, sums, sizeof sums);
    }
  }
}

}  // namespace emulator
