// Filling a buffer with one value, for the tests of the emulated driver.
#include "dialect.cuh"

// y[i] = value.
// y [n]
// grid: any, block: any; threads stride over the elements
// n < 2^31
extern "C" __global__ void __launch_bounds__(256) fault_none_fill(float* __restrict__ y,  // [n]
                                                           int n, float value) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) y[i] = value;
}
