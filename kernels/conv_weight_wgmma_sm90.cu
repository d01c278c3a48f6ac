// 3x3 convolution, stride 1, padding 1, bf16, backward to the filters on Hopper's tensor cores:
// dw[k,r,s,c] = sum over output pixels of dy[pixel,k] · x[window(pixel),r,s,c].
//
// A block owns 64 channels x 64 filters x all nine taps of one slice of the pixels; three warpgroups own one window column
// s each, their accumulators one window row r each. They walk down the image by slabs, rows of 64 pixels of one image or of several:
// row y of x meets rows y + 1, y, y - 1 of dy for r = 0, 1, 2. A stage of the ring is row y of x and row y + 1 of dy; dy
// stays for two more stages. Both have the depth, the pixels, outermost:
//   A = x     [64 channels][16 pixels]  in registers: ldmatrix transposes, shifts by s - 1 pixels (the copies bring a column
//             more on both sides) and what is pending is evaluated on the way, two channels a thread; padding becomes zero
//   B = dy    [16 pixels][64 filters]   in shared memory as it lies
// so x is copied once for nine taps, and nothing is written to shared memory but by copies.
//
// Per row, 4.72 MFLOP (1150 cycles of wgmma): 16 to 20 KB from L2, 240 to 290 FLOP a byte; shared memory 72 KB of B, 24 KB of
// ldmatrix, 16 to 20 KB of copies, about 100 bytes a cycle of 128. A from shared memory, evaluated there in three shifted
// copies, would want 150; 128 x 128 tiles of three taps as many bytes as this one of nine, in 192 accumulators a thread.
#include "ring.cuh"
#include "source.cuh"

namespace weight_wgmma {
constexpr int SLAB_PIXELS = 64, CHANNELS = 64, FILTERS = 64, CONSUMERS = 3, STAGES = 11;
constexpr int ROW = 128;                 // bytes of 64 channels or filters of a pixel
constexpr int IMAGE_SLAB = 96 * ROW;     // x: 64 / width · (width + 2) pixels; width is 4 at least
constexpr int SLAB = SLAB_PIXELS * ROW;  // dy
constexpr int STAGE_BYTES = IMAGE_SLAB + SLAB, SHARED_BYTES = STAGES * STAGE_BYTES;
static_assert(SHARED_BYTES <= 226 << 10, "twin of SHARED_BYTES in weight_wgmma.rs");
}  // namespace weight_wgmma
using namespace weight_wgmma;

// Twin of WeightShape in src/device/cuda/weight_wgmma.rs. `width` divides w, 64 / width divides n; C, K multiples of 64.
struct WeightShape {
  int n, h, w, c, k;
  int width_log2;  // pixels of an image in a slab
  int slice_rows;  // rows of 64 pixels of a slice
  int add;
};
static_assert(sizeof(WeightShape) == 32, "twin of WeightShape in weight_wgmma.rs");

// A column of slabs: all rows of 64 / width images, from w0 on.
struct Strip {
  int n0, w0;
};

// Every stage of this block's slice, in the order in which both roles go through them: f(strip, row of x, whether the stage
// has it: before a slice's first row of a strip come stages of dy alone).
template <class Stage>
__device__ __forceinline__ void for_all_stages(const WeightShape& shape, Stage stage) {
  const int across = shape.w >> shape.width_log2, strips = (shape.n >> (6 - shape.width_log2)) * across;
  const int first = static_cast<int>(blockIdx.y) * shape.slice_rows;
  const int end = min(first + shape.slice_rows, strips * shape.h);
  for (int at = first; at < end;) {
    const int strip = at / shape.h, y0 = at - strip * shape.h, y1 = min(shape.h, y0 + end - at);
    const Strip place = {strip / across << (6 - shape.width_log2), strip % across << shape.width_log2};
    for (int y = y0 == 0 ? -1 : y0 - 2; y < y1; y++) stage(place, y, y >= y0);
    at += y1 - y0;
  }
}

__device__ __forceinline__ unsigned char* image_slab(unsigned char* smem, int stage) { return smem + stage * STAGE_BYTES; }
__device__ __forceinline__ unsigned char* adjoint_slab(unsigned char* smem, int stage) {
  return smem + stage * STAGE_BYTES + IMAGE_SLAB;
}

