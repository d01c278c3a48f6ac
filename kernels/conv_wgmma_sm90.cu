// 3x3 convolution, stride 1, padding 1, bf16 on Hopper's tensor cores: forward, tangent (two products summed) and
// backward-input (taps mirrored), with the filters of filters.cu. Tiles and halos: conv_wgmma.cuh.
//
// A block is resident and takes every gridDim.x-th tile. A thread of its first warpgroup asks for copies of filters; the second
// warpgroup reads stored values from memory and writes operands, evaluated, into halos (padding is zero); the other two
// multiply: filters, from registers, by pixels, from the halo. Between them stand barriers in shared memory:
//   filters_full    copies -> consumers          filters_empty   consumers -> copies
//   halo_full       evaluators -> consumers      halo_empty      consumers -> evaluators
// An accumulator belongs to one filter, so what the end of a tile needs per channel is one number, not one a value.
#include "conv_wgmma.cuh"

using namespace wgmma_tile;

struct WgmmaBarriers {
  uint64_t *filters_full, *filters_empty, *halo_full, *halo_empty;
};

// Every stage of every tile, in the order in which all roles go through them: f(place, halo's place in its ring, product,
// first channel).
template <int FILTERS, class Stage, class Tile>
__device__ __forceinline__ void for_all_stages(const WgmmaShape& shape, Stage stage, Tile end_of_tile) {
  Ring<HALOS> ring;
  for (int tile = blockIdx.x; tile < shape.tiles; tile += gridDim.x) {
    const WgmmaPlace<FILTERS> at(shape, tile);
    for (int c = 0; c < shape.c; c += DEPTH) {
      for (int product = 0; product < shape.products; product++) {
        stage(at, ring, product, c);
        ring.advance();
      }
    }
    end_of_tile(at, ring);
  }
}

// One thread: nine filter slices a stage.
template <int FILTERS>
__device__ __forceinline__ void copy_filters(unsigned char* smem, const WgmmaBarriers& barriers, const TensorMap& w0,
                                             const TensorMap& w1, const WgmmaShape& shape) {
  Ring<FILTER_STAGES> slice;
  for_all_stages<FILTERS>(
      shape,
      [&](const WgmmaPlace<FILTERS>& at, const Ring<HALOS>&, int product, int c) {
        const TensorMap& w = product == 0 ? w0 : w1;
        for (int tap = 0; tap < 9; tap++) {
          uint64_t* full = &barriers.filters_full[slice.stage];
          mbarrier_wait(&barriers.filters_empty[slice.stage], slice.parity ^ 1);
          mbarrier_arrive_expect(full, FILTER_SLICE<FILTERS>);
          tensor_copy(smem + slice.stage * FILTER_SLICE<FILTERS>, w, c, shape.mirrored != 0 ? 8 - tap : tap, at.k0, full);
          slice.advance();
        }
      },
      [](const WgmmaPlace<FILTERS>&, const Ring<HALOS>&) {});
}

// What evaluators make of a stored x: a copy, where nothing is pending; relu(A·(x - M) + C); or both operands of a tangent, that
// and mask·(A·tx + B·(x - M) + D).
enum class Evaluated { Copy, Value, Pair };

