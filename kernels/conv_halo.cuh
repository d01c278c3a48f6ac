// 3x3 windows of stride 1 and padding 1 on tensor cores: the product of mma_tile.cuh where the nine taps of a block's pixels
// share their halo, so that what is pending on a pixel is evaluated once, not once a tap.
//
// A block's 128 pixels are whole rows of the image, or whole images. It goes through the channels in blocks of 64 bytes,
// of which shared memory holds its pixels' halo; the taps read their fragments from there, a pixel further each. A tangent
// has two halos, the source's tangent and its value, and two filters: tap by tap both products go to one sum.
//
//   before:                         zeros where there is no image; the first block's halo, evaluated
//   for each block of channels:
//     start the copies of the next block's halo             cp.async, stored values
//     for each tap and product:     wait for its filters, barrier; start the copies of the filters two steps on
//                                   acc += a b              ldmatrix, mma
//       after each row of taps:     evaluate a third of the next halo, in place; each thread what it has copied itself
//
// A halo has rows of width + 1 pixels: the zero before a row ends the one above it; between two images lies one row of
// zeros. Chunk c of image pixel (y, x) lies at place c ^ ((y·width + x) / 2 % 4) of the pixel's 64 bytes. The eight
// neighbouring pixels of a matrix, in one row or in two rows of four, are in different banks for every tap: the parity of
// their places in the halo tells those apart that share a place, as long as a zero pixel (any of its chunks will do) is
// read at the place of the pixel at the row's other end.
#pragma once
#include "mma_tile.cuh"

// Shared memory: two halos for each operand, the second being prepared during the first, then the ring of
// filters and the list of pixels.
template <class Tile, Form FORM>
struct HaloMemory {
  static constexpr int OPERANDS = FORM == Form::Tangent ? 2 : 1;
  static constexpr int PIXELS = 208, ROW = 64;         // twin of HALO_PIXELS in src/device/cuda/tile.rs
  static constexpr int HALO = PIXELS * ROW, HALF = OPERANDS * HALO;
  static constexpr int STAGES = 3, STAGE = Tile::BN * ROW, RING = 2 * HALF;
  static constexpr int LIST = RING + STAGES * STAGE, LISTED = 256, USED = LIST + LISTED * 4, PRODUCT = Tile::BM * Tile::LDC * 4;
  static constexpr int BYTES = USED > PRODUCT ? USED : PRODUCT;
  static_assert(Tile::ROW == ROW, "a block of channels is a step of the filters' depth");
};

// How the pixels of a tile lie in their halo. Widths are powers of two, and so are the rows of an image in a tile.
struct HaloPlace {
  int width_log2, rows_log2;  // of the images in the tile: all of an image's rows, or some of one image
  int pitch, distance;        // from row to row in pixels, from image to image in rows
  int pixels;

  __device__ __forceinline__ HaloPlace(int height, int width, int tile)
      : width_log2(31 - __clz(width)), pitch(width + 1) {
    const int tile_rows = tile >> width_log2, rows = min(tile_rows, height);
    rows_log2 = 31 - __clz(rows);
    distance = rows < height ? rows + 2 : rows + 1;
    pixels = (tile_rows + (tile_rows >> rows_log2) + 1) * pitch + 1;
  }
  // The tile's pixel m at the first tap. Of a sum of numbers without common bits it is the sum.
  __device__ __forceinline__ int first_tap(int m) const {
    const int row = m >> width_log2;
    return (row + (row >> rows_log2)) * pitch + m - (row << width_log2);
  }
};

// The halo of a source, and of its tangent before it. A thread owns the same chunk of PASSES pixels.
template <class T, class Tile, Form FORM>
struct HaloOperand {
  typedef HaloMemory<Tile, FORM> Memory;
  static constexpr int CHUNK = WIDE<T>, BLOCK = 4 * CHUNK, PASS = Tile::THREADS / 4;
  static constexpr int PASSES = ceil_div(Memory::PIXELS, PASS), VALUE = Memory::HALF - Memory::HALO;
  static_assert(PASSES * PASS <= Memory::LISTED, "every pass finds its pixels");

  const Image<T> image;
  int* const list;  // number of each pixel in the whole tensor; negative where there is no image