// One thread. Rows of dy below the image do not exist; columns of x beside it arrive as zeros.
__device__ __forceinline__ void copy_stages(unsigned char* smem, uint64_t* full_barriers, uint64_t* empty,
                                            const TensorMap& x, const TensorMap& dy, const WeightShape& shape, int c0,
                                            int k0) {
  const int width = 1 << shape.width_log2;
  const uint32_t image_bytes = (SLAB_PIXELS >> shape.width_log2) * (width + 2) * ROW;
  Ring<STAGES> ring;
  for_all_stages(shape, [&](const Strip& at, int y, bool has_image) {
    const bool has_adjoint = y + 1 < shape.h;
    uint64_t* full = &full_barriers[ring.stage];
    mbarrier_wait(&empty[ring.stage], ring.parity ^ 1);
    mbarrier_arrive_expect(full, (has_image ? image_bytes : 0) + (has_adjoint ? SLAB : 0));
    if (has_image) tensor_copy(image_slab(smem, ring.stage), x, c0, at.w0 - 1, y, at.n0, full);
    if (has_adjoint) tensor_copy(adjoint_slab(smem, ring.stage), dy, k0, at.w0, y + 1, at.n0, full);
    ring.advance();
  });
}

// A thread's part of operand A: channels c and c + 8 of its warp's 16, pairs of pixels, of window column s.
struct ImageFragments {
  static constexpr int STEPS = SLAB_PIXELS / 16;

  const Affine<1> affine[2];
  const bool relu;
  int row[STEPS];  // bytes from the slab's begin to what this lane passes to ldmatrix
  unsigned edges;  // pairs, counted through the steps, that have a pixel beside an image that fills the slab's width
  uint32_t inner;  // of such a pair

  __device__ __forceinline__ ImageFragments(const Source<__nv_bfloat16>& source, const WeightShape& shape, int channel0,
                                            int s)
      : affine{{source, shape.c, channel0 + lane() / 4}, {source, shape.c, channel0 + lane() / 4 + 8}},
        relu(source.relu != 0), edges(0), inner(s == 0 ? 0xffff0000u : 0x0000ffffu) {
    const int last = (1 << shape.width_log2) - 1, chunk = channel0 % CHANNELS / 8 + (lane() >> 3 & 1);
    UNROLL for (int step = 0; step < STEPS; step++) {
      const int pixel = step * 16 + (lane() >> 4) * 8 + (lane() & 7);
      const int padded = pixel + s + 2 * (pixel >> shape.width_log2);
      row[step] = computed_here(padded * ROW + ((chunk ^ (padded & 7)) << 4));
      UNROLL for (int half = 0; half < 2; half++) {
        const int pair = step * 16 + half * 8 + lane() % 4 * 2;
        const bool edge = (s == 0 && (pair & last) == 0) || (s == 2 && ((pair + 1) & last) == last);
        edges |= static_cast<unsigned>(edge) << (step * 2 + half);
      }
    }
  }

  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }

  // Step `step` of a slab; `outside`: the pairs of it that have a pixel outside of the image.
  __device__ __forceinline__ void load(uint32_t (&a)[4], const unsigned char* slab, int step, unsigned outside) const {
    uint32_t stored[4];
    ldmatrix_x4_trans(stored, slab + row[step]);
    UNROLL for (int i = 0; i < 4; i++) {
      const float low = source_linear(affine[i % 2], Pack<1>{{__uint_as_float(stored[i] << 16)}}).v[0];
      const float high = source_linear(affine[i % 2], Pack<1>{{__uint_as_float(stored[i] & 0xffff0000u)}}).v[0];
      const uint32_t both = relu ? bf16_pair_relu(low, high) : bf16_pair(low, high);  // as source_forward has it
      a[i] = outside >> (step * 2 + i / 2) & 1 ? both & inner : both;
    }
  }
};

// A row of x with rows y + 1 (BELOW), y, y - 1 (ABOVE) of dy, as far as they are in the image. `released` is called once
// the products of earlier rows have ended.
template <bool BELOW, bool ABOVE, class Released>
__device__ __forceinline__ void multiply_row(float (&acc)[3][32], uint32_t (&operand)[2][4], const ImageFragments& image,
                                             const unsigned char* x, const unsigned char* const (&dy)[3], unsigned outside,
                                             Released released) {
  UNROLL for (int step = 0; step < ImageFragments::STEPS; step++) {
    uint32_t(&a)[4] = operand[step % 2];
    wgmma_wait<1>(a);
    if (step == 1) released();
    image.load(a, x, step, outside);
    wgmma_fence(a);
    UNROLL for (int r = BELOW ? 0 : 1; r < (ABOVE ? 3 : 2); r++) {
      wgmma_bf16<true>(acc[r], a, wgmma_operand(dy[r] + step * 16 * ROW, 1024));
    }
    wgmma_commit();
  }
}

