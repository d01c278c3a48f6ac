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

#endif  // __CUDACC__

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
