// 3x3 convolution, stride 1, padding 1, bf16 on Hopper's tensor cores: forward, tangent (two products summed) and
// backward-input (taps mirrored), with the filters of filters.cu. Tiles and ring: conv_wgmma.cuh.
//
// A block is resident and takes every gridDim.x-th tile. A thread of its first warpgroup asks for copies; the second warpgroup
// turns stored values into operands, in place, where something is pending on them (padding stays zero); the other two
// multiply, half of the tile's rows each. Between them stand barriers in shared memory:
//   full    copies -> transformers, or consumers where nothing is pending
//   ready   transformers -> consumers, of every stage once anything is pending
//   empty   consumers -> copies
#include "conv_wgmma.cuh"

using namespace wgmma_tile;

struct WgmmaBarriers {
  uint64_t *full, *ready, *empty;
};

// Every stage of every tile, in the order in which all three roles go through them: f(place, stage's place in the ring,
// product, first channel, column of the window).
template <int FILTERS, class Stage, class Tile>
__device__ __forceinline__ void for_all_stages(const WgmmaShape& shape, Stage stage, Tile end_of_tile) {
  const int tiles = WgmmaPlace<FILTERS>::count(shape);
  RingPlace ring;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const WgmmaPlace<FILTERS> at(shape, tile);
    for (int c = 0; c < shape.c; c += DEPTH) {
      for (int s = 0; s < 3; s++) {
        for (int product = 0; product < shape.products; product++) {
          stage(at, ring, product, c, s);
          ring.advance();
        }
      }
    }
    end_of_tile(at, ring);
  }
}

// One thread: slabs and three filter slices a stage.
template <int FILTERS>
__device__ __forceinline__ void copy_stages(unsigned char* smem, const WgmmaBarriers& barriers, const TensorMap& x0,
                                            const TensorMap& w0, const TensorMap& x1, const TensorMap& w1,
                                            const WgmmaShape& shape) {
  for_all_stages<FILTERS>(
      shape,
      [&](const WgmmaPlace<FILTERS>& at, const RingPlace& ring, int product, int c, int s) {
        const TensorMap& x = product == 0 ? x0 : x1;
        const TensorMap& w = product == 0 ? w0 : w1;
        unsigned char* slabs = smem + ring.stage * STAGE_BYTES<FILTERS>;
        unsigned char* filters = slabs + SLABS<FILTERS> * SLAB;
        uint64_t* full = &barriers.full[ring.stage];
        mbarrier_wait(&barriers.empty[ring.stage], ring.parity ^ 1);
        mbarrier_arrive_expect(full, STAGE_BYTES<FILTERS>);
        for (int i = 0; i < SLABS<FILTERS>; i++) {
          tensor_copy(slabs + i * SLAB, x, c, at.w0 + s - 1, at.h0 + i - 1, at.n0, full);
        }
        for (int r = 0; r < 3; r++) {
          const int tap = shape.mirrored != 0 ? 8 - (r * 3 + s) : r * 3 + s;
          tensor_copy(filters + r * FILTER_SLICE<FILTERS>, w, c, tap, at.k0, full);
        }
      },
      [](const WgmmaPlace<FILTERS>&, const RingPlace&) {});
}