  // Also fills what lies outside of the images with zeros, in both halves of `memory`. All threads of the block call it.
  __device__ __forceinline__ HaloOperand(const Image<T>& image, const HaloPlace& place, int images, int m0,
                                         unsigned char* memory)
      : image(image), list(reinterpret_cast<int*>(memory + Memory::LIST)) {
    const int first_row = m0 >> place.width_log2, n0 = first_row / image.height, y0 = first_row - n0 * image.height;
    for (int p = threadIdx.x; p < Memory::LISTED; p += Tile::THREADS) {
      const int row = p / place.pitch, x = p - row * place.pitch - 1;
      const int nth = row / place.distance, n = n0 + nth, y = y0 + row - nth * place.distance - 1;
      const bool inside = p < place.pixels && x >= 0 && static_cast<unsigned>(y) < static_cast<unsigned>(image.height) &&
                          n < images;
      list[p] = inside ? (n * image.height + y) * image.width + x : -1;
    }
    __syncthreads();
    UNROLL for (int i = 0; i < PASSES; i++) {
      const int p = first_pixel() + i * PASS;
      if (list[p] < 0 && p < Memory::PIXELS) {
        UNROLL for (int halo = 0; halo < 2 * Memory::OPERANDS; halo++) {
          store_chunk(memory + halo * Memory::HALO + p * Memory::ROW + chunk() * 16, Chunk{}, false);
        }
      }
    }
  }

  __device__ __forceinline__ static int chunk() { return threadIdx.x % 4; }
  __device__ __forceinline__ static int first_pixel() { return threadIdx.x / 4; }
  // Where this thread's chunk of a pass lies. (Images have whole matrices of eight pixels.)
  __device__ __forceinline__ static int offset(int pass, int pixel) {
    return (first_pixel() + pass * PASS) * Memory::ROW + ((chunk() ^ (pixel >> 1 & 3)) << 4);
  }

  // Starts the copies of the channels from c0 on; zeros behind the last channel, and for a tangent that is zero.
  __device__ __forceinline__ void copy(int c0, unsigned char* half) const {
    const int c = c0 + chunk() * CHUNK;
    const bool channels = c < image.channels;
    UNROLL for (int i = 0; i < PASSES; i++) {
      const int pixel = list[first_pixel() + i * PASS];
      if (pixel >= 0) {
        const Offset at = Offset(pixel) * image.channels + (channels ? c : 0);
        cp_async16(half + VALUE + offset(i, pixel), image.source.x + at, channels);
        if constexpr (FORM == Form::Tangent) {
          const bool given = image.tangent.tx != nullptr;
          cp_async16(half + offset(i, pixel), (given ? image.tangent.tx : image.source.x) + at, channels && given);
        }
      }
    }
  }

  // Turns what this thread has copied in passes first..last, and what has arrived, into operands.
  __device__ __forceinline__ void evaluate(int c0, unsigned char* half, int first, int last) const {
    const int c = computed_here(c0 + chunk() * CHUNK);
    const bool relu = image.source.relu != 0;
    NO_UNROLL for (int pass = first; pass < last; pass++) {
      const int pixel = list[first_pixel() + pass * PASS];
      if (pixel < 0 || c >= image.channels) continue;
      unsigned char* const at = half + offset(pass, pixel);
      Chunk value = load_chunk(at + VALUE), tangent;
      if constexpr (FORM == Form::Tangent) tangent = load_chunk(at);
      UNROLL for (int q = 0; q < CHUNK / 4; q++) {
        const Affine<4> affine(image.source, image.channels, c + 4 * q);
        const Pack<4> x = four_of<T>(value, q);
        if constexpr (FORM == Form::Tangent) {
          const Slope<4> slope(image.tangent.slope, image.channels, c + 4 * q);
          set_four<T>(tangent, q, source_tangent(affine, relu, slope, x, four_of<T>(tangent, q)));
        }
        set_four<T>(value, q, source_forward(affine, relu, x));
      }
      store_chunk(at + VALUE, value);
      if constexpr (FORM == Form::Tangent) store_chunk(at, tangent);
    }
  }
};

