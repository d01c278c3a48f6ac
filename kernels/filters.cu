// Filters as operands of tensor cores: rounded to the operand's type and laid out so that the convolutions copy whole
// 16-byte chunks. Suffix: the operand's type, _tf32 (floats with 10 mantissa bits) or _bf16.
#include "mma_tile.cuh"

// One chunk of an operand: value(e) for its elements.
template <class T, class F>
__device__ __forceinline__ void write_chunk(T* at, F value) {
  Pack<WIDE<T>> out;
  UNROLL for (int e = 0; e < WIDE<T>; e++) out.v[e] = value(e);
  store_chunk(at, operand_chunk<T>(out));
}

template <class T>
__device__ __forceinline__ void filter_rows_body(T* out, const float* w, const float* tw, int filters, int depth) {
  const int chunks = filter_pitch<T>(depth) / WIDE<T>;
  const float* from = blockIdx.y == 0 ? w : tw;
  T* to = out + Offset(blockIdx.y) * filters * chunks * WIDE<T>;
  const Divider by_chunks(chunks);
  for (Offset i = thread_index(); i < Offset(filters) * chunks; i += thread_count()) {
    const int k = by_chunks.div(static_cast<int>(i)), d = (static_cast<int>(i) - k * chunks) * WIDE<T>;
    write_chunk(to + i * WIDE<T>, [&](int e) { return d + e < depth ? from[Offset(k) * depth + d + e] : 0.0f; });
  }
}

// out[0][k][d] = w[k][d], out[1][k][d] = tw[k][d], rounded; 0 for depth <= d < pitch
// out [1 or 2][K][pitch]; w, tw [K][depth], depth = RSC; pitch: depth rounded up to whole chunks
// grid: (any number of blocks of 256, 1 or 2); a thread owns every (grid·256)-th chunk of 16 bytes
// K·pitch < 2^31; out 16-byte aligned
#define FILTER_ROWS_ARGS(T) T *out, const float *__restrict__ w, const float *__restrict__ tw, int filters, int depth
extern "C" __global__ void __launch_bounds__(256) filter_rows_tf32(FILTER_ROWS_ARGS(float)) {
  filter_rows_body(out, w, tw, filters, depth);
}
extern "C" __global__ void __launch_bounds__(256) filter_rows_bf16(FILTER_ROWS_ARGS(__nv_bfloat16)) {
  filter_rows_body(out, w, tw, filters, depth);
}

template <class T>
__device__ __forceinline__ void filter_classes_body(T* out, const float* w, const ConvShape& shape) {
  const ParityClass taps(shape, blockIdx.y);
  const int depth = taps.taps_r * taps.taps_s * shape.k, pitch = filter_pitch<T>(depth), chunks = pitch / WIDE<T>;
  T* to = out + class_filters<T>(shape, blockIdx.y);
  const Divider by_channels(shape.c), by_filters(shape.k), by_columns(max(taps.taps_s, 1));
  for (Offset i = thread_index(); i < Offset(chunks) * shape.c; i += thread_count()) {
    // Neighbouring threads take neighbouring channels: the reads are the larger part.
    const int chunk = by_channels.div(static_cast<int>(i)), c = static_cast<int>(i) - chunk * shape.c;
    const int first = chunk * WIDE<T>;
    write_chunk(to + Offset(c) * pitch + first, [&](int e) {
      const int d = first + e, tap = by_filters.div(d), k = d - tap * shape.k, row = by_columns.div(tap);
      const int r = taps.r0 + shape.stride * row, s = taps.s0 + shape.stride * (tap - row * by_columns.d);
      return d < depth ? w[((Offset(k) * shape.r + r) * shape.s + s) * shape.c + c] : 0.0f;
    });
  }
}

// out[class][c][(i,j,k)] = w[k, r0 + stride·i, s0 + stride·j, c], rounded, over the taps of each parity class; 0 up to the pitch
// out [stride²][C][pitch of the class]; w [K,R,S,C]
// grid: (any number of blocks of 256, stride²); a thread owns every (grid·256)-th chunk of 16 bytes of a class
// C·R·S·K < 2^31; out 16-byte aligned
#define FILTER_CLASSES_ARGS(T) T *out, const float *__restrict__ w, ConvShape shape
extern "C" __global__ void __launch_bounds__(256) filter_classes_tf32(FILTER_CLASSES_ARGS(float)) {
  filter_classes_body(out, w, shape);
}
extern "C" __global__ void __launch_bounds__(256) filter_classes_bf16(FILTER_CLASSES_ARGS(__nv_bfloat16)) {
  filter_classes_body(out, w, shape);
}