// A warpgroup: thread t owns four channels, t % 8 of a slab's eight runs of them, of every 16th pixel. Turns x into
// relu(A·(x - M) + C); of a PAIR of stages also the first one's tx (without: whatever was copied there) into
// mask·(A·tx + B·(x - M) + D).
template <int FILTERS, bool PAIR>
__device__ __forceinline__ void transform_stages(unsigned char* smem, const WgmmaBarriers& barriers,
                                                 const Source<__nv_bfloat16>& source,
                                                 const Tangent<__nv_bfloat16>& tangent, const WgmmaShape& shape) {
  constexpr int RUNS = DEPTH / RUN, STEP = 128 / RUNS, PIXELS = SLAB_PIXELS / STEP;
  const int thread = static_cast<int>(threadIdx.x) % 128, run = thread % RUNS, pixel = thread / RUNS;
  const int place = pixel * ROW + (run ^ (pixel & 6)) * RUN * 2;  // STEP pixels further: STEP rows on
  static_assert(STEP % 8 == 0, "the swizzle repeats");
  for_all_stages<FILTERS>(
      shape,
      [&](const WgmmaPlace<FILTERS>& at, const RingPlace& first, int product, int c0, int s) {
        if (PAIR && product != 0) return;  // done with the other one
        RingPlace last = first;
        if (PAIR) last.advance();
        const int c = c0 + run * RUN;
        // Before the wait, which hides how long they take.
        const Affine<RUN> affine(source, shape.c, min(c, shape.c - RUN));
        const Slope<RUN> slope(PAIR ? tangent.slope : nullptr, shape.c, min(c, shape.c - RUN));
        // Channels past the last and pixels outside of the image stay the zeros that the copies brought.
        bool inside[PIXELS];
        UNROLL for (int i = 0; i < PIXELS; i++) {
          const int w = at.w0 + ((pixel + i * STEP) & ((1 << shape.width_log2) - 1)) + s - 1;
          inside[i] = c < shape.c && w >= 0 && w < shape.w;
        }
        if (PAIR) mbarrier_wait(&barriers.full[first.stage], first.parity);
        mbarrier_wait(&barriers.full[last.stage], last.parity);
        NO_UNROLL for (int slab = 0; slab < SLABS<FILTERS>; slab++) {
          if (at.h0 + slab < 1 || at.h0 + slab > shape.h) continue;
          unsigned char* const values = smem + last.stage * STAGE_BYTES<FILTERS> + slab * SLAB + place;
          unsigned char* const tangents = smem + first.stage * STAGE_BYTES<FILTERS> + slab * SLAB + place;
          uint2 x[PIXELS], tx[PIXELS];
          UNROLL for (int i = 0; i < PIXELS; i++) {
            x[i] = load_vec<uint2>(values + i * STEP * ROW);
            tx[i] = PAIR && tangent.tx != nullptr ? load_vec<uint2>(tangents + i * STEP * ROW) : make_uint2(0, 0);
          }
          UNROLL for (int i = 0; i < PIXELS; i++) {
            const bool relu = source.relu != 0;
            const Pack<RUN> u = unpack_bf16(x[i]);
            const uint2 value = pack_bf16(source_forward(affine, relu, u));
            if (inside[i]) store_vec(values + i * STEP * ROW, value);
            if (PAIR) {
              const uint2 operand = pack_bf16(source_tangent(affine, relu, slope, u, unpack_bf16(tx[i])));
              if (inside[i]) store_vec(tangents + i * STEP * ROW, operand);
            }
          }
        }
        fence_proxy_async();
        __syncwarp();
        if (thread % 32 == 0) {
          if (PAIR) mbarrier_arrive(&barriers.ready[first.stage]);
          mbarrier_arrive(&barriers.ready[last.stage]);
        }
      },
      [](const WgmmaPlace<FILTERS>&, const RingPlace&) {});
}

// Where four columns from `column` on of a row lie among the 128 x STAGED_COLUMNS floats that a consumer stages: permuted
// within 64 bytes, so that neither its writes nor its reads meet in a bank more than twice. Eight rows on it is the same.
__device__ __forceinline__ int staged_place(int row, int column) {
  return row * STAGED_COLUMNS + (((column >> 2) ^ ((row & 1) << 1 | (row >> 2 & 1))) << 2) + (column & 3);
}

struct ConsumerTeam {
  int number, thread_;
  __device__ __forceinline__ int thread() const { return thread_; }
  __device__ __forceinline__ void meet() const { named_barrier(1 + number, 128); }
};

