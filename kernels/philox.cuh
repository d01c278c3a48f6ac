// Counter-based random draws: twin of src/random.rs, which holds the layout of streams and draws. Bit-identical.
#pragma once
#include "common.cuh"

enum Purpose : unsigned { PURPOSE_CROP = 6, PURPOSE_FLIP = 7 };

// Philox4x32-10: 128 random bits for each (counter, key).
__device__ __forceinline__ uint4 philox(uint4 counter, unsigned key0, unsigned key1) {
  UNROLL for (int round = 0; round < 10; round++) {
    const unsigned high0 = __umulhi(0xD2511F53u, counter.x), low0 = 0xD2511F53u * counter.x;
    const unsigned high1 = __umulhi(0xCD9E8D57u, counter.z), low1 = 0xCD9E8D57u * counter.z;
    counter = make_uint4(high1 ^ counter.y ^ key0, low1, high0 ^ counter.w ^ key1, low0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// The first four words of the stream (seed, purpose, view, index, time).
__device__ __forceinline__ uint4 stream_words(unsigned long long seed, Purpose purpose, unsigned view, unsigned index,
                                              unsigned time) {
  return philox(make_uint4(index, purpose << 16 | view, time, 0), static_cast<unsigned>(seed),
                static_cast<unsigned>(seed >> 32));
}

// An integer in [0, k) out of one word.
__device__ __forceinline__ unsigned word_below(unsigned word, unsigned k) { return __umulhi(word, k); }
