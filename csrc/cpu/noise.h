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

constexpr int64_t kChunk = 2048;  // elements; their noise and words stay in L1

// Every operation is written for kJam vectors at once: the chains of dependent instructions in
// Philox and Box-Muller are long, and others fill the gaps.
#if defined(__AVX512F__)
constexpr int kLanes = 8, kJam = 8;
#elif defined(__AVX2__)
constexpr int kLanes = 4, kJam = 4;
#else
constexpr int kLanes = 2, kJam = 2;
#endif

// One Philox counter per 64-bit lane: products need no shuffles. Only the low halves count, what
// gathers in the high halves is never read.
typedef uint64_t Counters __attribute__((vector_size(8 * kLanes)));

// The pairs of words of kJam * kLanes blocks, and as many floats.
constexpr int kPairs = 2 * kJam * kLanes;
typedef uint32_t Words __attribute__((vector_size(4 * kPairs)));
typedef int32_t Ints __attribute__((vector_size(4 * kPairs)));
typedef float Floats __attribute__((vector_size(4 * kPairs)));

inline Counters product(Counters a, uint64_t b) {
#if defined(__AVX512F__)
  return (Counters)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
#elif defined(__AVX2__)
  return (Counters)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#elif defined(__SSE2__)
  return (Counters)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#else
  return (a & 0xFFFFFFFFu) * b;
#endif
}

inline uint64_t product(uint32_t a, uint32_t b) { return static_cast<uint64_t>(a) * b; }

// A chunk may start within a block, and is worked on in whole jams.
constexpr int64_t kBlocks = (kChunk / 4 / (kJam * kLanes) + 2) * (kJam * kLanes);

// Words w0, w2 of each block in `radius` and w1, w3 in `angle`, as box_muller pairs them.
struct Draw {
  alignas(64) uint32_t radius[2 * kBlocks];
  alignas(64) uint32_t angle[2 * kBlocks];
};

#define STANLEY_JAM _Pragma("GCC unroll 8") for (int j = 0; j < kJam; ++j)

// Philox for blocks whose high counter word is the same. Counter words 1, 2 and 3 are then uniform,
// so half of the first two rounds is done once.
void fill_words(const Noise& noise, uint64_t block, int64_t blocks, uint32_t* radius,
                uint32_t* angle) {
  const uint32_t high = static_cast<uint32_t>(block >> 32);
  const uint64_t p1 = product(kPhiloxM1, noise.stream);
  const uint32_t c0 = static_cast<uint32_t>(p1 >> 32) ^ high ^ noise.k0;
  const uint32_t c1 = static_cast<uint32_t>(p1);
  const uint64_t p0 = product(kPhiloxM0, c0);
  Counters k0[kPhiloxRounds], k1[kPhiloxRounds];
  for (int round = 0; round < kPhiloxRounds; ++round) {
    k0[round] = Counters{} + (noise.k0 + round * kPhiloxW0);
    k1[round] = Counters{} + (noise.k1 + round * kPhiloxW1);
  }
  const Counters s0 = k0[1] ^ c1, s2 = k1[1] ^ (p0 >> 32);
  const Counters s3 = Counters{} + static_cast<uint32_t>(p0);
  Counters counter;
  for (int i = 0; i < kLanes; ++i) counter[i] = static_cast<uint32_t>(block) + i;

  for (int64_t b = 0; b < blocks; b += kJam * kLanes) {
    Counters q0[kJam], q1[kJam], w0[kJam], w1[kJam], w2[kJam], w3[kJam];
    STANLEY_JAM q0[j] = product(counter + j * kLanes, kPhiloxM0);
    counter += kJam * kLanes;
    STANLEY_JAM q1[j] = product((q0[j] >> 32) ^ k1[0], kPhiloxM1);
    STANLEY_JAM {
      w0[j] = (q1[j] >> 32) ^ s0;
      w1[j] = q1[j];
      w2[j] = q0[j] ^ s2;
      w3[j] = s3;
    }
#pragma GCC unroll 8
    for (int round = 2; round < kPhiloxRounds; ++round) {
      STANLEY_JAM q0[j] = product(w0[j], kPhiloxM0);
      STANLEY_JAM q1[j] = product(w2[j], kPhiloxM1);
      STANLEY_JAM {
        w0[j] = (q1[j] >> 32) ^ w1[j] ^ k0[round];
        w1[j] = q1[j];
      }
      STANLEY_JAM {
        w2[j] = (q0[j] >> 32) ^ w3[j] ^ k1[round];
        w3[j] = q0[j];
      }
    }
    STANLEY_JAM {
      const Counters r = (w0[j] & 0xFFFFFFFFu) | (w2[j] << 32);
      const Counters a = (w1[j] & 0xFFFFFFFFu) | (w3[j] << 32);
      std::memcpy(radius + 2 * (b + j * kLanes), &r, sizeof r);
      std::memcpy(angle + 2 * (b + j * kLanes), &a, sizeof a);
    }
  }
}

