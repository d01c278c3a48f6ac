// The end of every output, in this order: add a residual or what is there -> mask -> round and store -> per-channel sums of the
// stored values. Whoever computes values hands a block's tile of them to finish_tile; what a tile's sums are is fixed
// here, so that norm.cu can merge the tiles of any writer.
#pragma once
#include "source.cuh"

// Rows of a tensor whose sums make one partial; twin of TILE_ROWS in src/device/cuda/norm.rs.
constexpr int TILE_ROWS = 128;

// Channels that a thread ends at once where accesses are wide: 16 bytes of float, 8 of bf16. With eight, coefficients and
// sums alone would fill its registers, and few rows could be under way.
constexpr int RUN = 4;

enum SumsKind { SUMS_NONE, SUMS_MOMENTS, SUMS_DOT };

// Which per-channel sums of the stored values u are wanted; partials [tiles][2][channels]
//   SUMS_MOMENTS  mean of u, sum (u - mean)²
//   SUMS_DOT      sum u, sum u·x̂ with x̂ = (x - mean)·rstd; without x the second is 0
template <class T>
struct Sums {
  float* partials;
  const T* x;               // [rows][channels]; null for none; the mask's, where there is one
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

  // What mask and sums read, which are of one tensor where both are wanted; null for nothing.
  __device__ __forceinline__ const T* x() const { return mask.x != nullptr ? mask.x : sums.x; }
};

static_assert(sizeof(Sums<float>) == 32, "twin of KernelSums");
static_assert(sizeof(Epilogue<float>) == 72, "twin of KernelEpilogue");

// Rows of a tile of `rows` that fall to one of `lanes` interleaved lanes.
__device__ __forceinline__ int lane_rows(int rows, int lane, int lanes) {
  return rows == TILE_ROWS ? TILE_ROWS / lanes : (rows + lanes - 1 - lane) / lanes;
}
// 1 / lane_rows, of an empty lane 1; all but a tensor's last tile are full, and know it.
__device__ __forceinline__ float lane_share(int rows, int lane, int lanes) {
  return rows == TILE_ROWS ? 1.0f * lanes / TILE_ROWS : reciprocal(max(lane_rows(rows, lane, lanes), 1));
}

// A lane's sums of W channels while its rows come in: of u and u·x̂, or of u - shift and (u - shift)². The shift is the
// lane's first u: as one of n values it keeps the second sum within n times that about the mean, so that what to_moments
// subtracts is of the size of what it leaves, wherever the mean lies; and no row costs a division.
template <class T, int W>
struct LaneSums {
  Pack<W> shift = {}, first = {}, second = {};

  // Adds the first `count` of BATCH rows of stored values; `begins`: they are the lane's first. x: those of SUMS_DOT.
  template <int BATCH>
  __device__ __forceinline__ void add(const Sums<T>& wanted, const Pack<W> (&u)[BATCH], const Stored<T, W> (&x)[BATCH],
                                      int count, bool begins, int channels, int c) {
    if (wanted.kind == SUMS_MOMENTS) {
      if (begins) shift = u[0];
      UNROLL for (int i = 0; i < W; i++) {
        UNROLL for (int j = 0; j < BATCH; j++) {
          if (j == 0 && begins) continue;  // 0
          const float centred = j < count ? u[j].v[i] - shift.v[i] : 0.0f;
          first.v[i] += centred;
          second.v[i] = __fmaf_rn(centred, centred, second.v[i]);
        }
      }
    } else if (wanted.kind == SUMS_DOT) {
      UNROLL for (int i = 0; i < W; i++) {
        UNROLL for (int j = 0; j < BATCH; j++) first.v[i] += j < count ? u[j].v[i] : 0.0f;
      }
      if (wanted.x != nullptr) {
        const Pack<W> mean = load_pack<W>(wanted.statistics + c), rstd = load_pack<W>(wanted.statistics + channels + c);
        UNROLL for (int j = 0; j < BATCH; j++) {
          const Pack<W> value = x[j].values();
          UNROLL for (int i = 0; i < W; i++) {
            const float normal = (value.v[i] - mean.v[i]) * rstd.v[i];
            second.v[i] = j < count ? __fmaf_rn(u[j].v[i], normal, second.v[i]) : second.v[i];
          }
        }
      }
    }
  }

  // Turns sums about the shift into mean and m2; `inverse` is that of the number of rows.
  __device__ __forceinline__ void to_moments(float inverse) {
    UNROLL for (int i = 0; i < W; i++) {
      const float delta = first.v[i] * inverse;
      second.v[i] = __fmaf_rn(-delta, first.v[i], second.v[i]);
      first.v[i] = shift.v[i] + delta;
    }
  }
};

// The sum over N neighbouring lanes of a warp, a power of two of them; all lanes of the warp call it.
template <int N>
__device__ __forceinline__ float neighbour_sum(float v) {
  UNROLL for (int offset = N / 2; offset > 0; offset >>= 1) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}

