// ldmatrix and mma.sync with the fragment layouts of the PTX ISA. In all of them lane = 4 * group + member: `group`
// (0..7) selects a row of A and C or a column of B, `member` (0..3) a pair of columns. One rendezvous covers a whole
// MI x NI tile: one per mma would make the emulation three times slower.
#pragma once

namespace emulator {

struct LdmatrixOperand {
  const void* row;
  uint32_t* result;
};

template <bool TRANSPOSED>
EMULATOR_HARDWARE void ldmatrix_work(void** operands) {
  for (int matrix = 0; matrix < 4; matrix++) {
    uint16_t elements[8][8];
    for (int row = 0; row < 8; row++) {
      const void* source = static_cast<LdmatrixOperand*>(operands[8 * matrix + row])->row;
      for (int column = 0; column < 8; column++) elements[row][column] = static_cast<const uint16_t*>(source)[column];
    }
    for (int lane = 0; lane < 32; lane++) {
      const int group = lane >> 2, member = lane & 3;
      const uint32_t low = TRANSPOSED ? elements[2 * member][group] : elements[group][2 * member];
      const uint32_t high = TRANSPOSED ? elements[2 * member + 1][group] : elements[group][2 * member + 1];
      static_cast<LdmatrixOperand*>(operands[lane])->result[matrix] = high << 16 | low;
    }
  }
}

template <bool TRANSPOSED>
inline void ldmatrix(uint32_t* result, const void* row, const Site& site) {
  check_aligned(row, 16, "ldmatrix row", site);
  LdmatrixOperand operand{row, result};
  warp_collective(0xffffffffu, ldmatrix_work<TRANSPOSED>, &operand, site);
}

struct StmatrixOperand {
  void* row;
  const uint32_t* values;
};

// The inverse of a transposing ldmatrix.
EMULATOR_HARDWARE inline void stmatrix_trans_work(void** operands) {
  for (int matrix = 0; matrix < 4; matrix++) {
    uint16_t elements[8][8];
    for (int lane = 0; lane < 32; lane++) {
      const int group = lane >> 2, member = lane & 3;
      const uint32_t value = static_cast<StmatrixOperand*>(operands[lane])->values[matrix];
      elements[2 * member][group] = static_cast<uint16_t>(value);
      elements[2 * member + 1][group] = static_cast<uint16_t>(value >> 16);
    }
    for (int row = 0; row < 8; row++) {
      auto* to = static_cast<uint16_t*>(static_cast<StmatrixOperand*>(operands[8 * matrix + row])->row);
      for (int column = 0; column < 8; column++) to[column] = elements[row][column];
    }
  }
}

struct MmaOperand {
  float* d;
  const uint32_t *a, *b;
};

// How one kind of mma spreads the elements of a 16 x DEPTH tile of A and a DEPTH x 8 tile of B over 32-bit registers.
struct Bf16Fragments {
  static constexpr int DEPTH = 16, PER_REGISTER = 2;
  static int depth_of(int member, int half) { return member * 2 + half * 8; }
  static float element(uint32_t reg, int i) { return __uint_as_float(i == 0 ? reg << 16 : reg & 0xffff0000u); }
};
struct Tf32Fragments {
  static constexpr int DEPTH = 8, PER_REGISTER = 1;
  static int depth_of(int member, int half) { return member + half * 4; }
  static float element(uint32_t reg, int) { return __uint_as_float(reg & 0xffffe000u); }  // low bits are ignored
};

template <class F, int MI, int NI>
EMULATOR_HARDWARE void mma_work(void** operands) {
  // The whole warp's tile as three dense matrices; each column block of C is one 8-float vector.
  typedef float Row __attribute__((vector_size(32)));
  float a[MI * 16][F::DEPTH];
  Row b[F::DEPTH][NI], c[MI * 16][NI];
  for (int lane = 0; lane < 32; lane++) {
    const auto* x = static_cast<MmaOperand*>(operands[lane]);
    const int group = lane >> 2, member = lane & 3;
    for (int e = 0; e < F::PER_REGISTER; e++) {
      for (int i = 0; i < MI; i++) {
        for (int r = 0; r < 4; r++) {
          a[i * 16 + group + (r & 1) * 8][F::depth_of(member, r >> 1) + e] = F::element(x->a[i * 4 + r], e);
        }
      }
      for (int j = 0; j < NI; j++) {
        for (int r = 0; r < 2; r++) b[F::depth_of(member, r) + e][j][group] = F::element(x->b[j * 2 + r], e);
      }
    }
    for (int i = 0; i < MI; i++) {
      for (int j = 0; j < NI; j++) {
        for (int r = 0; r < 4; r++) {
          c[i * 16 + group + (r >> 1) * 8][j][member * 2 + (r & 1)] = x->d[(i * NI + j) * 4 + r];
        }
      }
    }
  }
  for (int m = 0; m < MI * 16; m++) {
    Row sums[NI];  // a local copy stays in registers
    memcpy(sums, c[m], sizeof sums);
    for (int k = 0; k < F::DEPTH; k++) {
      UNROLL for (int j = 0; j < NI; j++) sums[j] += a[m][k] * b[k][j];
    }
    memcpy(c[m], sums, sizeof sums);
  }
  for (int lane = 0; lane < 32; lane++) {
    const auto* x = static_cast<MmaOperand*>(operands[lane]);
    const int group = lane >> 2, member = lane & 3;
    for (int i = 0; i < MI; i++) {
      for (int j = 0; j < NI; j++) {
        for (int r = 0; r < 4; r++) {
          x->d[(i * NI + j) * 4 + r] = c[i * 16 + group + (r >> 1) * 8][j][member * 2 + (r & 1)];
        }
      }
    }
  }
}

}  // namespace emulator

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, EMULATOR_SITE) { emulator::ldmatrix<false>(r, row, site); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, EMULATOR_SITE) {
  emulator::ldmatrix<true>(r, row, site);
}

inline void stmatrix_x4_trans(void* row, const uint32_t (&r)[4], EMULATOR_SITE) {
  emulator::check_aligned(row, 16, "stmatrix row", site);
  emulator::StmatrixOperand operand{row, r};
  emulator::warp_collective(0xffffffffu, emulator::stmatrix_trans_work, &operand, site);
}

template <int MI, int NI>
inline void mma_bf16_tile(float (&d)[MI][NI][4], const uint32_t (&a)[MI][4], const uint32_t (&b)[NI][2],
                          EMULATOR_SITE) {
  emulator::MmaOperand operand{&d[0][0][0], &a[0][0], &b[0][0]};
  emulator::warp_collective(0xffffffffu, emulator::mma_work<emulator::Bf16Fragments, MI, NI>, &operand, site);
}

template <int MI, int NI>
inline void mma_tf32_tile(float (&d)[MI][NI][4], const uint32_t (&a)[MI][4], const uint32_t (&b)[NI][2],
                          EMULATOR_SITE) {
  emulator::MmaOperand operand{&d[0][0][0], &a[0][0], &b[0][0]};
  emulator::warp_collective(0xffffffffu, emulator::mma_work<emulator::Tf32Fragments, MI, NI>, &operand, site);
}

// cvt.rna: nearest, ties away from zero; infinities and NaN stay.
inline uint32_t to_tf32(float f) {
  const uint32_t u = __float_as_uint(f);
  return (u & 0x7f800000u) == 0x7f800000u ? u : (u + 0x1000u) & 0xffffe000u;
}