// A consumer's rows of the tile in groups of 128 pixels, of two image rows, by STAGED_COLUMNS filters. A thread ends its four
// pixels of a group, four filters wide, at once: what their end reads is asked for before they are staged. One group's
// code serves all, or the end of a tile would not stay in the instruction cache.
template <int FILTERS>
__device__ __forceinline__ void store_tile(__nv_bfloat16* y, const float (&acc)[CONSUMER_ROWS<FILTERS>][FILTERS / 2],
                                           float* staged, const float* bias, const Epilogue<__nv_bfloat16>& epilogue,
                                           const WgmmaShape& shape, const WgmmaPlace<FILTERS>& at,
                                           int consumer) {
  constexpr int COLUMNS = STAGED_COLUMNS, ACROSS = FILTERS / COLUMNS, GROUPS = CONSUMER_ROWS<FILTERS> / 2 * ACROSS;
  constexpr int PIXELS = 2 * SLAB_PIXELS, RUNS = COLUMNS / RUN, LANES = 128 / RUNS, BATCH = PIXELS / LANES;
  NO_UNROLL for (int group = 0; group < GROUPS; group++) {
    const ConsumerTeam team = {consumer, computed_here(threadIdx.x) & 127};
    const int h0 = at.h0 + consumer * CONSUMER_ROWS<FILTERS> + group / ACROSS * 2, k0 = at.k0 + group % ACROSS * COLUMNS;
    if (h0 >= shape.h) break;  // the same for the team
    const int pixel = team.thread() / RUNS, column = team.thread() % RUNS * RUN, c = k0 + column;
    RowBatch<__nv_bfloat16, RUN, LANES, BATCH> rows;
    rows.find(pixel, PIXELS, [&](int row) {
      const int slab = row % SLAB_PIXELS, n = at.n0 + (slab >> shape.width_log2);
      const int w = at.w0 + (slab & ((1 << shape.width_log2) - 1));
      return (n * shape.h + h0 + row / SLAB_PIXELS) * shape.w + w;
    });
    if (c < shape.k) rows.load_x(epilogue, shape.k, c);
    team.meet();
    const int to = staged_place(team.thread() / 32 * 16 + team.thread() % 32 / 4, team.thread() % 4 * 2);
    UNROLL for (int g = 0; g < GROUPS; g++) {
      if (g != group) continue;  // registers have no index
      UNROLL for (int i = 0; i < 2; i++) {
        UNROLL for (int j = 0; j < COLUMNS / 2; j += 2) {
          const float* two = &acc[g / ACROSS * 2 + i][g % ACROSS * COLUMNS / 2 + j];
          const int row = i * SLAB_PIXELS + j / 2 % 2 * 8, column = j / 4 * 8;  // from `to` on
          store_vec(staged + (to ^ column) + row * COLUMNS, make_float2(two[0], two[1]));
        }
      }
    }
    team.meet();
    LaneSums<__nv_bfloat16, RUN> sums;
    if (c < shape.k) {
      rows.load_addend(epilogue, shape.k, c);
      const float* from = staged + staged_place(pixel, column);
      Pack<RUN> v[BATCH];
      UNROLL for (int j = 0; j < BATCH; j++) {
        v[j] = load_pack<RUN>(from + j * LANES * COLUMNS);
        if (bias != nullptr) {
          UNROLL for (int i = 0; i < RUN; i++) v[j].v[i] += bias[c + i];
        }
      }
      rows.finish(y, v, epilogue, sums, true, shape.k, c);
    }
    write_sums<__nv_bfloat16, RUN, COLUMNS, LANES>(
        epilogue.sums.partials, sums, epilogue.sums.kind, at.pair(shape, h0), PIXELS, k0, shape.k,
        [&](int row, int column) { return staged + staged_place(row, column); }, team);
  }
}

template <int FILTERS>
__device__ __forceinline__ void multiply_stages(unsigned char* smem, uint64_t* operands_there, uint64_t* empty,
                                                __nv_bfloat16* y, const float* bias,
                                                const Epilogue<__nv_bfloat16>& epilogue, const WgmmaShape& shape) {
  const int consumer = (static_cast<int>(threadIdx.x) - PRODUCER_THREADS) / 128;
  float* staged = reinterpret_cast<float*>(smem + STAGES * STAGE_BYTES<FILTERS> + consumer * STAGED);
  float acc[CONSUMER_ROWS<FILTERS>][FILTERS / 2];
  // A warp gives a stage back when its products have left it: one stage later, and at the end of the tile.
  const auto release_previous = [&](const RingPlace& ring) {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(&empty[(ring.stage + STAGES - 1) % STAGES]);
  };
  for_all_stages<FILTERS>(
      shape,
      [&](const WgmmaPlace<FILTERS>&, const RingPlace& ring, int product, int c, int s) {
        const bool first = (product | c | s) == 0;
        mbarrier_wait(&operands_there[ring.stage], ring.parity);
        const unsigned char* slabs = smem + ring.stage * STAGE_BYTES<FILTERS> + consumer * CONSUMER_ROWS<FILTERS> * SLAB;
        const unsigned char* filters = smem + ring.stage * STAGE_BYTES<FILTERS> + SLABS<FILTERS> * SLAB;
        wgmma_fence(acc);
        UNROLL for (int r = 0; r < 3; r++) {
          UNROLL for (int k = 0; k < DEPTH; k += 16) {
            const uint64_t b = wgmma_operand<ROW>(filters + r * FILTER_SLICE<FILTERS> + k * 2, 8 * ROW);
            UNROLL for (int i = 0; i < CONSUMER_ROWS<FILTERS>; i++) {
              const uint64_t a = wgmma_operand<ROW>(slabs + (i + r) * SLAB + k * 2, 8 * ROW);
              wgmma_bf16<false>(acc[i], a, b, !first || r + k > 0);
            }
          }
        }
        wgmma_commit();
        wgmma_wait<1>(acc);
        if (!first) release_previous(ring);
      },
      [&](const WgmmaPlace<FILTERS>& at, const RingPlace& ring) {
        wgmma_wait<0>(acc);
        release_previous(ring);
        store_tile<FILTERS>(y, acc, staged, bias, epilogue, shape, at, consumer);
      });
}

