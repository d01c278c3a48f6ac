// Element by element over [rows][C]: sum of two sources, its tangent, and the adjoint of a source. Suffixes: _wide handles
// 16 bytes at a time, _odd one number (any channel count, any address); _bf16 for tensors stored as bf16, else float.
#include "epilogue.cuh"
#include "shapes.cuh"

// Grid of all kernels: (ceil(rows/128), ceil(C/(8·W))) blocks of 256; a block owns 128 rows x 8·W channels, a thread W
// neighbouring channels of four rows; W = 16 bytes (_wide) or 1 (_odd). rows < 2^31 - 256.
// _wide: C a multiple of W, all pointers 16-byte aligned.

template <int W>
__device__ __forceinline__ Pack<W> add_packs(Pack<W> a, const Pack<W>& b) {
  UNROLL for (int i = 0; i < W; i++) a.v[i] = __fadd_rn(a.v[i], b.v[i]);
  return a;
}

// A sum already; registers for another addend would spill.
template <class T>
__device__ __forceinline__ Epilogue<T> without_addend(Epilogue<T> epilogue) {
  epilogue.addend = nullptr;
  return epilogue;
}

template <class T, int W>
__device__ __forceinline__ void join_forward_body(T* y, const Source<T>& a, const Source<T>& b,
                                                  const Epilogue<T>& epilogue, const Rows& shape) {
  finish_rows_of<T, W, 2>(y, without_addend(epilogue), shape.rows, shape.channels, [&](int, Offset at, int c) {
    const Pack<W> u = source_forward(Affine<W>(a, shape.channels, c), a.relu != 0, load_pack<W>(a.x + at));
    const Pack<W> v = source_forward(Affine<W>(b, shape.channels, c), b.relu != 0, load_pack<W>(b.x + at));
    return add_packs(u, v);
  });
}

// y = a + b, then the epilogue
// y [rows][C]; a, b sources of this geometry; epilogue over y, without addend
// grid and limits as above
#define JOIN_FORWARD_ARGS(T) T *y, Source<T> a, Source<T> b, Epilogue<T> epilogue, Rows shape
extern "C" __global__ void __launch_bounds__(256, 2) join_forward_wide(JOIN_FORWARD_ARGS(float)) {
  join_forward_body<float, RUN>(y, a, b, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(256, 2) join_forward_wide_bf16(JOIN_FORWARD_ARGS(__nv_bfloat16)) {
  join_forward_body<__nv_bfloat16, RUN>(y, a, b, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(256) join_forward_odd(JOIN_FORWARD_ARGS(float)) {
  join_forward_body<float, 1>(y, a, b, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(256) join_forward_odd_bf16(JOIN_FORWARD_ARGS(__nv_bfloat16)) {
  join_forward_body<__nv_bfloat16, 1>(y, a, b, epilogue, shape);
}

// The tangent of a source at one run, reading from memory only what it depends on.
template <class T, int W>
__device__ __forceinline__ Pack<W> load_tangent(const Source<T>& s, const Tangent<T>& t, int channels, int c, Offset at) {
  Pack<W> x = {}, tx = {};
  if (s.relu || t.slope != nullptr) x = load_pack<W>(s.x + at);
  if (t.tx != nullptr) tx = load_pack<W>(t.tx + at);
  return source_tangent(Affine<W>(s, channels, c), s.relu != 0, Slope<W>(t.slope, channels, c), x, tx);
}

template <class T, int W>
__device__ __forceinline__ void join_tangent_body(T* ty, const Source<T>& a, const Tangent<T>& ta, const Source<T>& b,
                                                  const Tangent<T>& tb, const Epilogue<T>& epilogue, const Rows& shape) {
  finish_rows_of<T, W, 4>(ty, without_addend(epilogue), shape.rows, shape.channels, [&](int, Offset at, int c) {
    return add_packs(load_tangent<T, W>(a, ta, shape.channels, c, at), load_tangent<T, W>(b, tb, shape.channels, c, at));
  });
}

// ty = tangent of a + tangent of b, then the epilogue
// ty [rows][C]; a, b sources of this geometry with tangents ta, tb; epilogue over ty, without addend
// grid and limits as above
#define JOIN_TANGENT_ARGS(T) T *ty, Source<T> a, Tangent<T> ta, Source<T> b, Tangent<T> tb, Epilogue<T> epilogue, Rows shape
extern "C" __global__ void __launch_bounds__(256, 2) join_tangent_wide(JOIN_TANGENT_ARGS(float)) {
  join_tangent_body<float, RUN>(ty, a, ta, b, tb, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(256, 2) join_tangent_wide_bf16(JOIN_TANGENT_ARGS(__nv_bfloat16)) {
  join_tangent_body<__nv_bfloat16, RUN>(ty, a, ta, b, tb, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(256, 2) join_tangent_odd(JOIN_TANGENT_ARGS(float)) {
  join_tangent_body<float, 1>(ty, a, ta, b, tb, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(256, 2) join_tangent_odd_bf16(JOIN_TANGENT_ARGS(__nv_bfloat16)) {
  join_tangent_body<__nv_bfloat16, 1>(ty, a, ta, b, tb, epilogue, shape);
}

template <class T, int W>
__device__ __forceinline__ void source_backward_body(T* dx, const T* d, const Source<T>& x, const float* slope,
                                                     const Epilogue<T>& epilogue, const Rows& shape) {
  finish_rows_of<T, W, 2>(dx, epilogue, shape.rows, shape.channels, [&](int, Offset at, int c) {
    Pack<W> stored = {};
    if (x.relu || slope != nullptr) stored = load_pack<W>(x.x + at);
    const Affine<W> affine(x, shape.channels, c);
    return source_adjoint(affine, x.relu != 0, Slope<W>(slope, shape.channels, c), stored, load_pack<W>(d + at));
  });
}

// dx (+)= A·mask·d + B·(x - M) + D, then the epilogue
// dx, d [rows][C]; x a source of this geometry; slope [2][C] B, D or null; epilogue over dx
// grid and limits as above
#define SOURCE_BACKWARD_ARGS(T) T *dx, const T *d, Source<T> x, const float *slope, Epilogue<T> epilogue, Rows shape
extern "C" __global__ void __launch_bounds__(256, 2) source_backward_wide(SOURCE_BACKWARD_ARGS(float)) {
  source_backward_body<float, RUN>(dx, d, x, slope, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(256, 2) source_backward_wide_bf16(SOURCE_BACKWARD_ARGS(__nv_bfloat16)) {
  source_backward_body<__nv_bfloat16, RUN>(dx, d, x, slope, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(256) source_backward_odd(SOURCE_BACKWARD_ARGS(float)) {
  source_backward_body<float, 1>(dx, d, x, slope, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(256) source_backward_odd_bf16(SOURCE_BACKWARD_ARGS(__nv_bfloat16)) {
  source_backward_body<__nv_bfloat16, 1>(dx, d, x, slope, epilogue, shape);
}