// A warpgroup. A warp has every fourth run of eight slots: it copies what is stored there, all that a stage has, then turns it
// into operands in place.
template <int FILTERS, Evaluated FORM>
__device__ __forceinline__ void evaluate_halos(unsigned char* smem, const WgmmaBarriers& barriers,
                                               const Source<__nv_bfloat16>& source,
                                               const Tangent<__nv_bfloat16>& tangent, const WgmmaShape& shape) {
  // A pair is two neighbouring stages, and begins at an even one: the tangent's, the value's.
  constexpr int STAGES = FORM == Evaluated::Pair ? 2 : 1, VALUES = (STAGES - 1) * HALO<FILTERS>;
  constexpr int NEXT = 4 * 8, BATCH = 4;  // slots from one run of a warp to its next; slots of a thread at once
  const int warp = static_cast<int>(threadIdx.x) % 128 / 32, lane = static_cast<int>(threadIdx.x) % 32;
  int* const pixels = reinterpret_cast<int*>(smem + LIST_AT<FILTERS>);  // of the slots; -1: outside of the image
  int listed = -1;                                                     // the tile that they are of
  for_all_stages<FILTERS>(
      shape,
      [&](const WgmmaPlace<FILTERS>& at, const Ring<HALOS>& ring, int product, int c0) {
        if (product % STAGES != 0) return;  // done with the one before
        if (listed != at.number) {
          listed = at.number;
          __syncwarp();  // nobody reads the list of before
          const int halo = computed_here(shape.halo), row = computed_here(shape.halo_row);
          NO_UNROLL for (int slot = warp * 8 + lane / 8 * NEXT + lane % 8; slot < shape.slots; slot += 4 * NEXT) {
            const int place = slot % halo, y = place / row - 1, h = at.h0 + y;
            const int column = place % row, x = (shape.images == 1 ? column : column / 16) - 1, w = at.w0 + x;
            const int image = slot / halo * shape.images + slot % shape.images;
            const bool inside = h >= 0 && h < shape.h && w >= 0 && w < shape.w;
            pixels[slot] = inside ? at.pixel0 + (image * shape.h + y) * shape.w + x : -1;
          }
          __syncwarp();
        }
        UNROLL for (int i = 0; i < STAGES; i++) mbarrier_wait(&barriers.halo_empty[ring.stage + i], ring.parity ^ 1);
        unsigned char* const stage = smem + HALOS_AT<FILTERS> + ring.stage * HALO<FILTERS>;

        // Eight pixels, 64 bytes of each; a quarter of the warp writes 128 neighbouring bytes.
        NO_UNROLL for (int slot = warp * 8 + lane % 8; slot < shape.slots; slot += NEXT) {
          const int pixel = pixels[slot], chunk = lane / 8;
          unsigned char* const to = stage + chunk * CHUNK_PITCH<FILTERS> + slot * SLOT;
          const Offset from = Offset(max(pixel, 0)) * shape.c + c0 + chunk * CHUNK;
          cp_async16(to + VALUES, source.x + from, pixel >= 0);
          if (FORM == Evaluated::Pair) {
            const bool some = tangent.tx != nullptr;
            cp_async16(to, (some ? tangent.tx : source.x) + from, some && pixel >= 0);
          }
        }
        cp_async_commit();
        cp_async_wait<0>();
        __syncwarp();

        // Eight slots and two chunks at a time, eight bytes a thread: half a warp has 128 neighbouring bytes.
        NO_UNROLL for (int chunks = 0; chunks < DEPTH / CHUNK && FORM != Evaluated::Copy; chunks += 2) {
          const int chunk = chunks + lane / 16, c = c0 + chunk * CHUNK + lane % 2 * RUN;
          unsigned char* const operands = stage + chunk * CHUNK_PITCH<FILTERS> + lane % 2 * RUN * 2;
          const Affine<RUN> affine(source, shape.c, c);
          const Slope<RUN> slope(FORM == Evaluated::Pair ? tangent.slope : nullptr, shape.c, c);
          NO_UNROLL for (int first = warp * 8 + lane / 2 % 8; first < shape.slots; first += BATCH * NEXT) {
            uint2 x[BATCH] = {}, tx[BATCH] = {};
            bool inside[BATCH];
            UNROLL for (int i = 0; i < BATCH; i++) {
              const int slot = first + i * NEXT;
              inside[i] = slot < shape.slots && pixels[slot] >= 0;
              if (inside[i]) x[i] = load_vec<uint2>(operands + VALUES + slot * SLOT);
              if (inside[i] && FORM == Evaluated::Pair) tx[i] = load_vec<uint2>(operands + slot * SLOT);
            }
            UNROLL for (int i = 0; i < BATCH; i++) {
              unsigned char* const to = operands + (first + i * NEXT) * SLOT;
              const bool relu = source.relu != 0;
              const Pack<RUN> u = unpack_bf16(x[i]);
              const uint2 value = pack_bf16(source_forward(affine, relu, u));
              if (inside[i]) store_vec(to + VALUES, value);
              if (FORM == Evaluated::Pair) {
                const uint2 operand = pack_bf16(source_tangent(affine, relu, slope, u, unpack_bf16(tx[i])));
                if (inside[i]) store_vec(to, operand);
              }
            }
          }
        }
        fence_proxy_async();
        __syncwarp();
        if (lane == 0) {
          UNROLL for (int i = 0; i < STAGES; i++) mbarrier_arrive(&barriers.halo_full[ring.stage + i]);
        }
      },
      [](const WgmmaPlace<FILTERS>&, const Ring<HALOS>&) {});
}

