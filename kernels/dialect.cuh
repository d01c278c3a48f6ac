// The dialect in which the kernels are written: CUDA C++ plus the names below, which mean the same under nvcc (a GPU)
// and under g++ (the emulator, emulator/shim.h). It is the only file of kernels/ with `asm`; no kernel tests
// __CUDA_ARCH__ or __CUDACC__, so what the emulator runs is, line for line, what the GPU runs.
//
// Rules for a kernel:
//   - it is written out literally as   extern "C" __global__ void [__launch_bounds__(N)] name(...)   (never by a macro:
//     build.rs finds kernels by scanning), has at least one parameter, and takes numbers, pointers and structs by value;
//   - shared memory is SHARED(T, name, [dims]) or DYN_SMEM(name), never a plain __shared__: the emulator then knows
//     each array's exact size, fills it with NaN for every block, and checks its bounds under the address sanitizer;
//   - no `return` before the last barrier or warp operation: predicate instead;
//   - a warp operation is called by all 32 lanes of a warp, so blocks are a multiple of 32 threads wherever one is used;
//   - what exists on sm_90a only (below, under that name) is for files called *_sm90.cu, which nvcc compiles for sm_90a
//     alone and the emulator runs at compute capability 9.0;
//   - 16-byte accesses go through load_vec / store_vec (alignment is checked in the emulator);
//   - where host and device must agree bit for bit, write the rounding out (__fmaf_rn, __fmul_rn, __fadd_rn): nvcc
//     otherwise contracts a * b + c, the emulator never does.
#pragma once

#ifndef __CUDACC__
#include "emulator/shim.h"
#else

#include <cuda_bf16.h>
#include <stdint.h>

// Dynamic shared memory as bytes. One per kernel. (A larger alignment would round every SHARED array of the image up.)
#define DYN_SMEM(name) extern __shared__ __align__(128) unsigned char name[]
// A shared array: SHARED(float, tile, [16][17]);
#define SHARED(T, name, ...) __shared__ __align__(16) T name __VA_ARGS__
#define UNROLL _Pragma("unroll")
#define NO_UNROLL _Pragma("unroll 1")

// x, of which the compiler knows nothing: what follows from it is computed here, not far before and kept in registers.
__device__ __forceinline__ int computed_here(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// ---- vector accesses: V is float4, uint4, float2...; the address must be aligned to sizeof(V)

template <class V, class T>
__device__ __forceinline__ V load_vec(const T* p) { return *reinterpret_cast<const V*>(p); }

template <class V, class T>
__device__ __forceinline__ void store_vec(T* p, V v) { *reinterpret_cast<V*>(p) = v; }

// ---- asynchronous copies global -> shared, visible to the issuing thread after cp_async_wait, to others after a barrier

__device__ __forceinline__ uint32_t smem_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Copies 16 bytes (both addresses 16-byte aligned), or writes 16 zero bytes when !valid; src must then still be a
// valid address, but is not read.
__device__ __forceinline__ void cp_async16(void* dst, const void* src, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               ::"r"(smem_address(dst)), "l"(src), "r"(valid ? 16 : 0) : "memory");
}

// The same through L1, for what neighbouring copies read again.
__device__ __forceinline__ void cp_async16_cached(void* dst, const void* src, bool valid = true) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;"
               ::"r"(smem_address(dst)), "l"(src), "r"(valid ? 16 : 0) : "memory");
}

// Closes the group of copies issued since the last commit.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING of this thread's latest groups are unfinished.
template <int PENDING>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// ---- matrix fragments (layouts: PTX ISA, "Warp-level matrix instructions"); called by the whole warp

// Four 8x8 matrices of 16-bit elements; lane l passes the address of row l % 8 of matrix l / 8, 16-byte aligned.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(smem_address(row)) : "memory");
}

// The same, each matrix transposed on the way.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(smem_address(row)) : "memory");
}

// d[i][j] += a[i] b[j]: MI x NI tiles of m16n8k16, bf16 operands, f32 accumulators.
template <int MI, int NI>
__device__ __forceinline__ void mma_bf16_tile(float (&d)[MI][NI][4], const uint32_t (&a)[MI][4],
                                              const uint32_t (&b)[NI][2]) {
  UNROLL for (int i = 0; i < MI; i++) {
    UNROLL for (int j = 0; j < NI; j++) {
      asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                   "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                   : "+f"(d[i][j][0]), "+f"(d[i][j][1]), "+f"(d[i][j][2]), "+f"(d[i][j][3])
                   : "r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]), "r"(b[j][0]), "r"(b[j][1]));
    }
  }
}

