// A Source: relu(A·(x - M) + C), pending on a tensor x [rows][channels] stored as T, and its three evaluation forms
//   forward   relu(A·(x - M) + C)
//   tangent   mask·(A·tx + B·(x - M) + D)
//   adjoint   A·mask·d + B·(x - M) + D
// with mask = not (A·(x - M) + C <= 0), so that a NaN stays visible. Every rounding is written out: wherever a mask is
// recomputed it has the same bits. Twins of Source and Tangent in src/device/cuda/memory.rs.
#pragma once
#include "common.cuh"

template <class T>
struct Source {
  const T* x;           // [rows][channels]; as a mask: null for none
  const float* affine;  // [3][channels]: A, C, M; null: the identity
  int relu;
  int reserved;
};

template <class T>
struct Tangent {
  const T* tx;         // [rows][channels]; null: zero
  const float* slope;  // [2][channels]: B, D; null: zero
};

static_assert(sizeof(Source<float>) == 24, "twin of KernelSource");
static_assert(sizeof(Tangent<float>) == 16, "twin of KernelTangent");

// A, C, M of W channels from c on; the identity is 1, 0, 0, which changes no value.
template <int W>
struct Affine {
  Pack<W> scale, shift, centre;

  template <class T>
  __device__ __forceinline__ Affine(const Source<T>& s, int channels, int c) {
    if (s.affine != nullptr) {
      scale = load_pack<W>(s.affine + c);
      shift = load_pack<W>(s.affine + channels + c);
      centre = load_pack<W>(s.affine + 2 * channels + c);
    } else {
      UNROLL for (int i = 0; i < W; i++) scale.v[i] = 1.0f, shift.v[i] = 0.0f, centre.v[i] = 0.0f;
    }
  }
};

// B, D of W channels from c on; a missing slope is 0.
template <int W>
struct Slope {
  Pack<W> factor, shift;

  __device__ __forceinline__ Slope(const float* slope, int channels, int c) : factor{}, shift{} {
    if (slope != nullptr) {
      factor = load_pack<W>(slope + c);
      shift = load_pack<W>(slope + channels + c);
    }
  }
};

__device__ __forceinline__ bool relu_closed(float u) { return u <= 0.0f; }

// A·(x - M) + C: what the mask looks at.
template <int W>
__device__ __forceinline__ Pack<W> source_linear(const Affine<W>& affine, Pack<W> x) {
  UNROLL for (int i = 0; i < W; i++) {
    x.v[i] = __fmaf_rn(affine.scale.v[i], __fsub_rn(x.v[i], affine.centre.v[i]), affine.shift.v[i]);
  }
  return x;
}

template <int W>
__device__ __forceinline__ Pack<W> source_forward(const Affine<W>& affine, bool relu, const Pack<W>& x) {
  Pack<W> u = source_linear(affine, x);
  if (relu) {
    UNROLL for (int i = 0; i < W; i++) u.v[i] = relu_closed(u.v[i]) ? 0.0f : u.v[i];
  }
  return u;
}

// v where the source's ReLU is open, 0 elsewhere; v itself for a source without ReLU.
template <int W>
__device__ __forceinline__ Pack<W> source_mask(const Affine<W>& affine, bool relu, const Pack<W>& x, Pack<W> v) {
  if (relu) {
    const Pack<W> u = source_linear(affine, x);
    UNROLL for (int i = 0; i < W; i++) v.v[i] = relu_closed(u.v[i]) ? 0.0f : v.v[i];
  }
  return v;
}

// A·v + (B·(x - M) + D)
template <int W>
__device__ __forceinline__ Pack<W> source_slope(const Affine<W>& affine, const Slope<W>& slope, const Pack<W>& x,
                                                Pack<W> v) {
  UNROLL for (int i = 0; i < W; i++) {
    const float centred = __fsub_rn(x.v[i], affine.centre.v[i]);
    v.v[i] = __fmaf_rn(affine.scale.v[i], v.v[i], __fmaf_rn(slope.factor.v[i], centred, slope.shift.v[i]));
  }
  return v;
}

template <int W>
__device__ __forceinline__ Pack<W> source_tangent(const Affine<W>& affine, bool relu, const Slope<W>& slope,
                                                  const Pack<W>& x, const Pack<W>& tx) {
  return source_mask(affine, relu, x, source_slope(affine, slope, x, tx));
}

template <int W>
__device__ __forceinline__ Pack<W> source_adjoint(const Affine<W>& affine, bool relu, const Slope<W>& slope,
                                                  const Pack<W>& x, const Pack<W>& d) {
  return source_slope(affine, slope, x, source_mask(affine, relu, x, d));
}
