// The end of every output, in this order: add a residual or what is there -> mask -> round and store -> per-channel sums of the
// stored values. Whoever computes values hands a block's tile of them to finish_tile; what a tile's sums are is fixed
// here, so that batchnorm.cu can merge the tiles of any writer.
#pragma once
#include "source.cuh"

// Rows of a tensor whose sums make one partial; twin of TILE_ROWS in src/device/cuda/norm.rs.
constexpr int TILE_ROWS = 128;

enum SumsKind { SUMS_NONE, SUMS_MOMENTS, SUMS_DOT };

// Which per-channel sums of the stored values u are wanted; partials [tiles][2][channels]
//   SUMS_MOMENTS  mean of u, sum (u - mean)²
//   SUMS_DOT      sum u, sum u·x̂ with x̂ = (x - mean)·rstd; without x the second is 0
template <class T>
struct Sums {
  float* partials;
  const T* x;               // [rows][channels]; null for none
  const float* statistics;  // [2][channels]: mean, rstd of x
  int kind;                 // SumsKind
  int reserved;
};

template <class T>
struct Epilogue {
  Source<T> mask;  // over the output's geometry; x null for none
  Sums<T> sums;
  const T* addend;  // of the output's shape, or the output itself; null for none
  int wide;         // channels and addresses of output, addend, mask and sums allow 16-byte accesses
  int reserved;
};

static_assert(sizeof(Sums<float>) == 32, "twin of KernelSums");
static_assert(sizeof(Epilogue<float>) == 72, "twin of KernelEpilogue");

// Sums of W channels over some rows. Merging moments never subtracts large numbers, as sum(u²) - sum(u)² would (Chan,
// Golub, LeVeque 1979); their count is known to the caller.
template <int W>
struct ChannelSums {
  float first[W], second[W];  // mean and m2, or sum u and sum u·x̂

  // Merges another's mean and m2 into those of `seen` values; `share` of the merged count is the other's.
  __device__ __forceinline__ void merge_moments(int i, float mean, float m2, float seen, float share) {
    const float delta = mean - first[i];
    first[i] += delta * share;
    second[i] += m2 + delta * delta * (seen * share);
  }
};

// The threads that finish a tile together: a whole block, unless a kernel's roles differ.
struct WholeBlock {
  static constexpr bool SPARING = false;  // of registers: then only one batch of rows is in flight
  __device__ __forceinline__ int thread() const { return threadIdx.x; }
  __device__ __forceinline__ void meet() const { __syncthreads(); }
};

// Rows of a tile of `rows` that fall to one of `lanes` interleaved lanes.
__device__ __forceinline__ int lane_rows(int rows, int lane, int lanes) {
  return lane < rows ? (rows - lane - 1) / lanes + 1 : 0;
}

// Adds the first `count` of a thread's rows to its sums, which hold `seen` rows.
template <class T, int W, int BATCH>
__device__ __forceinline__ void add_rows(ChannelSums<W>& sums, const Sums<T>& wanted, const Pack<W> (&v)[BATCH],
                                         const Offset (&at)[BATCH], int count, float seen, int channels, int c) {
  if (wanted.kind == SUMS_MOMENTS) {
    const float inverse = 1.0f / count, share = count / (seen + count);
    UNROLL for (int i = 0; i < W; i++) {
      float mean = 0.0f, m2 = 0.0f;
      UNROLL for (int j = 0; j < BATCH; j++) mean += j < count ? v[j].v[i] : 0.0f;
      mean *= inverse;
      UNROLL for (int j = 0; j < BATCH; j++) {
        const float deviation = j < count ? v[j].v[i] - mean : 0.0f;
        m2 = __fmaf_rn(deviation, deviation, m2);
      }
      sums.merge_moments(i, mean, m2, seen, share);
    }
  } else if (wanted.kind == SUMS_DOT) {
    UNROLL for (int i = 0; i < W; i++) {
      UNROLL for (int j = 0; j < BATCH; j++) sums.first[i] += j < count ? v[j].v[i] : 0.0f;
    }
    if (wanted.x != nullptr) {
      Pack<W> x[BATCH];
      UNROLL for (int j = 0; j < BATCH; j++) x[j] = load_pack<W>(wanted.x + at[j]);
      const Pack<W> mean = load_pack<W>(wanted.statistics + c), rstd = load_pack<W>(wanted.statistics + channels + c);
      UNROLL for (int i = 0; i < W; i++) {
        UNROLL for (int j = 0; j < BATCH; j++) {
          const float normal = (x[j].v[i] - mean.v[i]) * rstd.v[i];
          sums.second[i] = j < count ? __fmaf_rn(v[j].v[i], normal, sums.second[i]) : sums.second[i];
        }
      }
    }
  }
}

