// 3x3 convolution, stride 1, padding 1, bf16 on Hopper's tensor cores: forward, tangent (two products summed) and
// backward-input (filters mirrored by the caller). Tiles and ring: conv_wgmma.cuh.
//
// A block is resident and takes every gridDim.x-th tile. Its first warp asks for copies; the other three of that
// warpgroup turn stored values into operands, in place, where something is pending on them (padding stays zero); two
// warpgroups multiply, half of the tile's rows each. Between them stand barriers in shared memory:
//   full    copies -> transformers, or consumers where nothing is pending
//   ready   transformers -> consumers, of every stage once anything is pending
//   empty   consumers -> copies
#include "conv_wgmma.cuh"

using namespace wgmma_tile;

struct WgmmaBarriers {
  uint64_t *full, *ready, *empty;
};

// Every stage of every tile, in the order in which all three roles go through them: f(place, stage's place in the ring,
// pass, first channel, column of the window, whether it is the tile's first, whether its last).
template <int FILTERS, class Stage, class Tile>
__device__ __forceinline__ void for_all_stages(const WgmmaShape& shape, Stage stage, Tile end_of_tile) {
  const int tiles = WgmmaPlace<FILTERS>::count(shape);
  RingPlace ring;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const WgmmaPlace<FILTERS> at(shape, tile);
    for (int pass = 0; pass < shape.passes; pass++) {
      for (int c = 0; c < shape.c; c += DEPTH) {
        for (int s = 0; s < 3; s++) {
          stage(at, ring, pass, c, s);
          ring.advance();
        }
      }
    }
    end_of_tile(at);
  }
}

// One thread: slabs and three filter slices a stage.
template <int FILTERS>
__device__ __forceinline__ void copy_stages(unsigned char* smem, const WgmmaBarriers& barriers, const TensorMap& x0,
                                            const TensorMap& w0, const TensorMap& x1, const TensorMap& w1,
                                            const WgmmaShape& shape) {
  for_all_stages<FILTERS>(
      shape,
      [&](const WgmmaPlace<FILTERS>& at, const RingPlace& ring, int pass, int c, int s) {
        const TensorMap& x = pass == 0 ? x0 : x1;
        const TensorMap& w = pass == 0 ? w0 : w1;
        unsigned char* slabs = smem + ring.stage * STAGE_BYTES<FILTERS>;
        uint64_t* full = &barriers.full[ring.stage];
        mbarrier_wait(&barriers.empty[ring.stage], ring.parity ^ 1);
        mbarrier_arrive_expect(full, STAGE_BYTES<FILTERS>);
        for (int i = 0; i < SLABS<FILTERS>; i++) tensor_copy(slabs + i * SLAB, x, c, at.w0 + s - 1, at.h0 + i - 1, at.n0, full);
        for (int r = 0; r < 3; r++) {
          tensor_copy(slabs + SLABS<FILTERS> * SLAB + r * FILTER_SLICE<FILTERS>, w, c, r * 3 + s, at.k0, full);
        }
      },
      [](const WgmmaPlace<FILTERS>&) {});
}

// Channels c, c + 1... of a pixel's operand, from what its bulk copy brought and, for a tangent, x.
__device__ __forceinline__ Pack<4> pending_four(const WgmmaPending& pending, const Affine<4>& affine,
                                                const Slope<4>& slope, const Pack<4>& copied, const Pack<4>& x) {
  if (pending.form == FORM_TANGENT) return source_tangent(affine, pending.source.relu != 0, slope, x, copied);
  return source_forward(affine, pending.source.relu != 0, copied);
}

