// Average pooling over windows that do not overlap, of a source, and its tangent and adjoint.
#include "shapes.cuh"
#include "source.cuh"

// Position (n, row, column, c) of element i of a tensor [.., rows, columns, channels].
struct Position {
  int n, row, column, c;
  __device__ __forceinline__ Position(int i, int rows, int columns, int channels) {
    const int pixel = i / channels, line = pixel / columns;
    c = i - pixel * channels;
    column = pixel - line * columns;
    n = line / rows;
    row = line - n * rows;
  }
};

// f(offset into x, c) of every element of output element i's window, added in reading order, divided by their number.
template <class F>
__device__ __forceinline__ float window_mean(const PoolShape& shape, const Position& at, F f) {
  float sum = 0.0f;
  for (int r = 0; r < shape.r; r++) {
    for (int s = 0; s < shape.s; s++) {
      const int pixel = (at.n * shape.h + at.row * shape.r + r) * shape.w + at.column * shape.s + s;
      sum += f(pixel * shape.c + at.c);
    }
  }
  return sum / (shape.r * shape.s);
}

// y[n,p,q,c] = mean over r, s of x[n, p·R + r, q·S + s, c]
// y [N,P,Q,C]; x [N,H,W,C] a source
// grid: any number of blocks of 256; a thread owns every (grid·256)-th output element
// NHWC < 2^31
extern "C" __global__ void __launch_bounds__(256) pool_forward(float* __restrict__ y, Source x, PoolShape shape) {
  const int len = shape.n * shape.p() * shape.q() * shape.c;
  for (Offset i = thread_index(); i < len; i += thread_count()) {
    const Position at(static_cast<int>(i), shape.p(), shape.q(), shape.c);
    const Affine<1> affine(x, shape.c, at.c);
    y[i] = window_mean(shape, at, [&](int j) {
      return source_forward(affine, x.relu != 0, load_pack<1>(x.x + j)).v[0];
    });
  }
}

// ty[n,p,q,c] = mean over r, s of the tangent of x at [n, p·R + r, q·S + s, c]
// ty [N,P,Q,C]; x, tx [N,H,W,C] a source and its tangent
// grid: any number of blocks of 256; a thread owns every (grid·256)-th output element
// NHWC < 2^31
extern "C" __global__ void __launch_bounds__(256) pool_tangent(float* __restrict__ ty, Source x, Tangent tx,
                                                               PoolShape shape) {
  const int len = shape.n * shape.p() * shape.q() * shape.c;
  for (Offset i = thread_index(); i < len; i += thread_count()) {
    const Position at(static_cast<int>(i), shape.p(), shape.q(), shape.c);
    const Affine<1> affine(x, shape.c, at.c);
    const Slope<1> slope(tx.slope, shape.c, at.c);
    ty[i] = window_mean(shape, at, [&](int j) {
      Pack<1> value = {};
      if (tx.tx != nullptr) value = load_pack<1>(tx.tx + j);
      return source_tangent(affine, x.relu != 0, slope, load_pack<1>(x.x + j), value).v[0];
    });
  }
}

// d[n,h,w,c] (+)= dy[n, h/R, w/S, c] / (R·S), 0 outside every window, masked
// d [N,H,W,C]; dy [N,P,Q,C]; mask a source over d's geometry, x null for none
// grid: any number of blocks of 256; a thread owns every (grid·256)-th element of d
// NHWC < 2^31
extern "C" __global__ void __launch_bounds__(256) pool_backward(float* d, const float* __restrict__ dy, Source mask,
                                                                PoolShape shape, int add) {
  const int len = shape.n * shape.h * shape.w * shape.c;
  for (Offset i = thread_index(); i < len; i += thread_count()) {
    const Position at(static_cast<int>(i), shape.h, shape.w, shape.c);
    const int p = at.row / shape.r, q = at.column / shape.s;
    Pack<1> value = {};
    if (p < shape.p() && q < shape.q()) {
      const int pixel = (at.n * shape.p() + p) * shape.q() + q;
      value.v[0] = dy[pixel * shape.c + at.c] / (shape.r * shape.s);
    }
    finish<1>(d, i, shape.c, at.c, value, add != 0, mask);
  }
}