// Merges the lanes of a team, in order, into the tile's partial. All threads call it.
template <int W, int COLUMNS, int LANES, class Team>
__device__ __forceinline__ void write_sums(float* partials, const ChannelSums<W>& sums, int kind, int tile, int rows,
                                           int column0, int channels, float* parts, const Team& team) {
  if (kind == SUMS_NONE) return;  // the same for all threads
  constexpr int RUNS = COLUMNS / W;
  const int column = team.thread() % RUNS * W, lane = team.thread() / RUNS;
  team.meet();
  UNROLL for (int i = 0; i < W; i++) {
    parts[lane * COLUMNS + column + i] = sums.first[i];
    parts[(LANES + lane) * COLUMNS + column + i] = sums.second[i];
  }
  team.meet();
  for (int i = team.thread(); i < COLUMNS && column0 + i < channels; i += RUNS * LANES) {
    ChannelSums<1> all = {{parts[i]}, {parts[LANES * COLUMNS + i]}};
    float seen = lane_rows(rows, 0, LANES);
    for (int other = 1; other < min(LANES, rows); other++) {
      const float first = parts[other * COLUMNS + i], second = parts[(LANES + other) * COLUMNS + i];
      if (kind == SUMS_MOMENTS) {
        const float count = lane_rows(rows, other, LANES);
        all.merge_moments(0, first, second, seen, count / (seen + count));
        seen += count;
      } else {
        all.first[0] += first, all.second[0] += second;
      }
    }
    float* out = partials + Offset(tile) * 2 * channels + column0 + i;
    out[0] = all.first[0], out[channels] = all.second[0];
  }
}

// The end of a block's tile of y (null: the values are there already, only their sums are wanted): rows 0..rows of tile number `tile`, COLUMNS channels from column0 on.
//   value(row, column)  the W values before the epilogue, from tile column `column` on
//   start(row)          where the row's channel 0 lies in y, in the mask's and in the sums' tensor
//   parts               shared memory, 2·LANES·COLUMNS floats; free from the first barrier on, so that `value` may read it
// A thread owns W neighbouring channels of every LANES-th row and has the loads of a few rows in flight. All threads of the team call it.
template <class T, int W, int COLUMNS, int THREADS, class Value, class Start, class Team = WholeBlock>
__device__ __forceinline__ void finish_tile(T* y, const Epilogue<T>& epilogue, int tile, int rows, int column0,
                                            int channels, float* parts, Value value, Start start,
                                            const Team& team = Team()) {
  constexpr int RUNS = COLUMNS / W, LANES = THREADS / RUNS, BATCH = W == 8 ? 1 : W == 4 ? 2 : 4;
  static_assert(RUNS * LANES == THREADS, "every thread has a run");
  const int column = team.thread() % RUNS * W, lane = team.thread() / RUNS, c = column0 + column;
  ChannelSums<W> sums = {};
  if (c < channels) {
    float seen = 0.0f;
    const auto finish_batch = [&](int first) {
      Pack<W> v[BATCH];
      Offset at[BATCH];
      const int count = min(lane_rows(rows - first, 0, LANES), BATCH);
      UNROLL for (int j = 0; j < BATCH; j++) {
        const int row = first + (j < count ? j : 0) * LANES;  // an address that exists
        at[j] = start(row) + c;
        v[j] = value(row, column);
      }
      if (epilogue.addend != nullptr) {
        Pack<W> addend[BATCH];
        UNROLL for (int j = 0; j < BATCH; j++) addend[j] = load_pack<W>(epilogue.addend + at[j]);
        UNROLL for (int j = 0; j < BATCH; j++) {
          UNROLL for (int i = 0; i < W; i++) v[j].v[i] += addend[j].v[i];
        }
      }
      if (epilogue.mask.x != nullptr) {
        Pack<W> x[BATCH];
        UNROLL for (int j = 0; j < BATCH; j++) x[j] = load_pack<W>(epilogue.mask.x + at[j]);
        const Affine<W> affine(epilogue.mask, channels, c);
        UNROLL for (int j = 0; j < BATCH; j++) v[j] = source_mask(affine, epilogue.mask.relu != 0, x[j], v[j]);
      }
      UNROLL for (int j = 0; j < BATCH; j++) {
        if (y != nullptr && j < count) store_pack<W>(y + at[j], v[j]);
        v[j] = as_stored<T>(v[j]);
      }
      add_rows<T, W>(sums, epilogue.sums, v, at, count, seen, channels, c);
      seen += count;
    };
    if constexpr (Team::SPARING) {
      NO_UNROLL for (int first = lane; first < rows; first += LANES * BATCH) finish_batch(first);
    } else {
      for (int first = lane; first < rows; first += LANES * BATCH) finish_batch(first);
    }
  }
  write_sums<W, COLUMNS, LANES>(epilogue.sums.partials, sums, epilogue.sums.kind, tile, rows, column0, channels, parts,
                               team);
}

// The same for a tensor [rows][channels] in blocks of 256 threads: TILE_ROWS rows of blockIdx.x and 8·W channels of
// blockIdx.y. value(row, at, c): the W values of a row from channel c on, which lie at offset `at`.
template <class T, int W, class Value>
__device__ __forceinline__ void finish_rows_of(T* y, const Epilogue<T>& epilogue, int rows, int channels, Value value) {
  constexpr int COLUMNS = 8 * W, LANES = 32;
  SHARED(float, parts, [2 * LANES * COLUMNS]);
  const int row0 = static_cast<int>(blockIdx.x) * TILE_ROWS, column0 = static_cast<int>(blockIdx.y) * COLUMNS;
  const auto start = [&](int row) { return Offset(row0 + row) * channels; };
  finish_tile<T, W, COLUMNS, 8 * LANES>(
      y, epilogue, blockIdx.x, min(rows - row0, TILE_ROWS), column0, channels, parts,
      [&](int row, int column) { return value(row0 + row, start(row) + column0 + column, column0 + column); }, start);
}
