// Convolution over NHWC images and [K][R][S][C] filters: forward, tangent, backward-input (conv_weight.cu holds
// backward-weight), each an implicit matrix product on the tile of conv_tile.cuh. Every output element is one thread's sum over the depth in one
// fixed order. Suffixes: _large (128 x 64 tile) and _small (64 x 32) read four channels at a time, _odd (64 x 32) takes
// any channel counts and addresses.
#include "conv_tile.cuh"

// The block's tile of an output [rows][columns], column tiles fastest: blocks that run together share their pixels.
template <class T>
struct Place {
  int m0, n0;
  __device__ __forceinline__ explicit Place(int columns) {
    const int tiles = ceil_div(columns, T::BN);
    m0 = static_cast<int>(blockIdx.x) / tiles * T::BM;
    n0 = static_cast<int>(blockIdx.x) % tiles * T::BN;
  }
};

// Four neighbouring outputs of one row: vector access where the row length allows it.
template <int W>
__device__ __forceinline__ void finish_four(float* y, Offset row_start, int columns, int column, const float (&v)[4],
                                            bool add, const Source& mask) {
  if (W == 4 && columns % 4 == 0) {
    if (column < columns) {
      finish<4>(y, row_start + column, columns, column, Pack<4>{{v[0], v[1], v[2], v[3]}}, add, mask);
    }
  } else {
    UNROLL for (int j = 0; j < 4; j++) {
      if (column + j < columns) {
        finish<1>(y, row_start + column + j, columns, column + j, Pack<1>{{v[j]}}, add, mask);
      }
    }
  }
}

// acc + bias -> finish, for the tile of an output [rows][columns] whose row m is at row_start(m).
template <class T, int W>
__device__ __forceinline__ void finish_tile(float* y, const float (&acc)[T::TM][T::TN], const float* bias, Place<T> at,
                                            int rows, int columns, const Source& mask) {
  const int column = at.n0 + tile_column<T>();
  float shift[4];
  UNROLL for (int j = 0; j < 4; j++) shift[j] = bias != nullptr && column + j < columns ? bias[column + j] : 0.0f;
  UNROLL for (int i = 0; i < T::TM; i++) {
    const int m = at.m0 + tile_row<T>(i);
    if (m < rows) {
      const float v[4] = {acc[i][0] + shift[0], acc[i][1] + shift[1], acc[i][2] + shift[2], acc[i][3] + shift[3]};
      finish_four<W>(y, Offset(m) * columns, columns, column, v, false, mask);
    }
  }
}

// ---- forward

template <class T, int W>
__device__ __forceinline__ void conv_forward_body(float* y, const Source& x, const float* w, const float* bias,
                                                  const Source& mask, const ConvShape& shape) {
  SHARED(float, as, [2][T::BK][T::LDA]);
  SHARED(float, bs, [2][T::BK][T::LDB]);
  const Place<T> at(shape.k);
  const int depth = shape.r * shape.s * shape.c;
  float acc[T::TM][T::TN] = {};
  PixelRows<T, W, Form::Forward, 1> a(Image{x, {}, shape.h, shape.w, shape.c}, shape.r, shape.s);
  window_origins(a, shape, at.m0);
  FilterRows<T, W> b(w, at.n0, shape.k, depth);
  accumulate<T>(acc, as, bs, ceil_div(depth, T::BK), a, b);
  finish_tile<T, W>(y, acc, bias, at, shape.n * shape.p() * shape.q(), shape.k, mask);
}

// y[n,p,q,k] = sum over r, s, c of x[n, p·stride - pad + r, q·stride - pad + s, c] · w[k,r,s,c] + bias[k], masked
// y [N,P,Q,K]; x [N,H,W,C] a source; w [K,R,S,C]; bias [K] or null; mask a source over y's geometry, x null for none
// grid: ceil(NPQ/BM)·ceil(K/BN) blocks of the tile's threads; a block owns BM pixels x BN filters, a thread TM x TN
// NPQ, NHW, RSC < 2^31 - 256; _large and _small: C % 4 == 0, all pointers but the bias 16-byte aligned
#define CONV_FORWARD_ARGS                                                                                       \
  float* y, Source x, const float* __restrict__ w, const float* __restrict__ bias, Source mask, ConvShape shape

