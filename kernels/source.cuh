// A Source: relu(A·(x - M) + C), pending on a stored tensor x [rows][channels], and its three evaluation forms
//   forward   relu(A·(x - M) + C)
//   tangent   mask·(A·tx + B·(x - M) + D)
//   adjoint   A·mask·d + B·(x - M) + D
// with mask = not (A·(x - M) + C <= 0), so that a NaN stays visible. Every rounding is written out: wherever a mask is
// recomputed it has the same bits. Twins of Source and Tangent in src/device/cuda/memory.rs.
#pragma once
#include "common.cuh"

struct Source {
  const float* x;       // [rows][channels]; as a mask: null for none
  const float* affine;  // [3][channels]: A, C, M; null: the identity
  int relu;
  int reserved;
};

struct Tangent {
  const float* tx;     // [rows][channels]; null: zero
  const float* slope;  // [2][channels]: B, D; null: zero
};

static_assert(sizeof(Source) == 24, "twin of KernelSource");
static_assert(sizeof(Tangent) == 16, "twin of KernelTangent");

// x - M of W channels from c on.
template <int W>
__device__ __forceinline__ Pack<W> source_centre(const Source& s, int channels, int c, Pack<W> x) {
  if (s.affine != nullptr) {
    const Pack<W> centre = load_pack<W>(s.affine + 2 * channels + c);
    UNROLL for (int i = 0; i < W; i++) x.v[i] = __fsub_rn(x.v[i], centre.v[i]);
  }
  return x;
}

// A·(x - M) + C of W channels from c on: what the mask looks at.
template <int W>
__device__ __forceinline__ Pack<W> source_linear(const Source& s, int channels, int c, Pack<W> x) {
  if (s.affine != nullptr) {
    x = source_centre<W>(s, channels, c, x);
    const Pack<W> scale = load_pack<W>(s.affine + c), shift = load_pack<W>(s.affine + channels + c);
    UNROLL for (int i = 0; i < W; i++) x.v[i] = __fmaf_rn(scale.v[i], x.v[i], shift.v[i]);
  }
  return x;
}

__device__ __forceinline__ bool relu_closed(float u) { return u <= 0.0f; }

template <int W>
__device__ __forceinline__ Pack<W> source_forward(const Source& s, int channels, int c, const Pack<W>& x) {
  Pack<W> u = source_linear<W>(s, channels, c, x);
  if (s.relu) {
    UNROLL for (int i = 0; i < W; i++) u.v[i] = relu_closed(u.v[i]) ? 0.0f : u.v[i];
  }
  return u;
}

// v where the source's ReLU is open, 0 elsewhere; v itself for a source without ReLU.
template <int W>
__device__ __forceinline__ Pack<W> source_mask(const Source& s, int channels, int c, const Pack<W>& x, Pack<W> v) {
  if (s.relu) {
    const Pack<W> u = source_linear<W>(s, channels, c, x);
    UNROLL for (int i = 0; i < W; i++) v.v[i] = relu_closed(u.v[i]) ? 0.0f : v.v[i];
  }
  return v;
}

// A·v + (B·(x - M) + D); a missing A is 1, a missing M and a missing slope 0.
template <int W>
__device__ __forceinline__ Pack<W> source_slope(const Source& s, const float* slope, int channels, int c,
                                                const Pack<W>& x, Pack<W> v) {
  Pack<W> base = {};
  if (slope != nullptr) {
    const Pack<W> b = load_pack<W>(slope + c), d = load_pack<W>(slope + channels + c);
    const Pack<W> u = source_centre<W>(s, channels, c, x);
    UNROLL for (int i = 0; i < W; i++) base.v[i] = __fmaf_rn(b.v[i], u.v[i], d.v[i]);
  }
  if (s.affine != nullptr) {
    const Pack<W> scale = load_pack<W>(s.affine + c);
    UNROLL for (int i = 0; i < W; i++) v.v[i] = __fmaf_rn(scale.v[i], v.v[i], base.v[i]);
  } else {
    UNROLL for (int i = 0; i < W; i++) v.v[i] = __fadd_rn(v.v[i], base.v[i]);
  }
  return v;
}

template <int W>
__device__ __forceinline__ Pack<W> source_tangent(const Source& s, const Tangent& t, int channels, int c,
                                                  const Pack<W>& x, const Pack<W>& tx) {
  return source_mask<W>(s, channels, c, x, source_slope<W>(s, t.slope, channels, c, x, tx));
}

template <int W>
__device__ __forceinline__ Pack<W> source_adjoint(const Source& s, const float* slope, int channels, int c,
                                                  const Pack<W>& x, const Pack<W>& d) {
  return source_slope<W>(s, slope, channels, c, x, source_mask<W>(s, channels, c, x, d));
}

// The end of every output, in this order: (add to what is there) -> mask -> store. `at` is the element offset of the W
// values in y and in the mask's tensor, which share their geometry.
template <int W>
__device__ __forceinline__ void finish(float* y, Offset at, int channels, int c, Pack<W> v, bool add,
                                       const Source& mask) {
  if (add) {
    const Pack<W> old = load_pack<W>(y + at);
    UNROLL for (int i = 0; i < W; i++) v.v[i] += old.v[i];
  }
  if (mask.x != nullptr) v = source_mask<W>(mask, channels, c, load_pack<W>(mask.x + at), v);
  store_pack<W>(y + at, v);
}
