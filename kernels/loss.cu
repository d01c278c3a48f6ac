// Softmax cross-entropy per entry against hard or soft targets: value, gradient, pseudo-labels, and the tangent's inner
// product. One warp owns one entry; sums over classes run in lane order, then the warp's butterfly.
#include "shapes.cuh"
#include "common.cuh"

// Twin of KernelTargets in src/device/cuda/memory.rs: exactly one of the two is set.
struct Targets {
  const int* hard;    // [entries], each in 0..classes
  const float* soft;  // [entries][classes], rows summing to 1
};
static_assert(sizeof(Targets) == 16, "twin of KernelTargets");

// softmax of one entry, in the form exp(z - max) / sum. All lanes of the warp make one.
struct Softmax {
  float max, sum;
  __device__ __forceinline__ Softmax(const float* z, int classes, int lane) {
    float top = -INFINITY;
    for (int j = lane; j < classes; j += 32) top = fmaxf(top, z[j]);
    max = warp_max(top);
    float total = 0.0f;
    for (int j = lane; j < classes; j += 32) total += expf(z[j] - max);
    sum = warp_sum(total);  // a NaN among z shows here
  }
  __device__ __forceinline__ float probability(float z) const { return expf(z - max) / sum; }
};

__device__ __forceinline__ float target(const Targets& t, const LossShape& shape, int entry, int j) {
  return t.soft != nullptr ? t.soft[Offset(entry) * shape.classes + j] : (t.hard[entry] == j ? 1.0f : 0.0f);
}

// This warp's entry; all lanes of a warp behind the last entry work on the last one and write nothing.
struct Entry {
  int index, lane;
  bool exists;
  Offset row;
  __device__ __forceinline__ explicit Entry(const LossShape& shape) {
    const int entry = static_cast<int>(thread_index() / 32);
    lane = threadIdx.x % 32;
    exists = entry < shape.entries;
    index = min(entry, shape.entries - 1);
    row = Offset(index) * shape.classes;
  }
};

// labels[i] = the lowest j with z[i,j] = max z[i,:]
// labels [entries]; z [entries][classes]
// grid: ceil(entries/8) blocks of 256; a warp owns one entry
// 1 <= entries < 2^31 - 256
extern "C" __global__ void __launch_bounds__(256) pseudo_labels(int* __restrict__ labels, const float* __restrict__ z,
                                                                LossShape shape) {
  const Entry entry(shape);
  float best = -INFINITY;
  int label = 0x7fffffff;
  for (int j = entry.lane; j < shape.classes; j += 32) {
    const float value = z[entry.row + j];
    if (value > best || label == 0x7fffffff) best = value, label = j;
  }
  UNROLL for (int offset = 16; offset > 0; offset >>= 1) {
    const float other = __shfl_xor_sync(0xffffffffu, best, offset);
    const int other_label = __shfl_xor_sync(0xffffffffu, label, offset);
    if (other > best || (other == best && other_label < label) || label == 0x7fffffff) best = other, label = other_label;
  }
  if (entry.exists && entry.lane == 0) labels[entry.index] = label;
}

// loss[i] = - sum over j of t[i,j]·log softmax(z[i])[j]
// loss [entries]; z [entries][classes]; targets hard or soft
// grid: ceil(entries/8) blocks of 256; a warp owns one entry
// 1 <= entries < 2^31 - 256
extern "C" __global__ void __launch_bounds__(256) cross_entropy(float* __restrict__ loss, const float* __restrict__ z,
                                                                Targets targets, LossShape shape) {
  const Entry entry(shape);
  const Softmax softmax(z + entry.row, shape.classes, entry.lane);
  const float log_sum = logf(softmax.sum);
  float sum = 0.0f;
  for (int j = entry.lane; j < shape.classes; j += 32) {
    const float t = target(targets, shape, entry.index, j);
    // Skipped where t = 0: a class at -inf is no NaN then.
    if (t != 0.0f) sum += t * (log_sum - (z[entry.row + j] - softmax.max));
  }
  sum = warp_sum(sum);
  if (entry.exists && entry.lane == 0) loss[entry.index] = sum;
}

// dz[i] = first_weights[i]·(softmax(z[i]) - first[i]) + second_weights[i]·(softmax(z[i]) - second[i])
// dz, z [entries][classes]; targets hard or soft; weights [entries]; second_weights null for one term only
// grid: ceil(entries/8) blocks of 256; a warp owns one entry
// 1 <= entries < 2^31 - 256
extern "C" __global__ void __launch_bounds__(256)
    cross_entropy_backward(float* __restrict__ dz, const float* __restrict__ z, Targets first,
                           const float* __restrict__ first_weights, Targets second,
                           const float* __restrict__ second_weights, LossShape shape) {
  const Entry entry(shape);
  const Softmax softmax(z + entry.row, shape.classes, entry.lane);
  for (int j = entry.lane; j < shape.classes; j += 32) {
    const float p = softmax.probability(z[entry.row + j]);
    float sum = first_weights[entry.index] * (p - target(first, shape, entry.index, j));
    if (second_weights != nullptr) {
      sum = __fmaf_rn(second_weights[entry.index], p - target(second, shape, entry.index, j), sum);
    }
    if (entry.exists) dz[entry.row + j] = sum;
  }
}

// raw[i] = sum over j of (softmax(z[i])[j] - t[i,j])·tz[i,j]
// raw [entries]; z, tz [entries][classes]; targets hard or soft
// grid: ceil(entries/8) blocks of 256; a warp owns one entry
// 1 <= entries < 2^31 - 256
extern "C" __global__ void __launch_bounds__(256) tangent_dot(float* __restrict__ raw, const float* __restrict__ z,
                                                              const float* __restrict__ tz, Targets targets,
                                                              LossShape shape) {
  const Entry entry(shape);
  const Softmax softmax(z + entry.row, shape.classes, entry.lane);
  float sum = 0.0f;
  for (int j = entry.lane; j < shape.classes; j += 32) {
    const float p = softmax.probability(z[entry.row + j]);
    sum = __fmaf_rn(p - target(targets, shape, entry.index, j), tz[entry.row + j], sum);
  }
  sum = warp_sum(sum);
  if (entry.exists && entry.lane == 0) raw[entry.index] = sum;
}
