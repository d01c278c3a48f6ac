// Filters as operands of tensor cores: rounded to the operand's type and laid out so that the convolutions copy whole
// 16-byte chunks. One launch does those of many convolutions: each alone is too small to fill a GPU. Suffix: the operand's
// type, _tf32 (floats with 10 mantissa bits) or _bf16.
#include "mma_tile.cuh"

// One matrix of one convolution: all filters in rows, or a parity class of backward-input.
// rows:   out [K][pitch]            out[k][(r,s,c)] = w[k,r,s,c]
// class:  out [C][pitch]            out[c][(i,j,k)] = w[k, r0 + stride·i, s0 + stride·j, c] over the taps of the class
// rounded; 0 from the end of the depth up to the pitch, its next multiple of whole chunks
// out 16-byte aligned; w [K,R,S,C]; K·pitch and C·pitch < 2^31
struct FilterMatrix {
  void* out;
  const float* w;
  ConvShape shape;
  int parity_class;  // -1: rows
  int first_block;
  int reserved;
};

// As many as 4 KiB of parameters hold. Twins in src/device/cuda/filters.rs.
constexpr int FILTER_MATRICES = 63;
struct FilterTable {
  FilterMatrix matrices[FILTER_MATRICES];  // in the order of their first blocks; the first begins at block 0
  int count, reserved;
};
static_assert(sizeof(FilterMatrix) == 64 && sizeof(FilterTable) == 4040, "twins of FilterMatrix, FilterTable in filters.rs");

// Chunks of a thread, one every 256: a block takes 1024 neighbours. Twin in filters.rs.
constexpr int FILTER_PASSES = 4;

// f(chunk) for this thread's chunks of its block's matrix.
template <class F>
__device__ __forceinline__ void for_chunks(const FilterMatrix& matrix, int chunks, F f) {
  const int first = (static_cast<int>(blockIdx.x) - matrix.first_block) * FILTER_PASSES * 256;
  UNROLL for (int pass = 0; pass < FILTER_PASSES; pass++) {
    const int chunk = first + pass * 256 + static_cast<int>(threadIdx.x);
    if (chunk < chunks) f(chunk);
  }
}

template <class T>
__device__ __forceinline__ void arrange_rows(const FilterMatrix& matrix) {
  const int depth = matrix.shape.r * matrix.shape.s * matrix.shape.c, row_chunks = filter_pitch<T>(depth) / WIDE<T>;
  T* out = static_cast<T*>(matrix.out);
  for_chunks(matrix, matrix.shape.k * row_chunks, [&](int chunk) {
    const int k = chunk / row_chunks, d = (chunk - k * row_chunks) * WIDE<T>;
    const float* from = matrix.w + Offset(k) * depth + d;
    Pack<WIDE<T>> values;
    UNROLL for (int e = 0; e < WIDE<T>; e++) values.v[e] = d + e < depth ? from[e] : 0.0f;
    store_chunk(out + Offset(chunk) * WIDE<T>, operand_chunk<T>(values));
  });
}

template <class T>
__device__ __forceinline__ void arrange_class(const FilterMatrix& matrix) {
  const ConvShape& shape = matrix.shape;
  const ParityClass taps(shape, matrix.parity_class);
  const int pitch = filter_pitch<T>(taps.taps_r * taps.taps_s * shape.k);
  T* out = static_cast<T*>(matrix.out);
  for_chunks(matrix, pitch / WIDE<T> * shape.c, [&](int chunk) {
    // Neighbouring threads take neighbouring channels: the reads are the larger part.
    const int group = chunk / shape.c, c = chunk - group * shape.c, d = group * WIDE<T>;
    int tap = d / shape.k, k = d - tap * shape.k, i = tap / taps.taps_s, j = tap - i * taps.taps_s;
    Pack<WIDE<T>> values;
    UNROLL for (int e = 0; e < WIDE<T>; e++) {
      const int r = taps.r0 + shape.stride * i, s = taps.s0 + shape.stride * j;
      values.v[e] = i < taps.taps_r ? matrix.w[((Offset(k) * shape.r + r) * shape.s + s) * shape.c + c] : 0.0f;
      if (++k == shape.k) k = 0, j++;
      if (j == taps.taps_s) j = 0, i++;
    }
    store_chunk(out + Offset(c) * pitch + d, operand_chunk<T>(values));
  });
}

template <class T>
__device__ __forceinline__ void arrange(const FilterTable& table) {
  // The last matrix that begins at this block or before.
  int at = 0, end = table.count;
  while (end - at > 1) {
    const int middle = (at + end) / 2;
    if (table.matrices[middle].first_block <= static_cast<int>(blockIdx.x)) at = middle;
    else end = middle;
  }
  const FilterMatrix& matrix = table.matrices[at];
  if (matrix.parity_class < 0) arrange_rows<T>(matrix);
  else arrange_class<T>(matrix);
}

// All matrices of the table, which have a chunk at least.
// grid: the blocks of all matrices, 256 threads each
extern "C" __global__ void __launch_bounds__(256) arrange_filters_tf32(const __grid_constant__ FilterTable table) {
  arrange<float>(table);
}
extern "C" __global__ void __launch_bounds__(256) arrange_filters_bf16(const __grid_constant__ FilterTable table) {
  arrange<__nv_bfloat16>(table);
}
