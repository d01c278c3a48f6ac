// Convolution over NHWC images and [K][R][S][C] filters: forward, tangent, backward-input (conv_weight.cu holds
// backward-weight), each an implicit matrix product on the tile of conv_tile.cuh. Every output element is one thread's sum over the depth in one
// fixed order. Suffixes: _large (128 x 64 tile) and _small (128 x 32) read four channels at a time, _odd (128 x 32) takes
// any channel counts and addresses.
#include "conv_tile.cuh"

// acc + bias -> epilogue, for the tile of an output [NPQ][K].
template <class T>
__device__ __forceinline__ void finish_rows(float* y, const float (&acc)[T::TM][T::TN], float* memory, const float* bias,
                                            const Epilogue<float>& epilogue, Place<T> at, const ConvShape& shape) {
  lay_out<T>(memory, acc);
  finish_product<float, T, false>(y, memory, bias, epilogue, at.tile, shape.n * shape.p() * shape.q() - at.m0, at.n0,
                                   shape.k, [&](int row) { return at.m0 + row; });
}

// ---- forward

template <class T, int W>
__device__ __forceinline__ void conv_forward_body(float* y, const Source<float>& x, const float* w, const float* bias,
                                                  const Epilogue<float>& epilogue, const ConvShape& shape) {
  SHARED(float, memory, [T::MEMORY]);
  const Place<T> at(shape.k);
  const int depth = shape.r * shape.s * shape.c;
  float acc[T::TM][T::TN] = {};
  PixelRows<T, W, Form::Forward, 1> a(Image<float>{x, {}, shape.h, shape.w, shape.c}, shape.r, shape.s);
  window_origins(a, shape, at.m0);
  FilterRows<T, W> b(w, at.n0, shape.k, depth);
  accumulate<T>(acc, memory, ceil_div(depth, T::BK), a, b);
  finish_rows<T>(y, acc, memory, bias, epilogue, at, shape);
}

// y[n,p,q,k] = sum over r, s, c of x[n, p·stride - pad + r, q·stride - pad + s, c] · w[k,r,s,c] + bias[k], then the epilogue
// y [N,P,Q,K]; x [N,H,W,C] a source; w [K,R,S,C]; bias [K] or null; epilogue over y
// grid: ceil(NPQ/BM)·ceil(K/BN) blocks of the tile's threads; a block owns BM pixels x BN filters, a thread TM x TN
// NPQ, NHW, RSC < 2^31 - 256; _large and _small: C % 4 == 0, all inputs but the bias 16-byte aligned
#define CONV_FORWARD_ARGS                                                                                       \
  float* y, Source<float> x, const float* __restrict__ w, const float* __restrict__ bias, \
      Epilogue<float> epilogue, ConvShape shape

