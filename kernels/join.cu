// Element by element over [rows][C]: sum of two sources, its tangent, and the adjoint of a source. Suffixes: _four handles
// four channels at a time, _odd one (any channel count, any address).
#include "shapes.cuh"
#include "source.cuh"

// Where the i-th run of W elements of [rows][channels] starts, and its channel. Divides in 64 bits only past 2^31.
template <int W, class F>
__device__ __forceinline__ void for_each_run(const Rows& shape, F f) {
  const Divider by_runs(shape.channels / W);
  const Offset runs = Offset(shape.rows) * by_runs.d;
  for (Offset i = thread_index(); i < runs; i += thread_count()) {
    const int c = i < (Offset(1) << 31) ? by_runs.mod(static_cast<int>(i)) : static_cast<int>(i % by_runs.d);
    f(i * W, c * W);
  }
}

template <int W>
__device__ __forceinline__ Pack<W> add_packs(Pack<W> a, const Pack<W>& b) {
  UNROLL for (int i = 0; i < W; i++) a.v[i] = __fadd_rn(a.v[i], b.v[i]);
  return a;
}

template <int W>
__device__ __forceinline__ void join_forward_body(float* y, const Source& a, const Source& b, const Source& mask,
                                                  const Rows& shape) {
  for_each_run<W>(shape, [&](Offset at, int c) {
    const Pack<W> u = source_forward(Affine<W>(a, shape.channels, c), a.relu != 0, load_pack<W>(a.x + at));
    const Pack<W> v = source_forward(Affine<W>(b, shape.channels, c), b.relu != 0, load_pack<W>(b.x + at));
    finish<W>(y, at, shape.channels, c, add_packs(u, v), false, mask);
  });
}

// y = a + b, masked
// y [rows][C]; a, b, mask sources of this geometry, mask.x null for none
// grid: any number of blocks of 256; a thread owns every (grid·256)-th run of 4 (_four) or 1 (_odd) elements
// _four: C % 4 == 0, all pointers 16-byte aligned
extern "C" __global__ void __launch_bounds__(256) join_forward_four(float* y, Source a, Source b, Source mask, Rows shape) {
  join_forward_body<4>(y, a, b, mask, shape);
}
extern "C" __global__ void __launch_bounds__(256) join_forward_odd(float* y, Source a, Source b, Source mask, Rows shape) {
  join_forward_body<1>(y, a, b, mask, shape);
}

// The tangent of a source at one run, reading from memory only what it depends on.
template <int W>
__device__ __forceinline__ Pack<W> load_tangent(const Source& s, const Tangent& t, int channels, int c, Offset at) {
  Pack<W> x = {}, tx = {};
  if (s.relu || t.slope != nullptr) x = load_pack<W>(s.x + at);
  if (t.tx != nullptr) tx = load_pack<W>(t.tx + at);
  return source_tangent(Affine<W>(s, channels, c), s.relu != 0, Slope<W>(t.slope, channels, c), x, tx);
}

template <int W>
__device__ __forceinline__ void join_tangent_body(float* ty, const Source& a, const Tangent& ta, const Source& b,
                                                  const Tangent& tb, const Source& mask, const Rows& shape) {
  for_each_run<W>(shape, [&](Offset at, int c) {
    const Pack<W> u = load_tangent<W>(a, ta, shape.channels, c, at), v = load_tangent<W>(b, tb, shape.channels, c, at);
    finish<W>(ty, at, shape.channels, c, add_packs(u, v), false, mask);
  });
}

// ty = tangent of a + tangent of b, masked
// ty [rows][C]; a, b, mask sources of this geometry with tangents ta, tb, mask.x null for none
// grid: any number of blocks of 256; a thread owns every (grid·256)-th run of 4 (_four) or 1 (_odd) elements
// _four: C % 4 == 0, all pointers 16-byte aligned
#define JOIN_TANGENT_ARGS float* ty, Source a, Tangent ta, Source b, Tangent tb, Source mask, Rows shape
extern "C" __global__ void __launch_bounds__(256) join_tangent_four(JOIN_TANGENT_ARGS) {
  join_tangent_body<4>(ty, a, ta, b, tb, mask, shape);
}
extern "C" __global__ void __launch_bounds__(256) join_tangent_odd(JOIN_TANGENT_ARGS) {
  join_tangent_body<1>(ty, a, ta, b, tb, mask, shape);
}

template <int W>
__device__ __forceinline__ void source_backward_body(float* dx, const float* d, const Source& x, const float* slope,
                                                     const Source& mask, const Rows& shape, int add) {
  for_each_run<W>(shape, [&](Offset at, int c) {
    Pack<W> stored = {};
    if (x.relu || slope != nullptr) stored = load_pack<W>(x.x + at);
    const Affine<W> affine(x, shape.channels, c);
    const Slope<W> coefficients(slope, shape.channels, c);
    const Pack<W> u = source_adjoint(affine, x.relu != 0, coefficients, stored, load_pack<W>(d + at));
    finish<W>(dx, at, shape.channels, c, u, add != 0, mask);
  });
}

// dx (+)= A·mask·d + B·(x - M) + D, then masked by `mask`
// dx, d [rows][C]; x, mask sources of this geometry, mask.x null for none; slope [2][C] B, D or null
// grid: any number of blocks of 256; a thread owns every (grid·256)-th run of 4 (_four) or 1 (_odd) elements
// _four: C % 4 == 0, all pointers 16-byte aligned
#define SOURCE_BACKWARD_ARGS float* dx, const float* d, Source x, const float* slope, Source mask, Rows shape, int add
extern "C" __global__ void __launch_bounds__(256) source_backward_four(SOURCE_BACKWARD_ARGS) {
  source_backward_body<4>(dx, d, x, slope, mask, shape, add);
}
extern "C" __global__ void __launch_bounds__(256) source_backward_odd(SOURCE_BACKWARD_ARGS) {
  source_backward_body<1>(dx, d, x, slope, mask, shape, add);
}