// A warp's 16 filters of a patch, eight and eight: in memory rows of [pixels][K], in shared memory two planes of 16 bytes a
// pixel (STAGED), in registers as wgmma has its accumulators, in pairs of pixels: register j of thread t holds filter t / 4,
// pixels 8·j + 2·(t % 4) and the next.
struct PatchPart {
  static constexpr int COPIES = PATCH_PIXELS * 2 / 32, PAIRS = PATCH_PIXELS / 8;  // COPIES: 16 bytes each, of a lane
  int lane, row, step;  // row: the first that a lane copies, counted from the patch's first pixel; step: to its next

  __device__ __forceinline__ explicit PatchPart(const WgmmaShape& shape) : lane(computed_here(threadIdx.x) % 32) {
    const int pixel = lane / 2;
    step = shape.images == 1 ? 2 * shape.w : 1;
    row = shape.images == 1 ? pixel / 8 * shape.w + pixel % 8 : pixel * shape.h * shape.w;
  }
  __device__ __forceinline__ unsigned char* copied(unsigned char* staged, int i) const {
    return staged + lane % 2 * PLANE + (lane / 2 + i * 16) * 16;
  }
  // Whole warps, each its own part of the patch that begins at row pixel0 of [pixels][K]; to be waited for as any such copy.
  __device__ __forceinline__ void fetch(unsigned char* staged, const __nv_bfloat16* from, int pixel0, int filter0,
                                        int channels) const {
    from += Offset(pixel0 + row) * channels + filter0 + lane % 2 * 8;
    UNROLL for (int i = 0; i < COPIES; i++) cp_async16(copied(staged, i), from + i * Offset(step * channels));
  }
  __device__ __forceinline__ void store(__nv_bfloat16* to, unsigned char* staged, int pixel0, int filter0,
                                        int channels) const {
    to += Offset(pixel0 + row) * channels + filter0 + lane % 2 * 8;
    UNROLL for (int i = 0; i < COPIES; i++) {
      store_vec(to + i * Offset(step * channels), load_vec<uint4>(copied(staged, i)));
    }
  }
  // Between shared memory and registers, the first eight filters or the second.
  __device__ __forceinline__ void read(uint32_t (&pairs)[PAIRS], unsigned char* staged, int eight) const {
    UNROLL for (int j = 0; j < PAIRS; j += 4) {
      uint32_t four[4];
      ldmatrix_x4_trans(four, staged + eight * PLANE + (j * 8 + lane) * 16);
      UNROLL for (int i = 0; i < 4; i++) pairs[j + i] = four[i];
    }
  }
  __device__ __forceinline__ void write(unsigned char* staged, const uint32_t (&pairs)[PAIRS], int eight) const {
    UNROLL for (int j = 0; j < PAIRS; j += 4) {
      stmatrix_x4_trans(staged + eight * PLANE + (j * 8 + lane) * 16, {pairs[j], pairs[j + 1], pairs[j + 2], pairs[j + 3]});
    }
  }
};