template <int FILTERS>
__device__ __forceinline__ void conv_wgmma_body(__nv_bfloat16* y, const TensorMap& x0, const TensorMap& w0,
                                                const TensorMap& x1, const TensorMap& w1,
                                                const Source<__nv_bfloat16>& source,
                                                const Tangent<__nv_bfloat16>& tangent, const float* bias,
                                                const Epilogue<__nv_bfloat16>& epilogue, const WgmmaShape& shape) {
  DYN_SMEM_SWIZZLED(smem);
  SHARED(uint64_t, barriers, [3 * STAGES]);
  const WgmmaBarriers all = {barriers, barriers + STAGES, barriers + 2 * STAGES};
  if (threadIdx.x == 0) {
    prefetch_tensor_map(x0), prefetch_tensor_map(w0), prefetch_tensor_map(x1), prefetch_tensor_map(w1);
    for (int i = 0; i < STAGES; i++) {
      mbarrier_init(&all.full[i], 1);
      mbarrier_init(&all.ready[i], 4);
      mbarrier_init(&all.empty[i], CONSUMERS * 4);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  const bool pending = source.affine != nullptr || source.relu != 0 || tangent.slope != nullptr;
  if (threadIdx.x < 128) {
    give_registers<COPY_REGISTERS>();
    if (threadIdx.x == 0) copy_stages<FILTERS>(smem, all, x0, w0, x1, w1, shape);
  } else if (threadIdx.x < PRODUCER_THREADS) {
    give_registers<TRANSFORM_REGISTERS>();
    if (pending) {
      if (shape.products == 1) transform_stages<FILTERS, false>(smem, all, source, tangent, shape);
      else transform_stages<FILTERS, true>(smem, all, source, tangent, shape);
    }
  } else {
    take_registers<MULTIPLY_REGISTERS>();
    multiply_stages<FILTERS>(smem, pending ? all.ready : all.full, all.empty, y, bias, epilogue, shape);
  }
}

// y[n,h,w,k] = sum over products, r, s, c of operand[n, h + r - 1, w + s - 1, c] · filter[k,r,s,c] + bias[k], then the
// epilogue
//   one product    operand: source's value
//   two products   first operand: the tangent of the source; second: its value
// y [N,H,W,K]; x0, x1 maps of [N,H,W,C], boxes of a slab: source's x last, before it tx, or x again without one; w0, w1
// maps of [K,9,C], boxes of FILTERS x 1 x 32; all swizzled; bias [K] or null; epilogue over y; what `products` leaves out
// repeats the first
// grid: at most one block a multiprocessor, THREADS threads, SHARED_BYTES<FILTERS> of DYN_SMEM
// C, K multiples of 8; y, affine and slope 16-byte aligned, epilogue.wide; N·H·W < 2^31 - 256
#define CONV_WGMMA_ARGS                                                                                              \
  __nv_bfloat16 *y, const __grid_constant__ TensorMap x0, const __grid_constant__ TensorMap w0,                      \
      const __grid_constant__ TensorMap x1, const __grid_constant__ TensorMap w1,                                    \
      const __grid_constant__ Source<__nv_bfloat16> source, const __grid_constant__ Tangent<__nv_bfloat16> tangent,  \
      const float *__restrict__ bias, const __grid_constant__ Epilogue<__nv_bfloat16> epilogue,                      \
      const __grid_constant__ WgmmaShape shape

extern "C" __global__ void __launch_bounds__(THREADS, 1) conv_wgmma_64(CONV_WGMMA_ARGS) {
  conv_wgmma_body<64>(y, x0, w0, x1, w1, source, tangent, bias, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(THREADS, 1) conv_wgmma_128(CONV_WGMMA_ARGS) {
  conv_wgmma_body<128>(y, x0, w0, x1, w1, source, tangent, bias, epilogue, shape);
}