// d[i][j] += a[i] b[j]: MI x NI tiles of m16n8k8, operands by to_tf32, f32 accumulators.
template <int MI, int NI>
__device__ __forceinline__ void mma_tf32_tile(float (&d)[MI][NI][4], const uint32_t (&a)[MI][4],
                                              const uint32_t (&b)[NI][2]) {
  UNROLL for (int i = 0; i < MI; i++) {
    UNROLL for (int j = 0; j < NI; j++) {
      asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                   "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                   : "+f"(d[i][j][0]), "+f"(d[i][j][1]), "+f"(d[i][j][2]), "+f"(d[i][j][3])
                   : "r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]), "r"(b[j][0]), "r"(b[j][1]));
    }
  }
}

// Rounds to tf32 (10 mantissa bits, ties away from zero).
__device__ __forceinline__ uint32_t to_tf32(float f) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(f));
  return bits;
}

// Two floats rounded to bf16 (nearest, ties to even), the first in the low half.
__device__ __forceinline__ uint32_t bf16_pair(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// The same of max(0, ·), where NaN stays NaN.
__device__ __forceinline__ uint32_t bf16_pair_relu(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// ---- whole-warp reductions; every lane receives the result. The butterfly's pairing is part of the contract: the
// emulator computes the same sums in the same order, bit for bit.

template <class T>
__device__ __forceinline__ T warp_sum(T v) {
  UNROLL for (int offset = 16; offset > 0; offset >>= 1) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}

// Maximum; as fmaxf does, it passes over NaN. Keep NaN visible by other means where it matters.
template <class T>
__device__ __forceinline__ T warp_max(T v) {
  UNROLL for (int offset = 16; offset > 0; offset >>= 1) v = max(v, __shfl_xor_sync(0xffffffffu, v, offset));
  return v;
}

// To be called in every turn of a loop that waits for another thread: the emulator lets the others run, and reports a
// wait that never ends.
__device__ __forceinline__ void spin_pause() { __nanosleep(20); }

// ---- sm_90a only, for kernels in files named *_sm90.cu: barriers in shared memory, bulk copies of boxes of tensors, matrix
// products of warpgroups (128 threads, the first a multiple of 128 of the block)

// Dynamic shared memory that begins at a multiple of 1024 bytes, as the 128-byte swizzle wants.
#define DYN_SMEM_SWIZZLED(name) extern __shared__ __align__(1024) unsigned char name[]

// Four 8x8 matrices of 16-bit elements, held as ldmatrix_x4_trans hands them out, back to their rows.
__device__ __forceinline__ void stmatrix_x4_trans(void* row, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared::cta.b16 [%0], {%1,%2,%3,%4};"
               ::"r"(smem_address(row)), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
}

// A whole warpgroup changes the registers of its threads to N, down or up.
template <int N>
__device__ __forceinline__ void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N>
__device__ __forceinline__ void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }

// A barrier in shared memory, 8 bytes: each of its phases ends when it has had `arrivals` arrivals and all bytes that
// they announced have been copied. Phases have parity 0, 1, 0...
__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_address(barrier)), "r"(arrivals) : "memory");
}
// By the thread that initialised, before the block's barrier: bulk copies then see it too.
__device__ __forceinline__ void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_address(barrier)) : "memory");
}
// Arrives and announces bytes of bulk copies.
__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
               ::"r"(smem_address(barrier)), "r"(bytes) : "memory");
}
// Waits until the latest phase of this parity has ended; of a fresh barrier, those of parity 1 have.
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
  uint32_t ended;
  do {
    asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                 : "=r"(ended) : "r"(smem_address(barrier)), "r"(parity) : "memory");
  } while (ended == 0);
}

// What cuTensorMapEncodeTiled wrote, aligned as CUtensorMap of CUDA 13; a kernel takes it as
//   const __grid_constant__ TensorMap name
struct alignas(128) TensorMap {
  uint64_t opaque[16];
};
// By one thread, some time before it copies.
__device__ __forceinline__ void prefetch_tensor_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
// Copies the map's box that begins at these coordinates (fastest dimension first; what lies outside of the tensor reads
// as zero) to shared memory at a multiple of 8 times the swizzle (128 bytes without). One thread asks; `barrier` counts the bytes.
__device__ __forceinline__ void tensor_copy(void* dst, const TensorMap& map, int c0, int c1, int c2,
                                            uint64_t* barrier) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
               "[%0], [%1, {%3, %4, %5}], [%2];"
               ::"r"(smem_address(dst)), "l"(&map), "r"(smem_address(barrier)), "r"(c0), "r"(c1), "r"(c2) : "memory");
}
__device__ __forceinline__ void tensor_copy(void* dst, const TensorMap& map, int c0, int c1, int c2, int c3,
                                            uint64_t* barrier) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
               "[%0], [%1, {%3, %4, %5, %6}], [%2];"
               ::"r"(smem_address(dst)), "l"(&map), "r"(smem_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
               : "memory");
}

