// Filling a buffer with one value. memset of the driver only knows bytes.
#include "dialect.cuh"

// y[i] = value.
// y [n]
// grid: any, block: any; threads stride over the elements
// n < 2^31
extern "C" __global__ void __launch_bounds__(256) fill_f32(float* __restrict__ y,  // [n]
                                                           int n, float value) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) y[i] = value;
}
