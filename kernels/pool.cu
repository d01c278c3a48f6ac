// Average pooling over windows that do not overlap, of a source, and its tangent and adjoint. The pooled side is
// float, whatever the images are stored as. Suffix _bf16: images stored as bf16, else float.
#include "epilogue.cuh"
#include "shapes.cuh"

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

template <class T>
__device__ __forceinline__ void pool_forward_body(float* y, const Source<T>& x, const PoolShape& shape) {
  const int len = shape.n * shape.p() * shape.q() * shape.c;
  for (Offset i = thread_index(); i < len; i += thread_count()) {
    const Position at(static_cast<int>(i), shape.p(), shape.q(), shape.c);
    const Affine<1> affine(x, shape.c, at.c);
    y[i] = window_mean(shape, at, [&](int j) {
      return source_forward(affine, x.relu != 0, load_pack<1>(x.x + j)).v[0];
    });
  }
}

// y[n,p,q,c] = mean over r, s of x[n, p·R + r, q·S + s, c]
// y [N,P,Q,C]; x [N,H,W,C] a source
// grid: any number of blocks of 256; a thread owns every (grid·256)-th output element
// NHWC < 2^31
extern "C" __global__ void __launch_bounds__(256) pool_forward(float* y, Source<float> x, PoolShape shape) {
  pool_forward_body(y, x, shape);
}
extern "C" __global__ void __launch_bounds__(256) pool_forward_bf16(float* y, Source<__nv_bfloat16> x, PoolShape shape) {
  pool_forward_body(y, x, shape);
}

template <class T>
__device__ __forceinline__ void pool_tangent_body(float* ty, const Source<T>& x, const Tangent<T>& tx,
                                                  const PoolShape& shape) {
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

// ty[n,p,q,c] = mean over r, s of the tangent of x at [n, p·R + r, q·S + s, c]
// ty [N,P,Q,C]; x, tx [N,H,W,C] a source and its tangent
// grid: any number of blocks of 256; a thread owns every (grid·256)-th output element
// NHWC < 2^31
#define POOL_TANGENT_ARGS(T) float *ty, Source<T> x, Tangent<T> tx, PoolShape shape
extern "C" __global__ void __launch_bounds__(256) pool_tangent(POOL_TANGENT_ARGS(float)) {
  pool_tangent_body(ty, x, tx, shape);
}
extern "C" __global__ void __launch_bounds__(256) pool_tangent_bf16(POOL_TANGENT_ARGS(__nv_bfloat16)) {
  pool_tangent_body(ty, x, tx, shape);
}

template <class T, int W>
__device__ __forceinline__ void pool_backward_body(T* d, const float* dy, const Epilogue<T>& epilogue,
                                                   const PoolShape& shape) {
  finish_rows_of<T, W, 2>(d, epilogue, shape.n * shape.h * shape.w, shape.c, [&](int row, Offset, int c) {
    const Position at(row, shape.h, shape.w, 1);
    const int p = at.row / shape.r, q = at.column / shape.s;
    Pack<W> value = {};
    if (p < shape.p() && q < shape.q()) {
      value = load_pack<W>(dy + ((at.n * shape.p() + p) * shape.q() + q) * shape.c + c);
      UNROLL for (int i = 0; i < W; i++) value.v[i] /= shape.r * shape.s;
    }
    return value;
  });
}

// d[n,h,w,c] (+)= dy[n, h/R, w/S, c] / (R·S), 0 outside every window, then the epilogue
// d [N,H,W,C]; dy [N,P,Q,C]; epilogue over d
// grid: (ceil(NHW/128), ceil(C/(8·W))) blocks of 256; a block owns 128 pixels x 8·W channels; W = 16 bytes (_wide) or 1 (_odd)
// NHWC < 2^31; _wide: C a multiple of W, all pointers 16-byte aligned
#define POOL_BACKWARD_ARGS(T) T *d, const float *dy, Epilogue<T> epilogue, PoolShape shape
extern "C" __global__ void __launch_bounds__(256, 2) pool_backward_wide(POOL_BACKWARD_ARGS(float)) {
  pool_backward_body<float, RUN>(d, dy, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(256, 2) pool_backward_wide_bf16(POOL_BACKWARD_ARGS(__nv_bfloat16)) {
  pool_backward_body<__nv_bfloat16, RUN>(d, dy, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(256) pool_backward_odd(POOL_BACKWARD_ARGS(float)) {
  pool_backward_body<float, 1>(d, dy, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(256) pool_backward_odd_bf16(POOL_BACKWARD_ARGS(__nv_bfloat16)) {
  pool_backward_body<__nv_bfloat16, 1>(d, dy, epilogue, shape);
}