__device__ __forceinline__ void split_eight(uint4 t, Pack<4> (&out)[2]) {
  const unsigned words[4] = {t.x, t.y, t.z, t.w};
  UNROLL for (int i = 0; i < 4; i++) {
    out[i / 2].v[i % 2 * 2] = __uint_as_float(words[i] << 16);
    out[i / 2].v[i % 2 * 2 + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}
__device__ __forceinline__ uint4 join_eight(const Pack<4>& a, const Pack<4>& b) {
  return make_uint4(bf16_pair(a.v[0], a.v[1]), bf16_pair(a.v[2], a.v[3]), bf16_pair(b.v[0], b.v[1]),
                    bf16_pair(b.v[2], b.v[3]));
}

// Three warps: thread t owns eight channels, t % 8 of the slab's eight runs of them, of every twelfth pixel.
template <int FILTERS>
__device__ __forceinline__ void transform_stages(unsigned char* smem, const WgmmaBarriers& barriers,
                                                 const WgmmaPending& pending0, const WgmmaPending& pending1,
                                                 const WgmmaShape& shape) {
  const int thread = static_cast<int>(threadIdx.x) - 32, run = thread % 8;
  for_all_stages<FILTERS>(
      shape,
      [&](const WgmmaPlace<FILTERS>& at, const RingPlace& ring, int pass, int c0, int s) {
        const WgmmaPending& pending = pass == 0 ? pending0 : pending1;
        const int c = c0 + run * 8;
        unsigned char* slabs = smem + ring.stage * STAGE_BYTES<FILTERS>;
        mbarrier_wait(&barriers.full[ring.stage], ring.parity);
        if (c < shape.c && pending.form != FORM_PLAIN) {
          const Affine<4> affine[2] = {{pending.source, shape.c, c}, {pending.source, shape.c, c + 4}};
          const Slope<4> slope[2] = {{pending.slope, shape.c, c}, {pending.slope, shape.c, c + 4}};
          for (int pixel = thread / 8; pixel < SLABS<FILTERS> * SLAB_PIXELS; pixel += TRANSFORM_THREADS / 8) {
            const int column = pixel % SLAB_PIXELS;
            const int n = at.n0 + (column >> shape.width_log2), h = at.h0 + pixel / SLAB_PIXELS - 1;
            const int w = at.w0 + (column & ((1 << shape.width_log2) - 1)) + s - 1;
            if (n >= shape.n || h < 0 || h >= shape.h || w < 0 || w >= shape.w) continue;
            unsigned char* place = slabs + pixel * 128 + (run ^ (pixel & 7)) * 16;
            Pack<4> copied[2], x[2] = {};
            split_eight(load_vec<uint4>(place), copied);
            if (pending.form == FORM_TANGENT) {
              const auto* stored = reinterpret_cast<const __nv_bfloat16*>(pending.source.x);
              split_eight(load_vec<uint4>(stored + ((Offset(n) * shape.h + h) * shape.w + w) * shape.c + c), x);
            }
            store_vec(place, join_eight(pending_four(pending, affine[0], slope[0], copied[0], x[0]),
                                        pending_four(pending, affine[1], slope[1], copied[1], x[1])));
          }
        }
        fence_proxy_async();
        mbarrier_arrive(&barriers.ready[ring.stage]);
      },
      [](const WgmmaPlace<FILTERS>&) {});
}

// Where four columns from `column` on of a row lie among the 128 x COLUMNS floats that a consumer stages: permuted within
// 128 bytes, so that neither its writes nor its reads meet in a bank more than twice.
template <int COLUMNS>
__device__ __forceinline__ int staged_place(int row, int column) {
  constexpr int CHUNKS = COLUMNS / 4;  // of 16 bytes
  const int permuted = (row & 3) << 1 | (row >> 2 & 1);
  return row * COLUMNS + (((column >> 2) ^ permuted % CHUNKS) << 2) + (column & 3);
}

// A consumer's rows of the tile, two at a time: 128 pixels.
template <int FILTERS>
__device__ __forceinline__ void store_tile(__nv_bfloat16* y, const float (&acc)[CONSUMER_ROWS<FILTERS>][FILTERS / 2],
                                           float* staged, const float* bias, const WgmmaShape& shape,
                                           const WgmmaPlace<FILTERS>& at, int consumer) {
  constexpr int COLUMNS = STAGED_COLUMNS<FILTERS>, RUNS = COLUMNS / 8;
  const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
  UNROLL for (int row0 = 0; row0 < CONSUMER_ROWS<FILTERS>; row0 += 2) {
    UNROLL for (int column0 = 0; column0 < FILTERS; column0 += COLUMNS) {
      named_barrier(1 + consumer, 128);
      UNROLL for (int i = 0; i < 2; i++) {
        UNROLL for (int j = 0; j < COLUMNS / 2; j += 2) {
          const int row = i * SLAB_PIXELS + warp * 16 + lane / 4 + (j & 2) * 4, column = j / 4 * 8 + lane % 4 * 2;
          const float* two = &acc[row0 + i][column0 / 2 + j];
          store_vec(staged + staged_place<COLUMNS>(row, column), make_float2(two[0], two[1]));
        }
      }
      named_barrier(1 + consumer, 128);
      const int run = thread % RUNS * 8, k = at.k0 + column0 + run;
      for (int row = thread / RUNS; row < 2 * SLAB_PIXELS; row += 128 / RUNS) {
        const int pixel = row % SLAB_PIXELS, n = at.n0 + (pixel >> shape.width_log2);
        const int h = at.h0 + consumer * CONSUMER_ROWS<FILTERS> + row0 + row / SLAB_PIXELS;
        const int w = at.w0 + (pixel & ((1 << shape.width_log2) - 1));
        if (n >= shape.n || h >= shape.h || w >= shape.w || k >= shape.k) continue;
        Pack<4> v[2];
        UNROLL for (int i = 0; i < 2; i++) {
          v[i] = load_pack<4>(staged + staged_place<COLUMNS>(row, run + 4 * i));
          if (bias != nullptr) {
            UNROLL for (int j = 0; j < 4; j++) v[i].v[j] += bias[k + 4 * i + j];
          }
        }
        store_vec(y + ((Offset(n) * shape.h + h) * shape.w + w) * shape.k + k, join_eight(v[0], v[1]));
      }
    }
  }
}

template <int FILTERS>
__device__ __forceinline__ void multiply_stages(unsigned char* smem, uint64_t* operands_there, uint64_t* empty,
                                                __nv_bfloat16* y, const float* bias, const WgmmaShape& shape) {
  const int consumer = static_cast<int>(threadIdx.x) / 128 - 1;
  float* staged = reinterpret_cast<float*>(smem + STAGES * STAGE_BYTES<FILTERS> + consumer * STAGED<FILTERS>);
  float acc[CONSUMER_ROWS<FILTERS>][FILTERS / 2];
  bool first = true;
  int under_way = 0;
  // A warp gives a stage back when its products have left it: one stage later, and at the end of the tile.
  auto release = [&] {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(&empty[under_way]);
  };
  for_all_stages<FILTERS>(
      shape,
      [&](const WgmmaPlace<FILTERS>&, const RingPlace& ring, int, int, int) {
        mbarrier_wait(&operands_there[ring.stage], ring.parity);
        const unsigned char* slabs = smem + ring.stage * STAGE_BYTES<FILTERS> + consumer * CONSUMER_ROWS<FILTERS> * SLAB;
        const unsigned char* filters = smem + ring.stage * STAGE_BYTES<FILTERS> + SLABS<FILTERS> * SLAB;
        wgmma_fence(acc);
        UNROLL for (int r = 0; r < 3; r++) {
          UNROLL for (int k = 0; k < DEPTH; k += 16) {
            const uint64_t b = wgmma_operand(filters + r * FILTER_SLICE<FILTERS> + k * 2, 1024);
            UNROLL for (int i = 0; i < CONSUMER_ROWS<FILTERS>; i++) {
              wgmma_bf16<false>(acc[i], wgmma_operand(slabs + (i + r) * SLAB + k * 2, 1024), b, !first || r + k > 0);
            }
          }
        }
        wgmma_commit();
        wgmma_wait<1>(acc);
        if (!first) release();
        first = false;
        under_way = ring.stage;
      },
      [&](const WgmmaPlace<FILTERS>& at) {
        wgmma_wait<0>(acc);
        release();
        store_tile<FILTERS>(y, acc, staged, bias, shape, at, consumer);
        first = true;
      });
}

template <int FILTERS>
__device__ __forceinline__ void conv_wgmma_body(__nv_bfloat16* y, const TensorMap& x0, const TensorMap& w0,
                                                const TensorMap& x1, const TensorMap& w1, const WgmmaPending& pending0,
                                                const WgmmaPending& pending1, const float* bias,
                                                const WgmmaShape& shape) {
  DYN_SMEM_SWIZZLED(smem);
  SHARED(uint64_t, barriers, [3 * STAGES]);
  const WgmmaBarriers all = {barriers, barriers + STAGES, barriers + 2 * STAGES};
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      mbarrier_init(&all.full[i], 1);
      mbarrier_init(&all.ready[i], TRANSFORM_THREADS);
      mbarrier_init(&all.empty[i], CONSUMERS * 4);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  const bool transformed = pending0.form != FORM_PLAIN || pending1.form != FORM_PLAIN;
  if (threadIdx.x < 128) {
    give_registers<96>();
    if (threadIdx.x == 0) {
      copy_stages<FILTERS>(smem, all, x0, w0, x1, w1, shape);
    } else if (threadIdx.x >= 32 && transformed) {
      transform_stages<FILTERS>(smem, all, pending0, pending1, shape);
    }
  } else {
    take_registers<208>();
    multiply_stages<FILTERS>(smem, transformed ? all.ready : all.full, all.empty, y, bias, shape);
  }
}

// y[n,h,w,k] = sum over passes, r, s, c of operand[n, h + r - 1, w + s - 1, c] · filter[k,r,s,c] + bias[k], rounded
// y [N,H,W,K]; x0, x1 maps of [N,H,W,C], boxes of 1 row x the slab's images and pixels x 64 channels; w0, w1 maps of
// [K,9,C], boxes of FILTERS x 1 x 64; all swizzled; bias [K] or null; what `passes` leaves out repeats the first
// grid: at most one block a multiprocessor, 384 threads, SHARED_BYTES<FILTERS> of DYN_SMEM
// C, K multiples of 8; y and what is pending 16-byte aligned; N·H·W < 2^31 - 256
#define CONV_WGMMA_ARGS                                                                                              \
  __nv_bfloat16 *y, const __grid_constant__ TensorMap x0, const __grid_constant__ TensorMap w0,                      \
      const __grid_constant__ TensorMap x1, const __grid_constant__ TensorMap w1,                                    \
      const __grid_constant__ WgmmaPending pending0, const __grid_constant__ WgmmaPending pending1,                  \
      const float *__restrict__ bias, const __grid_constant__ WgmmaShape shape

extern "C" __global__ void __launch_bounds__(384, 1) conv_wgmma_64(CONV_WGMMA_ARGS) {
  conv_wgmma_body<64>(y, x0, w0, x1, w1, pending0, pending1, bias, shape);
}
extern "C" __global__ void __launch_bounds__(384, 1) conv_wgmma_128(CONV_WGMMA_ARGS) {
  conv_wgmma_body<128>(y, x0, w0, x1, w1, pending0, pending1, bias, shape);
}
