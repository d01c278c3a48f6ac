// Train transform: pad, random crop, horizontal flip, normalise; one pass from u8 images to floats (suffix _bf16: to bf16).
// Twin of src/data/augment.rs, which defines it; no arithmetic on values but the rounding happens here, so devices agree
// bit for bit.
#include "common.cuh"
#include "philox.cuh"
#include "shapes.cuh"

template <class T>
__device__ __forceinline__ void augment_body(T* out, const unsigned char* images, const unsigned* ids,
                                             const float* table, const StepParams* step, const AugmentShape& shape) {
  const int n = blockIdx.x, len = shape.h * shape.w * shape.c;
  int dy = 0, dx = 0;
  bool flip = false;
  if (shape.pad > 0) {
    const uint4 words = stream_words(step->seed, PURPOSE_CROP, shape.view, ids[n], step->step);
    dy = static_cast<int>(word_below(words.x, 2 * shape.pad + 1)) - shape.pad;
    dx = static_cast<int>(word_below(words.y, 2 * shape.pad + 1)) - shape.pad;
  }
  if (shape.flip) {
    flip = word_below(stream_words(step->seed, PURPOSE_FLIP, shape.view, ids[n], step->step).x, 2) == 1;
  }
  const unsigned char* image = images + (shape.gather ? Offset(ids[n]) : Offset(n)) * len;
  for (int i = threadIdx.x; i < len; i += blockDim.x) {
    const int pixel = i / shape.c, c = i - pixel * shape.c, p = pixel / shape.w, q = pixel - p * shape.w;
    const int row = p + dy, column = (flip ? shape.w - 1 - q : q) + dx;
    const bool inside = row >= 0 && row < shape.h && column >= 0 && column < shape.w;
    const int byte = inside ? image[(row * shape.w + column) * shape.c + c] : 0;
    out[Offset(n) * len + i] = narrowed<T>(table[c * 256 + byte]);
  }
}

// out[n,p,q,c] = table[c][u], u = images[m, p + dy, q' + dx, c] or 0 outside the image, q' = W - 1 - q where flipped else q;
// m = ids[n] where the shape says gather else n;
// dy, dx in -pad..=pad and the flip are drawn from (seed, view, ids[n], step)
// out [N,H,W,C]; images [N,H,W,C], or [any,H,W,C] to gather from; ids [N]; table [C][256] floats; step in device memory
// grid: N blocks of 256; a block owns one image
// HWC < 2^31 - 256
#define AUGMENT_ARGS(T)                                                                                            \
  T *__restrict__ out, const unsigned char *__restrict__ images, const unsigned *__restrict__ ids,                 \
      const float *__restrict__ table, const StepParams *__restrict__ step, AugmentShape shape
extern "C" __global__ void __launch_bounds__(256) augment(AUGMENT_ARGS(float)) {
  augment_body(out, images, ids, table, step, shape);
}
extern "C" __global__ void __launch_bounds__(256) augment_bf16(AUGMENT_ARGS(__nv_bfloat16)) {
  augment_body(out, images, ids, table, step, shape);
}