// Merges the lanes of a block into the tile's partial, in a fixed order: LANES / W neighbouring threads take W lanes of a
// column each, then sum what they have. Moments are again taken about a shift: the mean of lane 0, within LANES times of
// those about the mean of all. All threads call it.
//   parts(row, column)  shared memory, 2·LANES rows of COLUMNS floats; of its columns, rows lane and LANES + lane are a
//                       thread's own until it comes here
template <class T, int W, int COLUMNS, int LANES, class Parts>
__device__ __forceinline__ void write_sums(float* partials, LaneSums<T, W>& sums, int kind, int tile, int rows,
                                           int column0, int channels, Parts parts, int thread) {
  constexpr int RUNS = COLUMNS / W, GROUP = LANES / W;
  static_assert(GROUP * W == LANES && 32 % GROUP == 0, "a column's threads are in one warp");
  if (kind == SUMS_NONE) return;  // the same for all threads
  const int lane = thread / RUNS, run = thread % RUNS * W;
  if (kind == SUMS_MOMENTS) sums.to_moments(lane_share(rows, lane, LANES));
  store_pack<W>(parts(lane, run), sums.first);
  store_pack<W>(parts(LANES + lane, run), sums.second);
  __syncthreads();
  const int member = thread % GROUP, column = thread / GROUP;
  float first = 0.0f, second = 0.0f;
  const float shift = kind == SUMS_MOMENTS ? *parts(0, column) : 0.0f;
  UNROLL for (int i = 0; i < W; i++) {
    const int other = i * GROUP + member;
    const float u = *parts(other, column), v = *parts(LANES + other, column);
    if (kind == SUMS_MOMENTS) {
      const float delta = u - shift, weighted = delta * lane_rows(rows, other, LANES);
      first += weighted;
      second += __fmaf_rn(weighted, delta, v);
    } else {
      first += u, second += v;
    }
  }
  first = neighbour_sum<GROUP>(first), second = neighbour_sum<GROUP>(second);
  if (kind == SUMS_MOMENTS) {
    const float delta = first * lane_share(rows, 0, 1);
    second = __fmaf_rn(-delta, first, second);
    first = shift + delta;
  }
  if (member == 0 && column0 + column < channels) {
    float* out = partials + Offset(tile) * 2 * channels + column0 + column;
    out[0] = first, out[channels] = second;
  }
}

// The partial of one channel of a whole tile, where N neighbouring lanes of a warp hold the sums of as many rows each, in a
// fixed order. All lanes of the warp call it.
template <int N, class T>
__device__ __forceinline__ void write_neighbours(const Sums<T>& wanted, LaneSums<T, 1>& sums, int tile, int channels, int c) {
  constexpr int ROWS = TILE_ROWS / N;
  if (wanted.kind == SUMS_NONE) return;  // the same for all threads
  float first, second;
  if (wanted.kind == SUMS_MOMENTS) {
    sums.to_moments(1.0f / ROWS);
    const float mean = neighbour_sum<N>(sums.first.v[0]) * (1.0f / N), delta = sums.first.v[0] - mean;
    first = mean;
    second = neighbour_sum<N>(__fmaf_rn(delta * ROWS, delta, sums.second.v[0]));
  } else {
    first = neighbour_sum<N>(sums.first.v[0]), second = neighbour_sum<N>(sums.second.v[0]);
  }
  if (threadIdx.x % N == 0) {
    float* out = wanted.partials + Offset(tile) * 2 * channels + c;
    out[0] = first, out[channels] = second;
  }
}

// BATCH rows of a thread, every LANES-th from `first` on, W channels from c on, and what their end reads besides their
// values: loaded before anything is stored, so that all loads are under way at once.
template <class T, int W, int LANES, int BATCH>
struct RowBatch {
  int first, count, number[BATCH];  // number: of the row in the tensor
  Stored<T, W> x[BATCH] = {}, addend[BATCH] = {};

  template <class Number>
  __device__ __forceinline__ void find(int first_row, int rows, Number number_of) {
    first = first_row, count = 0;
    UNROLL for (int j = 0; j < BATCH; j++) {
      count += first + j * LANES < rows;
      number[j] = number_of(row(j));
    }
  }

  __device__ __forceinline__ Offset at(int j, int channels, int c) const { return Offset(number[j]) * channels + c; }

  __device__ __forceinline__ void load_x(const Epilogue<T>& epilogue, int channels, int c) {
    if (epilogue.x() != nullptr) {
      UNROLL for (int j = 0; j < BATCH; j++) x[j].load(epilogue.x() + at(j, channels, c));
    }
  }
  __device__ __forceinline__ void load_addend(const Epilogue<T>& epilogue, int channels, int c) {
    if (epilogue.addend != nullptr) {
      UNROLL for (int j = 0; j < BATCH; j++) addend[j].load(epilogue.addend + at(j, channels, c));
    }
  }

