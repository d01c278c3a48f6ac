// Convolution over NHWC images and [K][R][S][C] filters on tensor cores: forward, tangent, backward-input, each an implicit
// matrix product on the tile of mma_tile.cuh (conv.cu: the same in exact f32, conv_weight_mma.cu: backward-weight).
// Suffixes: _large (128 x 128 tile) and _small (128 x 64) read 16 bytes at a time, _odd (128 x 64) takes any channel
// counts and addresses; then the operands' type, _tf32 (images are float) or _bf16. Filters come from filters.cu.
#include "mma_tile.cuh"

// ---- forward

template <class T, class Tile, bool VECTOR>
__device__ __forceinline__ void conv_forward_mma(unsigned char* memory, T* y, const Source<T>& x, const T* w,
                                                 const float* bias, const Epilogue<T>& epilogue, const ConvShape& shape) {
  const Place<Tile> at(shape.k);
  float acc[Tile::MI][Tile::NI][4] = {};
  PixelOperand<T, Tile, VECTOR, Form::Forward, 1> a(Image<T>{x, {}, shape.h, shape.w, shape.c}, shape.r, shape.s);
  window_origins(a, shape, at.m0);
  FilterOperand<T, Tile> b(w, at.n0, shape.k, a.depth);
  mma_accumulate<T, Tile, false>(acc, memory, mma_steps<T>(a.depth), a, b);
  mma_finish_rows<T, Tile, VECTOR>(y, acc, memory, bias, epilogue, at, shape);
}

// y[n,p,q,k] = sum over r, s, c of x[n, p·stride - pad + r, q·stride - pad + s, c] · w[k,r,s,c] + bias[k], then the epilogue
// y [N,P,Q,K]; x [N,H,W,C] a source; w [K][pitch] in rows by filters.cu; bias [K] or null; epilogue over y
// grid: ceil(NPQ/128)·ceil(K/BN) blocks of the tile's threads, MEMORY bytes of dynamic shared memory; a warp owns 64 pixels x 32 filters
// NPQ, NHW, RSC < 2^31 - 256; w 16-byte aligned; _large and _small: C in whole chunks, x and its affine aligned, epilogue.wide
#define CONV_FORWARD_MMA_ARGS(T) \
  T *y, Source<T> x, const T *__restrict__ w, const float *__restrict__ bias, Epilogue<T> epilogue, ConvShape shape