extern "C" __global__ void __launch_bounds__(256, 2) conv_forward_large(CONV_FORWARD_ARGS) {
  conv_forward_body<LargeTile, 4>(y, x, w, bias, mask, shape);
}
extern "C" __global__ void __launch_bounds__(128, 4) conv_forward_small(CONV_FORWARD_ARGS) {
  conv_forward_body<SmallTile, 4>(y, x, w, bias, mask, shape);
}
extern "C" __global__ void __launch_bounds__(128, 4) conv_forward_odd(CONV_FORWARD_ARGS) {
  conv_forward_body<SmallTile, 1>(y, x, w, bias, mask, shape);
}

// ---- tangent

template <class T, int W>
__device__ __forceinline__ void conv_tangent_body(float* ty, const Source& x, const Tangent& tx, const float* w,
                                                  const float* tw, const float* tbias, const Source& mask,
                                                  const ConvShape& shape) {
  SHARED(float, as, [2][T::BK][T::LDA]);
  SHARED(float, bs, [2][T::BK][T::LDB]);
  const Place<T> at(shape.k);
  const int depth = shape.r * shape.s * shape.c, steps = ceil_div(depth, T::BK);
  float acc[T::TM][T::TN] = {};
  const Image image{x, tx, shape.h, shape.w, shape.c};
  if (tx.tx != nullptr || tx.slope != nullptr) {
    PixelRows<T, W, Form::Tangent, 1> a(image, shape.r, shape.s);
    window_origins(a, shape, at.m0);
    FilterRows<T, W> b(w, at.n0, shape.k, depth);
    accumulate<T>(acc, as, bs, steps, a, b);
  }
  PixelRows<T, W, Form::Forward, 1> a(image, shape.r, shape.s);
  window_origins(a, shape, at.m0);
  FilterRows<T, W> b(tw, at.n0, shape.k, depth);
  accumulate<T>(acc, as, bs, steps, a, b);
  finish_tile<T, W>(ty, acc, tbias, at, shape.n * shape.p() * shape.q(), shape.k, mask);
}

// ty = conv(tangent of x, w) + conv(x, tw) + tbias, masked: one accumulation over twice the depth
// ty [N,P,Q,K]; x, tx [N,H,W,C] a source and its tangent; w, tw [K,R,S,C]; tbias [K] or null; mask as above
// grid: ceil(NPQ/BM)·ceil(K/BN) blocks of the tile's threads; a block owns BM pixels x BN filters, a thread TM x TN
// NPQ, NHW, RSC < 2^31 - 256; _large and _small: C % 4 == 0, all pointers but the bias 16-byte aligned
#define CONV_TANGENT_ARGS                                                                    \
  float* ty, Source x, Tangent tx, const float* __restrict__ w, const float* __restrict__ tw, \
      const float* __restrict__ tbias, Source mask, ConvShape shape

extern "C" __global__ void __launch_bounds__(256, 2) conv_tangent_large(CONV_TANGENT_ARGS) {
  conv_tangent_body<LargeTile, 4>(ty, x, tx, w, tw, tbias, mask, shape);
}
extern "C" __global__ void __launch_bounds__(128, 4) conv_tangent_small(CONV_TANGENT_ARGS) {
  conv_tangent_body<SmallTile, 4>(ty, x, tx, w, tw, tbias, mask, shape);
}
extern "C" __global__ void __launch_bounds__(128, 4) conv_tangent_odd(CONV_TANGENT_ARGS) {
  conv_tangent_body<SmallTile, 1>(ty, x, tx, w, tw, tbias, mask, shape);
}

// ---- backward to the input

// With stride t the taps that reach input row h are those with r = h + pad (mod t). Rows of one parity share their taps,
// so blockIdx.y takes one parity class of (h, w): no multiplication by a structural zero.
struct ParityClass {
  int h0, w0;            // first input row and column of the class
  int rows, columns;     // input rows and columns in it, per image
  int r0, s0;            // first tap
  int taps_r, taps_s;    // number of taps, one every `stride`
  int y0, x0;            // output row and column that tap (r0, s0) of input (h0, w0) comes from