__device__ __forceinline__ void multiply_stages(float* dw, unsigned char* smem, uint64_t* full, uint64_t* empty,
                                                const Source<__nv_bfloat16>& source, const WeightShape& shape, int c0,
                                                int k0) {
  const int s = static_cast<int>(threadIdx.x) / 128 - 1, warp = static_cast<int>(threadIdx.x) % 128 / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32, width = 1 << shape.width_log2;
  const ImageFragments image(source, shape, c0 + warp * 16, s);
  float acc[3][32] = {};        // one window row r each
  uint32_t operand[2][4] = {};  // one is read by products while the next is evaluated
  Ring<STAGES> ring, oldest;    // the stage to come, the last that is not given back
  int kept = 0, before = 0, two_before = 0;
  wgmma_fence(acc);
  for_all_stages(shape, [&](const Strip& at, int y, bool has_image) {
    mbarrier_wait(&full[ring.stage], ring.parity);
    kept++;
    if (has_image) {
      const unsigned char* x = image_slab(smem, ring.stage);
      const unsigned char* const dy[3] = {adjoint_slab(smem, ring.stage), adjoint_slab(smem, before),
                                          adjoint_slab(smem, two_before)};
      const bool beside = s == 0 ? at.w0 == 0 : at.w0 + width == shape.w;
      const unsigned outside = beside ? image.edges : 0;
      const auto released = [&] {
        __syncwarp();  // all lanes have read their part of the slabs
        for (; kept > 3; kept--, oldest.advance()) {
          if (lane == 0) mbarrier_arrive(&empty[oldest.stage]);
        }
      };
      if (y == 0) multiply_row<true, false>(acc, operand, image, x, dy, outside, released);
      else if (y + 1 < shape.h) multiply_row<true, true>(acc, operand, image, x, dy, outside, released);
      else multiply_row<false, true>(acc, operand, image, x, dy, outside, released);
    }
    two_before = before, before = ring.stage;
    ring.advance();
  });
  wgmma_wait<0>(acc);

  float* out = dw + Offset(blockIdx.y) * shape.k * 9 * shape.c;
  UNROLL for (int r = 0; r < 3; r++) {
    UNROLL for (int i = 0; i < 32; i++) {
      const int channel = c0 + warp * 16 + lane / 4 + i / 2 % 2 * 8, filter = k0 + i / 4 * 8 + lane % 4 * 2 + i % 2;
      float* to = out + (Offset(filter) * 9 + r * 3 + s) * shape.c + channel;
      *to = shape.add ? *to + acc[r][i] : acc[r][i];
    }
  }
}

// dw[slice,k,r,s,c] (+)= sum over the slice's pixels (n,y,x) of dy[n,y,x,k] · operand[n, y + r - 1, x + s - 1, c], by rows of x
// dw [slices][K,3,3,C]; x map of [N,H,W,C], boxes of (64 / width) x 1 x (width + 2) x 64; dy map of [N,H,W,K], boxes of
// (64 / width) x 1 x width x 64; both swizzled; source: what is pending on x; the slices are of slice_rows rows of 64 pixels
// grid: (C/64 · K/64, slices) blocks of 512 threads, SHARED_BYTES of DYN_SMEM
// width >= 4; N·H·W < 2^31 - 256
extern "C" __global__ void __launch_bounds__(512, 1) conv_weight_wgmma(
    float* dw, const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap dy,
    const __grid_constant__ Source<__nv_bfloat16> source, const __grid_constant__ WeightShape shape) {
  DYN_SMEM_SWIZZLED(smem);
  SHARED(uint64_t, full, [STAGES]);
  SHARED(uint64_t, empty, [STAGES]);
  if (threadIdx.x == 0) {
    prefetch_tensor_map(x), prefetch_tensor_map(dy);
    for (int i = 0; i < STAGES; i++) {
      mbarrier_init(&full[i], 1);
      mbarrier_init(&empty[i], CONSUMERS * 4);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  const int tiles = shape.k / FILTERS;
  const int c0 = static_cast<int>(blockIdx.x) / tiles * CHANNELS, k0 = static_cast<int>(blockIdx.x) % tiles * FILTERS;
  if (threadIdx.x < 128) {
    give_registers<32>();
    if (threadIdx.x == 0) copy_stages(smem, full, empty, x, dy, shape, c0, k0);
  } else {
    take_registers<160>();
    multiply_stages(dw, smem, full, empty, source, shape, c0, k0);
  }
}