extern "C" __global__ void __launch_bounds__(256, 2) conv_forward_large_tf32(CONV_FORWARD_MMA_ARGS(float)) {
  DYN_SMEM(memory);
  conv_forward_mma<float, LargeMma, true>(memory, y, x, w, bias, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(256, 2) conv_forward_large_bf16(CONV_FORWARD_MMA_ARGS(__nv_bfloat16)) {
  DYN_SMEM(memory);
  conv_forward_mma<__nv_bfloat16, LargeMma, true>(memory, y, x, w, bias, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(128, 3) conv_forward_small_tf32(CONV_FORWARD_MMA_ARGS(float)) {
  DYN_SMEM(memory);
  conv_forward_mma<float, SmallMma, true>(memory, y, x, w, bias, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(128, 3) conv_forward_small_bf16(CONV_FORWARD_MMA_ARGS(__nv_bfloat16)) {
  DYN_SMEM(memory);
  conv_forward_mma<__nv_bfloat16, SmallMma, true>(memory, y, x, w, bias, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(128, 2) conv_forward_odd_tf32(CONV_FORWARD_MMA_ARGS(float)) {
  DYN_SMEM(memory);
  conv_forward_mma<float, SmallMma, false>(memory, y, x, w, bias, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(128, 2) conv_forward_odd_bf16(CONV_FORWARD_MMA_ARGS(__nv_bfloat16)) {
  DYN_SMEM(memory);
  conv_forward_mma<__nv_bfloat16, SmallMma, false>(memory, y, x, w, bias, epilogue, shape);
}

// ---- tangent

template <class T, class Tile, bool VECTOR>
__device__ __forceinline__ void conv_tangent_mma(unsigned char* memory, T* ty, const Source<T>& x, const Tangent<T>& tx,
                                                 const T* w, const T* tw, const float* tbias, const Epilogue<T>& epilogue,
                                                 const ConvShape& shape) {
  const Place<Tile> at(shape.k);
  const Image<T> image{x, tx, shape.h, shape.w, shape.c};
  const int depth = shape.r * shape.s * shape.c, steps = mma_steps<T>(depth);
  float acc[Tile::MI][Tile::NI][4] = {};
  if (tx.tx != nullptr || tx.slope != nullptr) {
    PixelOperand<T, Tile, VECTOR, Form::Tangent, 1> a(image, shape.r, shape.s);
    window_origins(a, shape, at.m0);
    FilterOperand<T, Tile> b(w, at.n0, shape.k, depth);
    mma_accumulate<T, Tile, false>(acc, memory, steps, a, b);
  }
  PixelOperand<T, Tile, VECTOR, Form::Forward, 1> a(image, shape.r, shape.s);
  window_origins(a, shape, at.m0);
  FilterOperand<T, Tile> b(tw, at.n0, shape.k, depth);
  mma_accumulate<T, Tile, false>(acc, memory, steps, a, b);
  mma_finish_rows<T, Tile, VECTOR>(ty, acc, memory, tbias, epilogue, at, shape);
}

// ty = conv(tangent of x, w) + conv(x, tw) + tbias, then the epilogue: one accumulation over twice the depth
// ty [N,P,Q,K]; x, tx [N,H,W,C] a source and its tangent; w, tw [K][pitch] in rows by filters.cu; tbias [K] or null; epilogue over ty
// grid, shared memory and limits as for forward; tx and its slope as x
#define CONV_TANGENT_MMA_ARGS(T)                                                                       \
  T *ty, Source<T> x, Tangent<T> tx, const T *__restrict__ w, const T *__restrict__ tw, \
      const float *__restrict__ tbias, Epilogue<T> epilogue, ConvShape shape

extern "C" __global__ void __launch_bounds__(256, 2) conv_tangent_large_tf32(CONV_TANGENT_MMA_ARGS(float)) {
  DYN_SMEM(memory);
  conv_tangent_mma<float, LargeMma, true>(memory, ty, x, tx, w, tw, tbias, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(256, 2) conv_tangent_large_bf16(CONV_TANGENT_MMA_ARGS(__nv_bfloat16)) {
  DYN_SMEM(memory);
  conv_tangent_mma<__nv_bfloat16, LargeMma, true>(memory, ty, x, tx, w, tw, tbias, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(128, 3) conv_tangent_small_tf32(CONV_TANGENT_MMA_ARGS(float)) {
  DYN_SMEM(memory);
  conv_tangent_mma<float, SmallMma, true>(memory, ty, x, tx, w, tw, tbias, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(128, 3) conv_tangent_small_bf16(CONV_TANGENT_MMA_ARGS(__nv_bfloat16)) {
  DYN_SMEM(memory);
  conv_tangent_mma<__nv_bfloat16, SmallMma, true>(memory, ty, x, tx, w, tw, tbias, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(128, 2) conv_tangent_odd_tf32(CONV_TANGENT_MMA_ARGS(float)) {
  DYN_SMEM(memory);
  conv_tangent_mma<float, SmallMma, false>(memory, ty, x, tx, w, tw, tbias, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(128, 2) conv_tangent_odd_bf16(CONV_TANGENT_MMA_ARGS(__nv_bfloat16)) {
  DYN_SMEM(memory);
  conv_tangent_mma<__nv_bfloat16, SmallMma, false>(memory, ty, x, tx, w, tw, tbias, epilogue, shape);
}

// ---- backward to the input

template <class T, class Tile, bool VECTOR>
__device__ __forceinline__ void conv_backward_input_mma(unsigned char* memory, T* dx, const T* dy, const T* w,
                                                        const Epilogue<T>& epilogue, const ConvShape& shape) {
  const Place<Tile> at(shape.c);
  const ParityClass taps(shape, blockIdx.y);
  float acc[Tile::MI][Tile::NI][4] = {};
  PixelOperand<T, Tile, VECTOR, Form::Plain, -1> a(Image<T>{{dy, nullptr, 0, 0}, {}, shape.p(), shape.q(), shape.k},
                                                   taps.taps_r, taps.taps_s);
  class_origins(a, shape, taps, at.m0);
  FilterOperand<T, Tile> b(w + class_filters<T>(shape, blockIdx.y), at.n0, shape.c, a.depth);
  mma_accumulate<T, Tile, VECTOR>(acc, memory, mma_steps<T>(a.depth), a, b);
  float* product = reinterpret_cast<float*>(memory);
  mma_lay_out<Tile>(product, acc);
  finish_product<T, Tile, VECTOR>(dx, product, nullptr, epilogue, class_tile(at, shape), taps.pixels(shape.n) - at.m0,
                                  at.n0, shape.c,
                                  [&](int row) { return taps.pixel(shape, at.m0 + row); });
}

// dx[n,h,w,c] (+)= sum over k and the taps with p·stride - pad + r = h, q·stride - pad + s = w of dy[n,p,q,k] · w[k,r,s,c], then the epilogue
// dx [N,H,W,C]; dy [N,P,Q,K]; w [stride²][C][pitch] in classes by filters.cu; epilogue over dx
// grid: (ceil(N·ceil(H/stride)·ceil(W/stride)/128)·ceil(C/BN), stride²) blocks of the tile's threads, shared memory as for
//   forward; blockIdx.y is the parity class
// NPQ, NHW, RSK < 2^31 - 256; w 16-byte aligned; _large and _small: K in whole chunks, dy aligned, epilogue.wide
#define CONV_BACKWARD_INPUT_MMA_ARGS(T) \
  T *dx, const T *__restrict__ dy, const T *__restrict__ w, Epilogue<T> epilogue, ConvShape shape

extern "C" __global__ void __launch_bounds__(256, 2) conv_backward_input_large_tf32(CONV_BACKWARD_INPUT_MMA_ARGS(float)) {
  DYN_SMEM(memory);
  conv_backward_input_mma<float, LargeMma, true>(memory, dx, dy, w, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(256, 2) conv_backward_input_large_bf16(CONV_BACKWARD_INPUT_MMA_ARGS(__nv_bfloat16)) {
  DYN_SMEM(memory);
  conv_backward_input_mma<__nv_bfloat16, LargeMma, true>(memory, dx, dy, w, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(128, 3) conv_backward_input_small_tf32(CONV_BACKWARD_INPUT_MMA_ARGS(float)) {
  DYN_SMEM(memory);
  conv_backward_input_mma<float, SmallMma, true>(memory, dx, dy, w, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(128, 3) conv_backward_input_small_bf16(CONV_BACKWARD_INPUT_MMA_ARGS(__nv_bfloat16)) {
  DYN_SMEM(memory);
  conv_backward_input_mma<__nv_bfloat16, SmallMma, true>(memory, dx, dy, w, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(128, 2) conv_backward_input_odd_tf32(CONV_BACKWARD_INPUT_MMA_ARGS(float)) {
  DYN_SMEM(memory);
  conv_backward_input_mma<float, SmallMma, false>(memory, dx, dy, w, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(128, 2) conv_backward_input_odd_bf16(CONV_BACKWARD_INPUT_MMA_ARGS(__nv_bfloat16)) {
  DYN_SMEM(memory);
  conv_backward_input_mma<__nv_bfloat16, SmallMma, false>(memory, dx, dy, w, epilogue, shape);
}
