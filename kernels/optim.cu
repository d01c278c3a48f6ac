// The optimizer: look-ahead, gradient norm, clipped SGD with momentum and weight decay (METHOD 1.5, 2.5). Step parameters
// are read from device memory, the norm stays there: a recorded step replays with new values.
#include "shapes.cuh"
#include "common.cuh"

template <int W>
struct Width {
  static constexpr int value = W;
};

// f(width, i) for every run of four of 0..len, then for the rest one by one.
template <class F>
__device__ __forceinline__ void for_each_four(Offset len, F f) {
  for (Offset i = thread_index(); i < len / 4; i += thread_count()) f(Width<4>(), i * 4);
  const Offset rest = len / 4 * 4 + thread_index();
  if (rest < len) f(Width<1>(), rest);
}

// out = theta - lambda·(mu·buf + weight_decay·theta)
// out, theta, buf [len]; step in device memory
// grid: any number of blocks of 256; a thread owns every (grid·256)-th run of four
// pointers 16-byte aligned
extern "C" __global__ void __launch_bounds__(256) lookahead(float* __restrict__ out, const float* __restrict__ theta,
                                                            const float* __restrict__ buf,
                                                            const StepParams* __restrict__ step, long long len) {
  const float lambda = static_cast<float>(step->lambda), mu = static_cast<float>(step->mu);
  const float decay = static_cast<float>(step->weight_decay);
  for_each_four(len, [&](auto width, Offset i) {
    constexpr int W = decltype(width)::value;
    const Pack<W> b = load_pack<W>(buf + i);
    Pack<W> t = load_pack<W>(theta + i);
    UNROLL for (int j = 0; j < W; j++) {
      t.v[j] = __fmaf_rn(-lambda, __fmaf_rn(mu, b.v[j], __fmul_rn(decay, t.v[j])), t.v[j]);
    }
    store_pack<W>(out + i, t);
  });
}

// partial[block] = sum of the squares of the block's elements
// partial [grid]; g [len]
// grid: any number of blocks of 256; a thread owns every (grid·256)-th run of four
// g 16-byte aligned
extern "C" __global__ void __launch_bounds__(256) squares_partial(float* __restrict__ partial,
                                                                  const float* __restrict__ g, long long len) {
  float sum = 0.0f;
  for_each_four(len, [&](auto width, Offset i) {
    constexpr int W = decltype(width)::value;
    const Pack<W> v = load_pack<W>(g + i);
    UNROLL for (int j = 0; j < W; j++) sum = __fmaf_rn(v.v[j], v.v[j], sum);
  });
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// norm[0] = sqrt(sum of partial)
// norm [1]; partial [count]
// grid: one block of 256; a thread owns every 256th partial sum
// count any
extern "C" __global__ void __launch_bounds__(256) norm_finish(float* __restrict__ norm,
                                                              const float* __restrict__ partial, int count) {
  float sum = 0.0f;
  for (int i = threadIdx.x; i < count; i += blockDim.x) sum += partial[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) norm[0] = sqrtf(sum);
}

// Twin of Watched in optim.rs.
struct Watched {
  const float* values[4];
  long long len[4];
};

// stopped[0] = 1 + the step's number, where it is 0 and a value is not finite
// stopped [1]; watched.values[k] [watched.len[k]]; step in device memory
// grid: one block of 256; a thread owns every 256th value
// watched.len any, 0 for no operand
extern "C" __global__ void __launch_bounds__(256) watch(unsigned* stopped, Watched watched,
                                                        const StepParams* __restrict__ step) {
  float bad = 0.0f;
  for (int k = 0; k < 4; k++) {
    for (Offset i = threadIdx.x; i < watched.len[k]; i += blockDim.x) {
      // The largest float; a NaN is not below it either.
      if (!(fabsf(watched.values[k][i]) <= 3.402823466e38f)) bad = 1.0f;
    }
  }
  bad = block_max(bad);
  if (threadIdx.x == 0 && bad > 0.0f && stopped[0] == 0) stopped[0] = step->step + 1;
}

// d = min(1, clip/(norm + 1e-6))·g + weight_decay·theta; buf = mu·buf + d; theta = theta - lr·buf; no clipping where clip is 0;
// nothing where stopped is not 0
// theta, buf, g [len]; norm, stopped [1]; step in device memory
// grid: any number of blocks of 256; a thread owns every (grid·256)-th run of four
// pointers 16-byte aligned
extern "C" __global__ void __launch_bounds__(256) sgd(float* __restrict__ theta, float* __restrict__ buf,
                                                      const float* __restrict__ g, const float* __restrict__ norm,
                                                      const unsigned* __restrict__ stopped,
                                                      const StepParams* __restrict__ step, long long len) {
  if (stopped[0] != 0) return;
  const float lr = static_cast<float>(step->lr), mu = static_cast<float>(step->mu);
  const float decay = static_cast<float>(step->weight_decay), clip = static_cast<float>(step->clip);
  const float factor = clip > 0.0f ? fminf(1.0f, clip / (norm[0] + 1e-6f)) : 1.0f;
  for_each_four(len, [&](auto width, Offset i) {
    constexpr int W = decltype(width)::value;
    const Pack<W> gradient = load_pack<W>(g + i);
    Pack<W> t = load_pack<W>(theta + i), b = load_pack<W>(buf + i);
    UNROLL for (int j = 0; j < W; j++) {
      const float d = __fmaf_rn(factor, gradient.v[j], __fmul_rn(decay, t.v[j]));
      b.v[j] = __fmaf_rn(mu, b.v[j], d);
      t.v[j] = __fmaf_rn(-lr, b.v[j], t.v[j]);
    }
    store_pack<W>(buf + i, b);
    store_pack<W>(theta + i, t);
  });
}