  __device__ __forceinline__ ParityClass(const ConvShape& shape, int index) {
    const int t = shape.stride;
    h0 = index / t, w0 = index % t;
    rows = max(ceil_div(shape.h - h0, t), 0), columns = max(ceil_div(shape.w - w0, t), 0);
    r0 = (h0 + shape.pad) % t, s0 = (w0 + shape.pad) % t;
    taps_r = max(ceil_div(shape.r - r0, t), 0), taps_s = max(ceil_div(shape.s - s0, t), 0);
    y0 = (h0 + shape.pad - r0) / t, x0 = (w0 + shape.pad - s0) / t;
  }
};

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
                                                         const Source& mask, const ConvShape& shape, int add) {
  SHARED(float, as, [2][T::BK][T::LDA]);
  SHARED(float, bs, [2][T::BK][T::LDB]);
  const Place<T> at(shape.c);
  const ParityClass taps(shape, blockIdx.y);
  const int pixels = taps.rows * taps.columns, rows = shape.n * pixels;
  float acc[T::TM][T::TN] = {};
  PixelRows<T, W, Form::Plain, -1> a(Image{{dy, nullptr, 0, 0}, {}, shape.p(), shape.q(), shape.k}, taps.taps_r,
                                     taps.taps_s);
  UNROLL for (int i = 0; i < a.PASSES; i++) {
    const int m = at.m0 + a.row(i);
    const bool exists = m < rows;
    const int n = exists ? m / pixels : 0, rest = exists ? m - n * pixels : 0;
    const int row = exists ? rest / taps.columns : 0, column = rest - row * taps.columns;
    a.origin(i, exists, n, taps.y0 + row, taps.x0 + column);
  }
  FilterColumns<T, W> b(w, at.n0, shape, taps);
  accumulate<T>(acc, as, bs, ceil_div(a.depth, T::BK), a, b);
  const int column = at.n0 + tile_column<T>();
  UNROLL for (int i = 0; i < T::TM; i++) {
    const int m = at.m0 + tile_row<T>(i);
    if (m < rows) {
      const int n = m / pixels, rest = m - n * pixels, row = rest / taps.columns;
      const int h = taps.h0 + row * shape.stride, x = taps.w0 + (rest - row * taps.columns) * shape.stride;
      const Offset start = Offset((n * shape.h + h) * shape.w + x) * shape.c;
      finish_four<W>(dx, start, shape.c, column, acc[i], add != 0, mask);
    }
  }
}

// dx[n,h,w,c] (+)= sum over k and the taps with p·stride - pad + r = h, q·stride - pad + s = w of dy[n,p,q,k] · w[k,r,s,c], masked
// dx [N,H,W,C]; dy [N,P,Q,K]; w [K,R,S,C]; mask a source over dx's geometry, x null for none
// grid: (ceil(N·ceil(H/stride)·ceil(W/stride)/BM)·ceil(C/BN), stride²) blocks of the tile's threads; blockIdx.y is the parity class
// NPQ, NHW, RSK < 2^31 - 256; _large and _small: C % 4 == 0, K % 4 == 0, all pointers 16-byte aligned
#define CONV_BACKWARD_INPUT_ARGS                                                                   \
  float* dx, const float* __restrict__ dy, const float* __restrict__ w, Source mask, ConvShape shape, int add

extern "C" __global__ void __launch_bounds__(256, 2) conv_backward_input_large(CONV_BACKWARD_INPUT_ARGS) {
  conv_backward_input_body<LargeTile, 4>(dx, dy, w, mask, shape, add);
}
extern "C" __global__ void __launch_bounds__(128, 4) conv_backward_input_small(CONV_BACKWARD_INPUT_ARGS) {
  conv_backward_input_body<SmallTile, 4>(dx, dy, w, mask, shape, add);
}
extern "C" __global__ void __launch_bounds__(128, 4) conv_backward_input_odd(CONV_BACKWARD_INPUT_ARGS) {
  conv_backward_input_body<SmallTile, 1>(dx, dy, w, mask, shape, add);
}