  // Of a row that does not exist: the first, an address that does.
  __device__ __forceinline__ int row(int j) const { return first + (j < count ? j : 0) * LANES; }

  // v: the values
  __device__ __forceinline__ void finish(T* y, Pack<W> (&v)[BATCH], const Epilogue<T>& epilogue, LaneSums<T, W>& sums,
                                         bool begins, int channels, int c) {
    if (epilogue.addend != nullptr) {
      UNROLL for (int j = 0; j < BATCH; j++) {
        const Pack<W> more = addend[j].values();
        UNROLL for (int i = 0; i < W; i++) v[j].v[i] += more.v[i];
      }
    }
    if (epilogue.mask.x != nullptr) {
      const Affine<W> affine(epilogue.mask, channels, c);
      UNROLL for (int j = 0; j < BATCH; j++) v[j] = source_mask(affine, epilogue.mask.relu != 0, x[j].values(), v[j]);
    }
    UNROLL for (int j = 0; j < BATCH; j++) {
      if (y != nullptr && j < count) store_pack<W>(y + at(j, channels, c), v[j]);
      v[j] = as_stored<T>(v[j]);
    }
    sums.template add<BATCH>(epilogue.sums, v, x, count, begins, channels, c);
  }
};

// The end of a block's tile of y (null: the values are there already, only their sums are wanted): rows 0..rows of tile number `tile`, COLUMNS channels from column0 on.
//   value(row, column)  the W values before the epilogue, from tile column `column` on
//   number(row)         of the row in y, in the mask's and in the sums' tensor
//   parts(row, column)  shared memory of write_sums; where `value` reads such a row, it may be that row itself
// A thread owns W neighbouring channels of every LANES-th row and has the loads of BATCH rows in flight. All threads of the block call it.
template <class T, int W, int COLUMNS, int THREADS, int BATCH, class Value, class Number, class Parts>
__device__ __forceinline__ void finish_tile(T* y, const Epilogue<T>& epilogue, int tile, int rows, int column0,
                                            int channels, Value value, Number number, Parts parts,
                                            int thread) {
  constexpr int RUNS = COLUMNS / W, LANES = THREADS / RUNS;
  static_assert(RUNS * LANES == THREADS, "every thread has a run");
  const int column = thread % RUNS * W, lane = thread / RUNS, c = column0 + column;
  LaneSums<T, W> sums;
  if (c < channels) {
    NO_UNROLL for (int first = lane; first < rows; first += LANES * BATCH) {
      RowBatch<T, W, LANES, BATCH> batch;
      batch.find(first, rows, number);
      batch.load_x(epilogue, channels, c);
      batch.load_addend(epilogue, channels, c);
      Pack<W> v[BATCH];
      UNROLL for (int j = 0; j < BATCH; j++) v[j] = value(batch.row(j), column);
      batch.finish(y, v, epilogue, sums, first == lane, channels, c);
    }
  }
  write_sums<T, W, COLUMNS, LANES>(epilogue.sums.partials, sums, epilogue.sums.kind, tile, rows, column0, channels, parts,
                                  thread);
}

// The same for a tensor [rows][channels] in blocks of 256 threads: TILE_ROWS rows of blockIdx.x, and of blockIdx.y 8·16 bytes
// of channels where W is RUN, 8 channels where it is 1. value(row, at, c): the W values of a row from channel c on, which lie
// at offset `at`; it loads LOADS runs of T.
template <class T, int W, int LOADS, class Value>
__device__ __forceinline__ void finish_rows_of(T* y, const Epilogue<T>& epilogue, int rows, int channels, Value value) {
  constexpr int THREADS = 256, COLUMNS = W == 1 ? 8 : 8 * WIDE<T>, LANES = THREADS * W / COLUMNS;
  // 64 bytes a thread under way: 32 KB for the 512 threads of a multiprocessor, where 3 TB/s at a latency of 0.7 µs want 16.
  constexpr int BATCH = W == 1 ? 4 : 64 / (LOADS * W * static_cast<int>(sizeof(T)));
  constexpr int PITCH = COLUMNS + 32 * W / LANES;  // the threads of a warp that merge lanes read different banks
  SHARED(float, memory, [2 * LANES * PITCH]);
  const int row0 = static_cast<int>(blockIdx.x) * TILE_ROWS, column0 = static_cast<int>(blockIdx.y) * COLUMNS;
  finish_tile<T, W, COLUMNS, THREADS, BATCH>(
      y, epilogue, blockIdx.x, min(rows - row0, TILE_ROWS), column0, channels,
      [&](int row, int column) {
        const int c = column0 + column;
        return value(row0 + row, Offset(row0 + row) * channels + c, c);
      },
      [&](int row) { return row0 + row; },
      [&](int row, int column) { return memory + row * PITCH + column; }, threadIdx.x);
}