// acc += the products of a tile's halos with filters [K][9][C], those of the tangent first. All threads of the block call
// it; `memory` is free before and after.
template <class T, class Tile, Form FORM>
__device__ __forceinline__ void halo_accumulate(float (&acc)[Tile::MI][Tile::NI][4], unsigned char* memory,
                                                const Image<T>& image, const T* const (&filters)[HaloMemory<Tile, FORM>::OPERANDS],
                                                const Place<Tile>& at, const ConvShape& shape) {
  typedef HaloOperand<T, Tile, FORM> Operand;
  typedef HaloMemory<Tile, FORM> Memory;
  constexpr int OPERANDS = Memory::OPERANDS, STAGES = Memory::STAGES, ROW = Memory::ROW;
  static_assert(3 * OPERANDS % STAGES == 0, "a row of taps begins at the first stage");
  const int channels = image.channels;
  const HaloPlace place(image.height, image.width, Tile::BM);
  const Operand a(image, place, shape.n, at.m0, memory);
  const FilterOperand<T, Tile> b(filters[0], at.n0, shape.k, 9 * channels);

  // The step whose filters are copied next.
  int next_tap = 0, next_c0 = 0;
  const auto copy_filters = [&](int operand, int stage) {
    const int c = next_c0 + Operand::chunk() * Operand::CHUNK;
    b.copy_from(filters[operand], next_tap * channels + c, c < channels,
                memory + Memory::RING + stage * Memory::STAGE);
    if (operand == OPERANDS - 1 && ++next_tap == 9) next_tap = 0, next_c0 += Operand::BLOCK;
    cp_async_commit();
  };
  a.copy(0, memory);
  cp_async_commit();
  UNROLL for (int step = 0; step < STAGES - 1; step++) copy_filters(step % OPERANDS, step);
  cp_async_wait<STAGES - 1>();
  a.evaluate(0, memory, 0, Operand::PASSES);

  const int lane = threadIdx.x & 31, matrix = lane >> 3, r8 = lane & 7;
  const int m = warp_row<Tile>() + (matrix & 1) * 8 + r8, a_first = place.first_tap(m) * ROW;
  // From the first of the 16-pixel parts to each; the place in the middle row of taps of the first chunk to read.
  int a_part[Tile::MI], a_place[3];
  UNROLL for (int i = 0; i < Tile::MI; i++) a_part[i] = place.first_tap(i * 16) * ROW;
  UNROLL for (int s = 0; s < 3; s++) {
    const int last = (1 << place.width_log2) - 1, pixel = (m & ~last) + ((m + s - 1) & last);
    a_place[s] = ((matrix >> 1) ^ (pixel >> 1 & 3)) << 4;
  }
  const int b_row = warp_column<Tile>() + (matrix >> 1) * 8 + r8;
  const int b_at[2] = {chunk_offset(b_row, matrix & 1), chunk_offset(b_row, 2 + (matrix & 1))};
  int half = 0;
  for (int c0 = 0; c0 < channels; c0 += Operand::BLOCK) {
    const bool more = c0 + Operand::BLOCK < channels;
    unsigned char* const next = memory + (half ^ Memory::HALF);
    NO_UNROLL for (int r = 0; r < 3; r++) {
      // Half a row of four pixels further, the place differs by two; of eight, by four.
      const int other_row = r != 1 && place.width_log2 == 2 ? 32 : 0;
      UNROLL for (int s = 0; s < 3; s++) {
        const int tap = a_first + (r * place.pitch + s) * ROW;
        const int chunk = a_place[s] ^ other_row;
        UNROLL for (int operand = 0; operand < OPERANDS; operand++) {
          const int step = s * OPERANDS + operand;
          cp_async_wait<STAGES - 2>();
          __syncthreads();
          if (more && r == 0 && step == 0) a.copy(c0 + Operand::BLOCK, next);
          copy_filters((operand + STAGES - 1) % OPERANDS, (step + STAGES - 1) % STAGES);
          const unsigned char* const pixels = memory + half + operand * Memory::HALO + tap;
          const unsigned char* const rows = memory + Memory::RING + step % STAGES * Memory::STAGE;
          UNROLL for (int k = 0; k < 2; k++) {
            uint32_t af[Tile::MI][4], bf[Tile::NI][2];
            const unsigned char* const chunks = pixels + (chunk ^ k << 5);
            UNROLL for (int i = 0; i < Tile::MI; i++) ldmatrix_x4(af[i], chunks + a_part[i]);
            UNROLL for (int j = 0; j < Tile::NI; j += 2) {
              uint32_t pair[4];
              ldmatrix_x4(pair, rows + b_at[k] + j * 8 * ROW);
              bf[j][0] = pair[0], bf[j][1] = pair[1], bf[j + 1][0] = pair[2], bf[j + 1][1] = pair[3];
            }
            multiply<T>(acc, af, bf);
          }
        }
      }
      // Two steps ago at the least the copies went off: the last wait was for them too.
      if (more) a.evaluate(c0 + Operand::BLOCK, next, Operand::PASSES * r / 3, Operand::PASSES * (r + 1) / 3);
    }
    half ^= Memory::HALF;
  }
  cp_async_wait<0>();
  __syncthreads();
}
