// Philox and Box-Muller in vector code, for the files that are compiled once per vector level: each
// includes this within its own copy of STANLEY_LEVEL's namespace. No torch headers here.
//
// Include nothing with inline functions that other files use too: the linker keeps one copy of
// each, and it might be one with instructions that the machine lacks.
#pragma once

#include "kernels.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace stanley::cpu {
namespace STANLEY_LEVEL {
namespace {

constexpr int64_t kChunk = 1024;  // elements; their noise and words stay in L1

#if defined(__AVX512F__)
constexpr int kLanes = 8;
#elif defined(__AVX2__)
constexpr int kLanes = 4;
#else
constexpr int kLanes = 2;
#endif

// One Philox counter per 64-bit lane: products need no shuffles. Only the low halves count, what
// gathers in the high halves is never read.
typedef uint64_t Lanes __attribute__((vector_size(8 * kLanes)));

inline Lanes product(Lanes a, uint64_t b) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
#elif defined(__AVX2__)
  return (Lanes)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#elif defined(__SSE2__)
  return (Lanes)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#else
  return (a & 0xFFFFFFFFu) * b;
#endif
}

inline uint64_t product(uint32_t a, uint32_t b) { return static_cast<uint64_t>(a) * b; }

constexpr int64_t kBlocks = kChunk / 4 + 1 + 2 * kLanes;  // a chunk may start within a block

// Words w0, w2 of each block in `radius` and w1, w3 in `angle`, as box_muller pairs them.
struct Words {
  alignas(64) uint32_t radius[2 * kBlocks];
  alignas(64) uint32_t angle[2 * kBlocks];
};

// Philox for blocks whose high counter word is the same. Counter words 1, 2 and 3 are then uniform,
// so half of the first two rounds is done once.
void fill_words(const Noise& noise, uint64_t block, int64_t blocks, uint32_t* radius,
                uint32_t* angle) {
  const uint32_t high = static_cast<uint32_t>(block >> 32);
  const uint64_t p1 = product(kPhiloxM1, noise.stream);
  const uint32_t c0 = static_cast<uint32_t>(p1 >> 32) ^ high ^ noise.k0;
  const uint32_t c1 = static_cast<uint32_t>(p1);
  const uint64_t p0 = product(kPhiloxM0, c0);
  Lanes k0[kPhiloxRounds], k1[kPhiloxRounds];
  for (int round = 0; round < kPhiloxRounds; ++round) {
    k0[round] = Lanes{} + (noise.k0 + round * kPhiloxW0);
    k1[round] = Lanes{} + (noise.k1 + round * kPhiloxW1);
  }
  const Lanes s0 = k0[1] ^ c1, s2 = k1[1] ^ (p0 >> 32), s3 = Lanes{} + static_cast<uint32_t>(p0);
  Lanes counter;
  for (int i = 0; i < kLanes; ++i) counter[i] = static_cast<uint32_t>(block) + i;

  for (int64_t b = 0; b < blocks; b += kLanes) {
    Lanes q0 = product(counter, kPhiloxM0);
    counter += kLanes;
    Lanes q1 = product((q0 >> 32) ^ k1[0], kPhiloxM1);
    Lanes w0 = (q1 >> 32) ^ s0, w1 = q1, w2 = q0 ^ s2, w3 = s3;
    for (int round = 2; round < kPhiloxRounds; ++round) {
      q0 = product(w0, kPhiloxM0);
      q1 = product(w2, kPhiloxM1);
      w0 = (q1 >> 32) ^ w1 ^ k0[round];
      w1 = q1;
      w2 = (q0 >> 32) ^ w3 ^ k1[round];
      w3 = q0;
    }
    Lanes r = (w0 & 0xFFFFFFFFu) | (w2 << 32), a = (w1 & 0xFFFFFFFFu) | (w3 << 32);
    std::memcpy(radius + 2 * b, &r, sizeof r);
    std::memcpy(angle + 2 * b, &a, sizeof a);
  }
}

// Normals of the global elements [element, element + n), n <= kChunk; returns where they begin.
template <class T>
const T* normals(const Noise& noise, int64_t element, int64_t n, Words& words, T* buffer) {
  const int64_t lane = element & 3, blocks = (lane + n + 3) / 4;
  const uint64_t block = noise.block + static_cast<uint64_t>(element >> 2);
  const uint64_t low_left = (uint64_t{1} << 32) - static_cast<uint32_t>(block);
  const int64_t head = low_left < static_cast<uint64_t>(blocks) ? low_left : blocks;
  fill_words(noise, block, head, words.radius, words.angle);
  if (head < blocks)  // the low counter word wraps here
    fill_words(noise, block + head, blocks - head, words.radius + 2 * head, words.angle + 2 * head);
  for (int64_t i = 0; i < 2 * blocks; ++i)
    box_muller(words.radius[i], words.angle[i], buffer + 2 * i);
  return buffer + lane;
}

}  // namespace
}  // namespace STANLEY_LEVEL
}  // namespace stanley::cpu