__device__ __forceinline__ float low_half(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_half(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

// u = accumulators of the first (0) or second (1) eight filters of patch number / 2, FIRST <= number < FIRST + COUNT. Registers
// have no index: halving leaves one set to be moved.
template <int FIRST, int COUNT>
__device__ __forceinline__ void take(Pack<1> (&u)[2 * PatchPart::PAIRS], const float (&acc)[PATCHES][PATCH_PIXELS / 2],
                                     int number) {
  if constexpr (COUNT == 1) {
    UNROLL for (int i = 0; i < 2 * PatchPart::PAIRS; i++) u[i].v[0] = acc[FIRST / 2][i / 2 * 4 + FIRST % 2 * 2 + i % 2];
  } else if (number < FIRST + COUNT / 2) {
    take<FIRST, COUNT / 2>(u, acc, number);
  } else {
    take<FIRST + COUNT / 2, COUNT / 2>(u, acc, number);
  }
}

// A consuming warp's part of a tile. Of 64 filters both consumers have all, each for four of the eight patches; of 128 each has
// half, for all four patches.
template <int FILTERS>
struct Consumer {
  int warp, first_patch, filter0;

  __device__ __forceinline__ explicit Consumer(int thread)
      : warp((thread - PRODUCER_THREADS) / 32),
        first_patch(FILTERS == 64 ? warp / 4 * PATCHES : 0),
        filter0((FILTERS == 64 ? warp % 4 : warp) * 16) {}
};

// The end of a warp's part of a tile, a patch at a time; two patches are one tile of the output's sums. What the end of a patch
// reads is copied long before: of the first during the tile's products, of the others during the end of the one before.
template <int FILTERS>
struct TileEnd {
  typedef __nv_bfloat16 T;
  static constexpr int PAIRS = PatchPart::PAIRS;
  T* y;
  const float* bias;
  const Epilogue<T>& epilogue;
  const WgmmaShape& shape;
  unsigned char* smem;

  __device__ __forceinline__ static Consumer<FILTERS> me() { return Consumer<FILTERS>(computed_here(threadIdx.x)); }
  __device__ __forceinline__ unsigned char* staged_x() const { return smem + STAGED_AT<FILTERS> + me().warp * 2 * STAGED; }
  // What is added, then what is stored.
  __device__ __forceinline__ unsigned char* staged() const { return staged_x() + STAGED; }
  __device__ __forceinline__ int pixel0(const WgmmaPlace<FILTERS>& at, int p) const {
    return at.pixel0 + shape.patches[me().first_patch + p].pixel;
  }
  __device__ __forceinline__ void fetch_x(const WgmmaPlace<FILTERS>& at, int p) const {
    if (epilogue.x() == nullptr) return;
    PatchPart(shape).fetch(staged_x(), epilogue.x(), pixel0(at, p), at.k0 + me().filter0, shape.k);
    cp_async_commit();
  }
  __device__ __forceinline__ void fetch_addend(const WgmmaPlace<FILTERS>& at, int p) const {
    if (epilogue.addend == nullptr) return;
    PatchPart(shape).fetch(staged(), epilogue.addend, pixel0(at, p), at.k0 + me().filter0, shape.k);
    cp_async_commit();
  }

  // One code for all patches, or it would not stay in the instruction cache.
  __device__ __forceinline__ void finish(const float (&acc)[PATCHES][PATCH_PIXELS / 2], const WgmmaPlace<FILTERS>& at) const {
    LaneSums<T, 1> sums, others;  // of the eight filters under way, of the other eight
    NO_UNROLL for (int p = 0; p < PATCHES; p++) {
      const PatchPart part(shape);
      cp_async_wait<0>();
      __syncwarp();
      NO_UNROLL for (int eight = 0; eight < 2; eight++) {
        uint32_t at_x[PAIRS] = {};
        if (epilogue.x() != nullptr) part.read(at_x, staged_x(), eight);
        if (eight == 1 && p + 1 < PATCHES) {
          __syncwarp();  // all have read it
          fetch_x(at, p + 1);
        }
        Pack<1> u[2 * PAIRS];
        take<0, 2 * PATCHES>(u, acc, p * 2 + eight);
        finish_eight(u, at_x, part, eight, at.k0 + me().filter0 + eight * 8 + part.lane / 4, sums, p % 2 == 0);
        if (p % 2 == 1) {
          const int tile = at.number * (WgmmaPlace<FILTERS>::TILE_PATCHES / 2) + (me().first_patch + p) / 2;
          write_neighbours<4>(epilogue.sums, sums, tile, shape.k, at.k0 + me().filter0 + eight * 8 + part.lane / 4);
          sums = {};
        }
        const LaneSums<T, 1> turn = sums;  // each has its turn
        sums = others, others = turn;
      }
      __syncwarp();
      part.store(y, staged(), pixel0(at, p), at.k0 + me().filter0, shape.k);
      if (p + 1 < PATCHES) fetch_addend(at, p + 1);  // where the lane has just read
    }
  }

  // The thread's values of one filter, from accumulators to staged outputs. begins: they are the first of their sums.
  __device__ __forceinline__ void finish_eight(Pack<1> (&u)[2 * PAIRS], const uint32_t (&at_x)[PAIRS], const PatchPart& part,
                                               int eight, int filter, LaneSums<T, 1>& sums, bool begins) const {
    if (bias != nullptr) {
      UNROLL for (int i = 0; i < 2 * PAIRS; i++) u[i].v[0] += bias[filter];
    }
    if (epilogue.addend != nullptr) {
      uint32_t more[PAIRS];
      part.read(more, staged(), eight);
      UNROLL for (int j = 0; j < PAIRS; j++) u[2 * j].v[0] += low_half(more[j]), u[2 * j + 1].v[0] += high_half(more[j]);
    }
    Stored<T, 1> x[2 * PAIRS];
    UNROLL for (int j = 0; j < PAIRS; j++) x[2 * j].v.v[0] = low_half(at_x[j]), x[2 * j + 1].v.v[0] = high_half(at_x[j]);
    if (epilogue.mask.x != nullptr && epilogue.mask.relu != 0) {
      const Affine<1> affine(epilogue.mask, shape.k, filter);
      UNROLL for (int i = 0; i < 2 * PAIRS; i++) u[i] = source_mask(affine, true, x[i].values(), u[i]);
    }
    uint32_t out[PAIRS];
    UNROLL for (int j = 0; j < PAIRS; j++) {
      out[j] = bf16_pair(u[2 * j].v[0], u[2 * j + 1].v[0]);
      u[2 * j].v[0] = low_half(out[j]), u[2 * j + 1].v[0] = high_half(out[j]);
    }
    sums.template add<2 * PAIRS>(epilogue.sums, u, x, 2 * PAIRS, begins, shape.k, filter);
    __syncwarp();  // all have read what is added
    part.write(staged(), out, eight);
  }
};

template <int FILTERS>
__device__ __forceinline__ void multiply_stages(unsigned char* smem, const WgmmaBarriers& barriers, __nv_bfloat16* y,
                                                const float* bias, const Epilogue<__nv_bfloat16>& epilogue,
                                                const WgmmaShape& shape) {
  const Consumer<FILTERS> me(threadIdx.x);
  const int lane = static_cast<int>(threadIdx.x) % 32, row = me.filter0 + lane % 16;
  const unsigned char* const filter_row = smem + row * FILTER_ROW;
  const int swizzle = row >> 1 & 3;
  float acc[PATCHES][PATCH_PIXELS / 2] = {};
  uint32_t operand[DEPTH / 16][4] = {};  // filters: one is multiplied while the next is read
  Ring<FILTER_STAGES> slice;
  const TileEnd<FILTERS> end = {y, bias, epilogue, shape, smem};
  // A warp gives a halo back when its products have left it: in the next stage, or at the end of the tile.
  const auto release_halo_before = [&](const Ring<HALOS>& ring) {
    if (lane == 0) mbarrier_arrive(&barriers.halo_empty[(ring.stage + HALOS - 1) % HALOS]);
  };
  wgmma_fence(acc);
  for_all_stages<FILTERS>(
      shape,
      [&](const WgmmaPlace<FILTERS>& at, const Ring<HALOS>& ring, int product, int c) {
        const bool first = (product | c) == 0;
        if (first) end.fetch_x(at, 0), end.fetch_addend(at, 0);
        mbarrier_wait(&barriers.halo_full[ring.stage], ring.parity);
        NO_UNROLL for (int tap = 0; tap < 9; tap++) {
          const unsigned char* const halo = smem + HALOS_AT<FILTERS> + ring.stage * HALO<FILTERS> +
                                            (tap / 3 * shape.halo_row + tap % 3 * shape.images) * SLOT;
          mbarrier_wait(&barriers.filters_full[slice.stage], slice.parity);
          UNROLL for (int k = 0; k < DEPTH / 16; k++) {
            uint32_t(&a)[4] = operand[k];
            wgmma_wait<1>(a);
            ldmatrix_x4(a, filter_row + slice.stage * FILTER_SLICE<FILTERS> + (((k * 2 + lane / 16) ^ swizzle) << 4));
            wgmma_fence(a);
            UNROLL for (int p = 0; p < PATCHES; p++) {
              const unsigned char* const b = halo + shape.patches[me.first_patch + p].slot * SLOT + k * 2 * CHUNK_PITCH<FILTERS>;
              wgmma_bf16<false>(acc[p], a, wgmma_operand<16>(b, shape.matrix * SLOT, CHUNK_PITCH<FILTERS>));
            }
            wgmma_commit();
          }
          __syncwarp();  // all lanes have read their part of the slice
          if (lane == 0) mbarrier_arrive(&barriers.filters_empty[slice.stage]);
          slice.advance();
          // At most this tap's products are under way.
          if (tap == 0 && !first) release_halo_before(ring);
        }
      },
      [&](const WgmmaPlace<FILTERS>& at, const Ring<HALOS>& ring) {
        wgmma_wait<0>(acc);
        release_halo_before(ring);
        end.finish(acc, at);
        // No register but these is kept over the end of a tile.
        UNROLL for (int k = 0; k < DEPTH / 16; k++) {
          UNROLL for (int i = 0; i < 4; i++) operand[k][i] = 0;
        }
        UNROLL for (int p = 0; p < PATCHES; p++) {
          UNROLL for (int i = 0; i < PATCH_PIXELS / 2; i++) acc[p][i] = 0.0f;
        }
        wgmma_fence(acc);
      });
}

template <int FILTERS>
__device__ __forceinline__ void conv_wgmma_body(__nv_bfloat16* y, const TensorMap& w0, const TensorMap& w1,
                                                const Source<__nv_bfloat16>& source,
                                                const Tangent<__nv_bfloat16>& tangent, const float* bias,
                                                const Epilogue<__nv_bfloat16>& epilogue, const WgmmaShape& shape) {
  DYN_SMEM_SWIZZLED(smem);
  SHARED(uint64_t, filter_barriers, [2 * FILTER_STAGES]);
  SHARED(uint64_t, halo_barriers, [2 * HALOS]);
  const WgmmaBarriers all = {filter_barriers, filter_barriers + FILTER_STAGES, halo_barriers, halo_barriers + HALOS};
  if (threadIdx.x == 0) {
    prefetch_tensor_map(w0), prefetch_tensor_map(w1);
    for (int i = 0; i < FILTER_STAGES; i++) {
      mbarrier_init(&all.filters_full[i], 1);
      mbarrier_init(&all.filters_empty[i], CONSUMERS * 4);
    }
    for (int i = 0; i < HALOS; i++) {
      mbarrier_init(&all.halo_full[i], 4);
      mbarrier_init(&all.halo_empty[i], CONSUMERS * 4);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    give_registers<COPY_REGISTERS>();
    if (threadIdx.x == 0) copy_filters<FILTERS>(smem, all, w0, w1, shape);
  } else if (threadIdx.x < PRODUCER_THREADS) {
    give_registers<EVALUATE_REGISTERS>();
    const bool pending = source.affine != nullptr || source.relu != 0;
    if (shape.products == 2) evaluate_halos<FILTERS, Evaluated::Pair>(smem, all, source, tangent, shape);
    else if (pending) evaluate_halos<FILTERS, Evaluated::Value>(smem, all, source, tangent, shape);
    else evaluate_halos<FILTERS, Evaluated::Copy>(smem, all, source, tangent, shape);
  } else {
    take_registers<MULTIPLY_REGISTERS>();
    multiply_stages<FILTERS>(smem, all, y, bias, epilogue, shape);
  }
}

// y[n,h,w,k] = sum over products, r, s, c of operand[n, h + r - 1, w + s - 1, c] · filter[k,r,s,c] + bias[k], then the
// epilogue
//   one product    operand: source's value
//   two products   first operand: the tangent of the source; second: its value
// y [N,H,W,K]; source over [N,H,W,C]; w0, w1 maps of [K,9,C], boxes of FILTERS x 1 x 32, swizzled by 64 bytes (of one product
// the same twice); bias [K] or null; epilogue over y
// grid: at most one block a multiprocessor, THREADS threads, SHARED_BYTES<FILTERS> of DYN_SMEM
// C a multiple of 32, K of FILTERS; all 16-byte aligned, epilogue.wide; slots of a tile's halos <= MOST_SLOTS<FILTERS>;
// N·H·W < 2^31
#define CONV_WGMMA_ARGS                                                                                              \
  __nv_bfloat16 *y, const __grid_constant__ TensorMap w0, const __grid_constant__ TensorMap w1,                      \
      const __grid_constant__ Source<__nv_bfloat16> source, const __grid_constant__ Tangent<__nv_bfloat16> tangent,  \
      const float *__restrict__ bias, const __grid_constant__ Epilogue<__nv_bfloat16> epilogue,                      \
      const __grid_constant__ WgmmaShape shape

extern "C" __global__ void __launch_bounds__(THREADS, 1) conv_wgmma_64(CONV_WGMMA_ARGS) {
  conv_wgmma_body<64>(y, w0, w1, source, tangent, bias, epilogue, shape);
}
extern "C" __global__ void __launch_bounds__(THREADS, 1) conv_wgmma_128(CONV_WGMMA_ARGS) {
  conv_wgmma_body<128>(y, w0, w1, source, tangent, bias, epilogue, shape);
}
