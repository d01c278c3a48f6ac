// 3x3 convolution of stride 1 and padding 1 on tensor cores, forward and tangent, by the halos of conv_halo.cuh: for images
// whose rows fill tiles (`halo` in src/device/cuda/tile.rs); conv_mma.cu takes all others. Suffixes as there.
#include "conv_halo.cuh"

// ---- forward

template <class T, class Tile>
__device__ __forceinline__ void conv_forward_halo(unsigned char* memory, T* y, const Source<T>& x, const T* w,
                                                  const float* bias, const Epilogue<T>& epilogue, const ConvShape& shape) {
  const Place<Tile> at(shape.k);
  float acc[Tile::MI][Tile::NI][4] = {};
  const T* const filters[1] = {w};
  halo_accumulate<T, Tile, Form::Forward>(acc, memory, Image<T>{x, {}, shape.h, shape.w, shape.c}, filters, at, shape);
  mma_finish_rows<T, Tile, true>(y, acc, memory, bias, epilogue, at, shape);
}

// y[n,p,q,k] = sum over r, s, c of x[n, p - 1 + r, q - 1 + s, c] · w[k,r,s,c] + bias[k], then the epilogue
// y [N,P,Q,K]; x [N,H,W,C] a source; w [K][9C] in rows by filters.cu; bias [K] or null; epilogue over y
// grid: ceil(NPQ/128)·ceil(K/BN) blocks of the tile's threads, HaloMemory::BYTES of dynamic shared memory; a warp owns 64 pixels x 32 filters
// NPQ, 9C < 2^31 - 256; W a power of two from 4, 128/W rows a multiple of H or a divisor, at most 208 pixels in a halo; C, K in
//   whole chunks, x, its affine and w 16-byte aligned, epilogue.wide
#define CONV_FORWARD_HALO_ARGS(T) \
  T *y, Source<T> x, const T *__restrict__ w, const float *__restrict__ bias, Epilogue<T> epilogue, ConvShape shape

extern "C" __global__ void __launch_bounds__(256, 2) conv_forward_halo_large_tf32(CONV_FORWARD_HALO_ARGS(float)) {
  DYN_SMEM(memory);
  conv_forward_halo<float, LargeMma>(memory, y, x, w, bias, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(256, 2) conv_forward_halo_large_bf16(CONV_FORWARD_HALO_ARGS(__nv_bfloat16)) {
  DYN_SMEM(memory);
  conv_forward_halo<__nv_bfloat16, LargeMma>(memory, y, x, w, bias, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(128, 3) conv_forward_halo_small_tf32(CONV_FORWARD_HALO_ARGS(float)) {
  DYN_SMEM(memory);
  conv_forward_halo<float, SmallMma>(memory, y, x, w, bias, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(128, 3) conv_forward_halo_small_bf16(CONV_FORWARD_HALO_ARGS(__nv_bfloat16)) {
  DYN_SMEM(memory);
  conv_forward_halo<__nv_bfloat16, SmallMma>(memory, y, x, w, bias, epilogue, shape);
}

// ---- tangent

template <class T, class Tile>
__device__ __forceinline__ void conv_tangent_halo(unsigned char* memory, T* ty, const Source<T>& x, const Tangent<T>& tx,
                                                  const T* w, const T* tw, const float* tbias, const Epilogue<T>& epilogue,
                                                  const ConvShape& shape) {
  const Place<Tile> at(shape.k);
  float acc[Tile::MI][Tile::NI][4] = {};
  const T* const filters[2] = {w, tw};
  halo_accumulate<T, Tile, Form::Tangent>(acc, memory, Image<T>{x, tx, shape.h, shape.w, shape.c}, filters, at, shape);
  // What the end makes of the thread's number is worked out there: kept from before the products, it spills.
  mma_finish_rows<T, Tile, true>(ty, acc, memory, tbias, epilogue, at, shape, computed_here(threadIdx.x) & (Tile::THREADS - 1));
}

// ty = conv(tangent of x, w) + conv(x, tw) + tbias, then the epilogue; x and tx are read and evaluated together
// ty [N,P,Q,K]; x, tx [N,H,W,C] a source and its tangent; w, tw [K][9C] in rows by filters.cu; tbias [K] or null; epilogue over ty
// grid, shared memory and limits as for forward; tx and its slope as x
#define CONV_TANGENT_HALO_ARGS(T)                                                       \
  T *ty, Source<T> x, Tangent<T> tx, const T *__restrict__ w, const T *__restrict__ tw, \
      const float *__restrict__ tbias, Epilogue<T> epilogue, ConvShape shape

extern "C" __global__ void __launch_bounds__(256, 2) conv_tangent_halo_large_tf32(CONV_TANGENT_HALO_ARGS(float)) {
  DYN_SMEM(memory);
  conv_tangent_halo<float, LargeMma>(memory, ty, x, tx, w, tw, tbias, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(256, 2) conv_tangent_halo_large_bf16(CONV_TANGENT_HALO_ARGS(__nv_bfloat16)) {
  DYN_SMEM(memory);
  conv_tangent_halo<__nv_bfloat16, LargeMma>(memory, ty, x, tx, w, tw, tbias, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(128, 3) conv_tangent_halo_small_tf32(CONV_TANGENT_HALO_ARGS(float)) {
  DYN_SMEM(memory);
  conv_tangent_halo<float, SmallMma>(memory, ty, x, tx, w, tw, tbias, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(128, 3) conv_tangent_halo_small_bf16(CONV_TANGENT_HALO_ARGS(__nv_bfloat16)) {
  DYN_SMEM(memory);
  conv_tangent_halo<__nv_bfloat16, SmallMma>(memory, ty, x, tx, w, tw, tbias, epilogue, shape);
}