extern "C" __global__ void __launch_bounds__(256, 2) conv_forward_large(CONV_FORWARD_ARGS) {
  conv_forward_body<LargeTile, 4>(y, x, w, bias, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(128, 4) conv_forward_small(CONV_FORWARD_ARGS) {
  conv_forward_body<SmallTile, 4>(y, x, w, bias, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(128, 4) conv_forward_odd(CONV_FORWARD_ARGS) {
  conv_forward_body<SmallTile, 1>(y, x, w, bias, epilogue, shape);
}

// ---- tangent

template <class T, int W>
__device__ __forceinline__ void conv_tangent_body(float* ty, const Source<float>& x, const Tangent<float>& tx,
                                                  const float* w, const float* tw, const float* tbias,
                                                  const Epilogue<float>& epilogue,
                                                  const ConvShape& shape) {
  SHARED(float, memory, [T::MEMORY]);
  const Place<T> at(shape.k);
  const int depth = shape.r * shape.s * shape.c, steps = ceil_div(depth, T::BK);
  float acc[T::TM][T::TN] = {};
  const Image<float> image{x, tx, shape.h, shape.w, shape.c};
  if (tx.tx != nullptr || tx.slope != nullptr) {
    PixelRows<T, W, Form::Tangent, 1> a(image, shape.r, shape.s);
    window_origins(a, shape, at.m0);
    FilterRows<T, W> b(w, at.n0, shape.k, depth);
    accumulate<T>(acc, memory, steps, a, b);
  }
  PixelRows<T, W, Form::Forward, 1> a(image, shape.r, shape.s);
  window_origins(a, shape, at.m0);
  FilterRows<T, W> b(tw, at.n0, shape.k, depth);
  accumulate<T>(acc, memory, steps, a, b);
  finish_rows<T>(ty, acc, memory, tbias, epilogue, at, shape);
}

// ty = conv(tangent of x, w) + conv(x, tw) + tbias, then the epilogue: one accumulation over twice the depth
// ty [N,P,Q,K]; x, tx [N,H,W,C] a source and its tangent; w, tw [K,R,S,C]; tbias [K] or null; epilogue over ty
// grid: ceil(NPQ/BM)·ceil(K/BN) blocks of the tile's threads; a block owns BM pixels x BN filters, a thread TM x TN
// NPQ, NHW, RSC < 2^31 - 256; _large and _small: C % 4 == 0, all inputs but the bias 16-byte aligned
#define CONV_TANGENT_ARGS                                                                    \
  float* ty, Source<float> x, Tangent<float> tx, const float* __restrict__ w, const float* __restrict__ tw, \
      const float* __restrict__ tbias, Epilogue<float> epilogue, ConvShape shape

extern "C" __global__ void __launch_bounds__(256, 2) conv_tangent_large(CONV_TANGENT_ARGS) {
  conv_tangent_body<LargeTile, 4>(ty, x, tx, w, tw, tbias, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(128, 4) conv_tangent_small(CONV_TANGENT_ARGS) {
  conv_tangent_body<SmallTile, 4>(ty, x, tx, w, tw, tbias, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(128, 3) conv_tangent_odd(CONV_TANGENT_ARGS) {
  conv_tangent_body<SmallTile, 1>(ty, x, tx, w, tw, tbias, epilogue, shape);
}

// ---- backward to the input

// Operand b of backward-input: tile columns are input channels, depth is (class tap, filter).
template <class T, int W>
struct FilterColumns {
  static constexpr int RUNS = T::BN / 4;
  static_assert(T::BK * RUNS == T::THREADS, "one run of four per thread");

  const float* w;  // [K,R,S,C]
  const ConvShape shape;
  const ParityClass taps;
  const Divider by_filters, by_columns;
  const int first, depth;
  Pack<W> value[4 / W];

  __device__ __forceinline__ FilterColumns(const float* w, int first, const ConvShape& shape, const ParityClass& taps)
      : w(w), shape(shape), taps(taps), by_filters(shape.k), by_columns(max(taps.taps_s, 1)), first(first),
        depth(taps.taps_r * taps.taps_s * shape.k) {}

  __device__ __forceinline__ void fetch(int step) {
    const int d = step * T::BK + static_cast<int>(threadIdx.x) / RUNS;
    const int tap = by_filters.div(d), k = d - tap * shape.k;
    const int i = by_columns.div(tap), j = tap - i * by_columns.d;
    const int r = taps.r0 + shape.stride * i, s = taps.s0 + shape.stride * j;
    const Offset row = (Offset(k) * shape.r + r) * shape.s + s;
    UNROLL for (int e = 0; e < 4 / W; e++) {
      const int c = first + static_cast<int>(threadIdx.x) % RUNS * 4 + e * W;
      value[e] = {};
      if (d < depth && c < shape.c) value[e] = load_pack<W>(w + row * shape.c + c);
    }
  }

  __device__ __forceinline__ void store(float (&tile)[T::BK][T::LDB]) {
    store_run<W>(tile[threadIdx.x / RUNS], threadIdx.x % RUNS * 4, value);
  }
};

template <class T, int W>
__device__ __forceinline__ void conv_backward_input_body(float* dx, const float* dy, const float* w,
                                                         const Epilogue<float>& epilogue, const ConvShape& shape) {
  SHARED(float, memory, [T::MEMORY]);
  const Place<T> at(shape.c);
  const ParityClass taps(shape, blockIdx.y);
  float acc[T::TM][T::TN] = {};
  PixelRows<T, W, Form::Plain, -1> a(Image<float>{{dy, nullptr, 0, 0}, {}, shape.p(), shape.q(), shape.k}, taps.taps_r,
                                     taps.taps_s);
  class_origins(a, shape, taps, at.m0);
  FilterColumns<T, W> b(w, at.n0, shape, taps);
  accumulate<T>(acc, memory, ceil_div(a.depth, T::BK), a, b);
  lay_out<T>(memory, acc);
  finish_product<float, T, false>(dx, memory, nullptr, epilogue, class_tile(at, shape), taps.pixels(shape.n) - at.m0,
                                   at.n0, shape.c,
                                   [&](int row) { return taps.pixel(shape, at.m0 + row); });
}

// dx[n,h,w,c] (+)= sum over k and the taps with p·stride - pad + r = h, q·stride - pad + s = w of dy[n,p,q,k] · w[k,r,s,c], then the epilogue
// dx [N,H,W,C]; dy [N,P,Q,K]; w [K,R,S,C]; epilogue over dx
// grid: (ceil(N·ceil(H/stride)·ceil(W/stride)/BM)·ceil(C/BN), stride²) blocks of the tile's threads; blockIdx.y is the parity class
// NPQ, NHW, RSK < 2^31 - 256; _large and _small: C % 4 == 0, K % 4 == 0, dy and w 16-byte aligned
#define CONV_BACKWARD_INPUT_ARGS                                                                   \
  float* dx, const float* __restrict__ dy, const float* __restrict__ w, Epilogue<float> epilogue, ConvShape shape

extern "C" __global__ void __launch_bounds__(256, 2) conv_backward_input_large(CONV_BACKWARD_INPUT_ARGS) {
  conv_backward_input_body<LargeTile, 4>(dx, dy, w, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(128, 4) conv_backward_input_small(CONV_BACKWARD_INPUT_ARGS) {
  conv_backward_input_body<SmallTile, 4>(dx, dy, w, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(128, 3) conv_backward_input_odd(CONV_BACKWARD_INPUT_ARGS) {
  conv_backward_input_body<SmallTile, 1>(dx, dy, w, epilogue, shape);
}
