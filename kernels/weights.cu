// From inner products to weights (METHOD 2.4): raw becomes eta·lambda·raw, then all entries are normalised jointly.
#include "shapes.cuh"
#include "common.cuh"

// Twin of Normalise in src/device/operands.rs, in its order.
enum Normalise {
  NORMALISE_RECTIFY,
  NORMALISE_SOFTMAX,
  NORMALISE_SIGMOID,
  NORMALISE_HARD,
  NORMALISE_RECTIFIED_SIGMOID
};

// raw = eta·lambda·raw; weights = normalise(raw): rectify r⁺/(sum r⁺ + 1e-10); softmax(r/parameter); sigmoid σ(r)/sum σ(r);
// hard: softmax(r) with entries <= parameter zeroed; rectified sigmoid σ(r⁺)/(sum σ(r⁺) + 1e-10)
// weights, raw [entries]; step in device memory
// grid: one block of 1024; a thread owns every 1024th entry
// entries >= 1
extern "C" __global__ void __launch_bounds__(1024) weights(float* __restrict__ weights, float* __restrict__ raw,
                                                           const StepParams* __restrict__ step, long long entries,
                                                           int normalise, float parameter) {
  const float factor = static_cast<float>(step->eta * step->lambda);
  const bool exponential = normalise == NORMALISE_SOFTMAX || normalise == NORMALISE_HARD;
  const bool rectified = normalise == NORMALISE_RECTIFY || normalise == NORMALISE_RECTIFIED_SIGMOID;
  const float scale = normalise == NORMALISE_SOFTMAX ? 1.0f / parameter : 1.0f;
  float top = -INFINITY;
  for (Offset i = threadIdx.x; i < entries; i += blockDim.x) {
    raw[i] *= factor;
    top = fmaxf(top, raw[i] * scale);
  }
  top = block_max(top);
  float sum = 0.0f;
  for (Offset i = threadIdx.x; i < entries; i += blockDim.x) {
    const float r = rectified && raw[i] <= 0.0f ? 0.0f : raw[i];  // a NaN stays one
    float w = r;
    if (exponential) {
      w = expf(r * scale - top);
    } else if (normalise != NORMALISE_RECTIFY) {
      w = 1.0f / (1.0f + expf(-r));
    }
    weights[i] = w;
    sum += w;
  }
  sum = block_sum(sum);
  const float divisor = rectified ? sum + 1e-10f : sum;
  for (Offset i = threadIdx.x; i < entries; i += blockDim.x) {
    const float w = weights[i] / divisor;
    weights[i] = normalise == NORMALISE_HARD && w <= parameter ? 0.0f : w;
  }
}
