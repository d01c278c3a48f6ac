// Hopper's asynchronous units, under the dialect's names: see dialect.cuh.
#pragma once

#define DYN_SMEM_SWIZZLED(name) DYN_SMEM(name)

inline uint32_t smem_address(const void* p) { return emulator::shared_address(p); }

template <int N>
inline void give_registers() { static_assert(N % 8 == 0 && N >= 24 && N <= 256); }
template <int N>
inline void take_registers() { static_assert(N % 8 == 0 && N >= 24 && N <= 256); }

inline void mbarrier_init(uint64_t* barrier, int arrivals, EMULATOR_SITE) {
  emulator::mbarrier_init(barrier, static_cast<uint32_t>(arrivals), site);
}
inline void mbarrier_init_fence() {}
// Of the planted faults alone: a kernel's barriers live as long as its block.
inline void mbarrier_invalidate(uint64_t* barrier, EMULATOR_SITE) { emulator::mbarrier_invalidate(barrier, site); }
inline void mbarrier_arrive(uint64_t* barrier, EMULATOR_SITE) { emulator::mbarrier_arrive(barrier, 0, site); }
inline void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes, EMULATOR_SITE) {
  emulator::mbarrier_arrive(barrier, bytes, site);
}
inline void mbarrier_wait(uint64_t* barrier, uint32_t parity, EMULATOR_SITE) {
  emulator::mbarrier_wait(barrier, parity, site);
}

inline void prefetch_tensor_map(const TensorMap&) {}
inline void tensor_copy(void* dst, const TensorMap& map, int c0, int c1, int c2, uint64_t* barrier, EMULATOR_SITE) {
  const int at[] = {c0, c1, c2};
  emulator::tensor_copy(dst, map, at, 3, barrier, site);
}
inline void tensor_copy(void* dst, const TensorMap& map, int c0, int c1, int c2, int c3, uint64_t* barrier,
                        EMULATOR_SITE) {
  const int at[] = {c0, c1, c2, c3};
  emulator::tensor_copy(dst, map, at, 4, barrier, site);
}

inline void fence_proxy_async() {}

template <int M, int R>
inline void wgmma_fence(float (&)[M][R]) { emulator::wgmma_fence(); }
inline void wgmma_commit() { emulator::wgmma_commit(); }
template <int PENDING, int M, int R>
inline void wgmma_wait(float (&)[M][R], EMULATOR_SITE) { emulator::wgmma_wait(PENDING, site); }
inline void wgmma_fence(uint32_t (&)[4]) { emulator::wgmma_fence(); }
template <int PENDING>
inline void wgmma_wait(uint32_t (&)[4], EMULATOR_SITE) { emulator::wgmma_wait(PENDING, site); }

template <bool TRANSPOSED_B>
inline void wgmma_bf16(float (&d)[64], uint64_t a, uint64_t b, bool accumulate, EMULATOR_SITE) {
  emulator::wgmma({d, 128, nullptr, a, b, TRANSPOSED_B, accumulate}, site);
}
template <bool TRANSPOSED_B>
inline void wgmma_bf16(float (&d)[32], const uint32_t (&a)[4], uint64_t b, EMULATOR_SITE) {
  emulator::wgmma({d, 64, a, 0, b, TRANSPOSED_B, true}, site);
}