#undef STANLEY_JAM

}  // namespace
}  // namespace STANLEY_LEVEL
}  // namespace stanley::cpu

namespace stanley {

template <>
struct Lane<cpu::STANLEY_LEVEL::Floats> {
  using F = cpu::STANLEY_LEVEL::Floats;
  using Int = cpu::STANLEY_LEVEL::Ints;
  using Word = cpu::STANLEY_LEVEL::Words;

  static STANLEY_HD F of(Int i) { return __builtin_convertvector(i, F); }
  static STANLEY_HD F of(Word w) {
#if defined(__AVX512F__)
    return __builtin_convertvector(w, F);
#else  // halves are exact, so there is one rounding here too
    return of(Int(w >> 16)) * 65536.0f + of(Int(w & 0xFFFFu));
#endif
  }
  static STANLEY_HD Int truncated(F x) { return __builtin_convertvector(x, Int); }
  static STANLEY_HD F root(F x) {
    for (int i = 0; i < cpu::STANLEY_LEVEL::kPairs; ++i) x[i] = std::sqrt(x[i]);
    return x;
  }
  static STANLEY_HD Word bits(F x) { return (Word)x; }
  static STANLEY_HD F from_bits(Word bits) { return (F)bits; }
};

namespace cpu {
namespace STANLEY_LEVEL {
namespace {

void normals_of(const Draw& draw, int64_t pairs, float* out) {
  for (int64_t i = 0; i < pairs; i += kPairs) {
    Words a, b;
    std::memcpy(&a, draw.radius + i, sizeof a);
    std::memcpy(&b, draw.angle + i, sizeof b);
    Floats n[2];
    box_muller(a, b, n);
    float values[2][kPairs];
    std::memcpy(values, n, sizeof n);
    for (int j = 0; j < kPairs; ++j) {
      out[2 * (i + j)] = values[0][j];
      out[2 * (i + j) + 1] = values[1][j];
    }
  }
}

void normals_of(const Draw& draw, int64_t pairs, double* out) {
  for (int64_t i = 0; i < pairs; ++i) box_muller(draw.radius[i], draw.angle[i], out + 2 * i);
}

// Draws the words of the blocks that hold the global elements [element, element + n), n <= kChunk;
// returns how many blocks.
inline int64_t draw_words(const Noise& noise, int64_t element, int64_t n, Draw& draw) {
  const int64_t lane = element & 3, blocks = (lane + n + 3) / 4;
  const uint64_t block = noise.block + static_cast<uint64_t>(element >> 2);
  const uint64_t low_left = (uint64_t{1} << 32) - static_cast<uint32_t>(block);
  const int64_t head = low_left < static_cast<uint64_t>(blocks) ? low_left : blocks;
  fill_words(noise, block, head, draw.radius, draw.angle);
  if (head < blocks)  // the low counter word wraps here
    fill_words(noise, block + head, blocks - head, draw.radius + 2 * head, draw.angle + 2 * head);
  return blocks;
}

// Normals of these elements; returns where they begin.
template <class T>
const T* normals(const Noise& noise, int64_t element, int64_t n, Draw& draw, T* buffer) {
  normals_of(draw, 2 * draw_words(noise, element, n, draw), buffer);
  return buffer + (element & 3);
}

}  // namespace
}  // namespace STANLEY_LEVEL
}  // namespace cpu
}  // namespace stanley
