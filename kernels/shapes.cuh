// Geometry and step parameters: twins of the repr(C) structs in src/device/shape.rs, passed to kernels by value
// (StepParams: read from device memory). tests/gpu.rs sends a distinct value through every field.
// N images, H W C input, K filters, R S taps, P Q output. Activations are NHWC, filters [K][R][S][C].
#pragma once
#include "dialect.cuh"

struct ConvShape {
  int n, h, w, c, k, r, s, stride, pad;

  __device__ int p() const { return (h + 2 * pad - r) / stride + 1; }
  __device__ int q() const { return (w + 2 * pad - s) / stride + 1; }
};

struct Rows {
  int rows, channels;
};

struct PoolShape {
  int n, h, w, c, r, s;

  __device__ int p() const { return h / r; }
  __device__ int q() const { return w / s; }
};

struct LossShape {
  int entries, classes;
};

struct AugmentShape {
  int n, h, w, c, pad, flip, view, gather;
};

struct StepParams {
  double lr, lambda, eta, mu, weight_decay, clip;
  unsigned long long seed;
  unsigned step, reserved;
};

static_assert(sizeof(ConvShape) == 36, "twin of ConvShape in shape.rs");
static_assert(sizeof(Rows) == 8, "twin of Rows in shape.rs");
static_assert(sizeof(PoolShape) == 24, "twin of PoolShape in shape.rs");
static_assert(sizeof(LossShape) == 8, "twin of LossShape in shape.rs");
static_assert(sizeof(AugmentShape) == 32, "twin of AugmentShape in shape.rs");
static_assert(sizeof(StepParams) == 64, "twin of StepParams in shape.rs");