// Between a thread's own writes to shared memory and what bulk copies or wgmma do there afterwards.
__device__ __forceinline__ void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Before the first product and after every other use of the accumulators. (Naming them keeps the compiler from moving
// such uses across.)
template <int M, int R>
__device__ __forceinline__ void wgmma_fence(float (&d)[M][R]) {
  UNROLL for (int i = 0; i < M; i++) {
    UNROLL for (int j = 0; j < R; j++) asm volatile("" : "+f"(d[i][j])::"memory");
  }
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// Closes the group of products issued since the last commit.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most PENDING of the latest groups are unfinished; accumulators of the others may then be read, and
// their operands overwritten.
template <int PENDING, int M, int R>
__device__ __forceinline__ void wgmma_wait(float (&d)[M][R]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
  UNROLL for (int i = 0; i < M; i++) {
    UNROLL for (int j = 0; j < R; j++) asm volatile("" : "+f"(d[i][j])::"memory");
  }
}

// Accumulators d[i..i + 32) as operands of asm.
#define IN_OUT_8(d, i)                                                                               \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define IN_OUT_32(d, i) IN_OUT_8(d, i), IN_OUT_8(d, i + 8), IN_OUT_8(d, i + 16), IN_OUT_8(d, i + 24)

// d [64][2R] (+)= a [64][16] b [16][2R], bf16 operands in shared memory by wgmma_operand, f32 accumulators: register i of
// thread t holds row 16·(t / 32) + t % 32 / 4 + 8·(i / 2 % 2), column 8·(i / 4) + 2·(t % 4) + i % 2. Called by the whole
// warpgroup. a lies as [row][depth]; b as [column][depth], or TRANSPOSED_B as [depth][column].
template <bool TRANSPOSED_B>
__device__ __forceinline__ void wgmma_bf16(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
  asm volatile("{.reg .pred add; setp.ne.b32 add, %66, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
               "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
               "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
               "%64, %65, add, 1, 1, 0, %67;}"
               : IN_OUT_32(d, 0), IN_OUT_32(d, 32)
               : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(TRANSPOSED_B ? 1 : 0));
}

// The same with a in registers, as mma.sync's fragments have it: register i of thread t holds row 16·(t / 32) + t % 32 / 4 +
// 8·(i % 2), depths 2·(t % 4) + 8·(i / 2) and the next. d += a b.
template <bool TRANSPOSED_B>
__device__ __forceinline__ void wgmma_bf16(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("{.reg .pred add; setp.eq.b32 add, 0, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
               "{%32, %33, %34, %35}, %36, add, 1, 1, %37;}"
               : IN_OUT_32(d, 0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(TRANSPOSED_B ? 1 : 0));
}
// Before products that take a from these registers, once they are written.
__device__ __forceinline__ void wgmma_fence(uint32_t (&a)[4]) {
  asm volatile("" : "+r"(a[0]), "+r"(a[1]), "+r"(a[2]), "+r"(a[3])::"memory");
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// Waits as the above; these registers may then be written again, where no later group takes them.
template <int PENDING>
__device__ __forceinline__ void wgmma_wait(uint32_t (&a)[4]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
  asm volatile("" : "+r"(a[0]), "+r"(a[1]), "+r"(a[2]), "+r"(a[3])::"memory");
}

#endif  // __CUDACC__

// Operand of wgmma, from the byte of shared memory where it begins.
//   [row][depth], ROW 128      rows of 128 bytes under their swizzle, 8 close together, the next 8 `stride` bytes on; depth is
//                              passed by in steps of 32 bytes
//   [row][depth], ROW 16       rows of 16 bytes, 8 close together, the next 8 `stride` bytes on; their next 8 numbers of depth
//                              `leading` bytes on. It may begin at any row
//   [depth][column], ROW 128   64 columns in 128 bytes under their swizzle, 8 depths close together, the next 8 `stride` bytes
//                              on, the next 64 columns `leading` bytes on
template <int ROW = 128>
__device__ __forceinline__ uint64_t wgmma_operand(const void* p, uint32_t stride, uint32_t leading = 16) {
  static_assert(ROW == 16 || ROW == 128, "the swizzle");
  constexpr uint64_t swizzle = uint64_t{ROW == 128 ? 1 : 0} << 62;
  return swizzle | uint64_t{stride >> 4} << 32 | uint64_t{leading >> 4} << 16 | (smem_address(p) >> 4 & 0x3fff);
}

// ---- whole-block reductions: same source on both sides. All threads of a one-dimensional block (a multiple of 32) call
// it and receive the result; the order is fixed (lanes, then warps). Safe to call repeatedly: the leading barrier keeps
// a fast warp from overwriting what a slow one still reads.

template <class T>
__device__ __forceinline__ T block_sum(T v) {
  SHARED(T, partial, [32]);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  v = warp_sum(v);
  __syncthreads();
  if (lane == 0) partial[warp] = v;
  __syncthreads();
  return warp_sum(lane < warps ? partial[lane] : T(0));
}

template <class T>
__device__ __forceinline__ T block_max(T v) {
  SHARED(T, partial, [32]);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  v = warp_max(v);
  __syncthreads();
  if (lane == 0) partial[warp] = v;
  __syncthreads();
  return warp_max(partial[lane < warps ? lane : 0]);
}
