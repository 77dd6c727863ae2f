// The CPU kernels. Compiled once per vector level, STANLEY_LEVEL naming it; the loops are plain C++
// that the compiler vectorises, only Philox's 32 x 32 -> 64 bit product needs an intrinsic.
//
// Include nothing with inline functions that other files use too: the linker keeps one copy of
// each, and it might be one with instructions that the machine lacks.
#include "kernels.h"

#include "../step.h"

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

template <class T>
struct Scratch {
  Words words;
  alignas(64) T noise[4 * kBlocks] = {};

  const T* fill(const StepArgs<T>& a, int64_t begin, int64_t n) {
    if (a.noise_scale == T(0)) return noise;  // all zeros: never filled
    return normals(a.noise, a.noise.first + begin, n, words, noise);
  }
};

template <Gamma kind, class T>
inline T gamma_at(const StepArgs<T>& a, T grad, int64_t i) {
  if (kind == Gamma::kAdaptive) return stepsize(grad, a.threshold, a.step_size);
  return kind == Gamma::kScalar ? a.gamma_value : a.gamma[i];
}

template <Gamma kind, Update update, class T>
void step_loop(const StepArgs<T>& args, int64_t begin, int64_t end) {
  Scratch<T> scratch;
  const StepArgs<T> a = args;  // a copy that `out` cannot alias
  for (int64_t at = begin; at < end; at += kChunk) {
    const int64_t n = end - at < kChunk ? end - at : kChunk;
    const T* xi = scratch.fill(a, at, n);
    const T *z = a.z + at, *grad = a.grad + at;
    T* out = a.out + at;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
      const T gamma = gamma_at<kind>(a, grad[i], at + i);
      out[i] = bound(move<update>(z[i], grad[i], gamma, a.noise_scale * xi[i]), a.lo, a.hi);
    }
  }
}

template <Gamma kind, Update update, class T>
void backward_loop(const StepArgs<T>& args, int64_t begin, int64_t end) {
  Scratch<T> scratch;
  const StepArgs<T> a = args;
  for (int64_t at = begin; at < end; at += kChunk) {
    const int64_t n = end - at < kChunk ? end - at : kChunk;
    const T* xi = scratch.fill(a, at, n);
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
      const int64_t e = at + i;
      const T grad = a.grad[e], noise = a.noise_scale * xi[i];
      const T gamma = gamma_at<kind>(a, grad, e);
      const T incoming = a.grad_out[e];
      bool cut = false;
      if (a.z) {
        const T moved = move<update>(a.z[e], grad, gamma, noise);
        cut = moved < a.lo || moved > a.hi;
        a.grad_z[e] = cut ? T(0) : incoming;
      }
      if (kind == Gamma::kAdaptive) {
        const T by_grad = stanley_by_grad<update>(grad, gamma, a.threshold, noise);
        a.grad_grad[e] = cut ? T(0) : incoming * by_grad;
      } else {
        a.grad_grad[e] = cut ? T(0) : incoming * move_by_grad<update>(gamma);
        a.grad_gamma[e] = cut ? T(0) : incoming * move_by_gamma<update>(grad, gamma, noise);
      }
    }
  }
}

template <class T, Gamma kind>
void step_of(const StepArgs<T>& a, int64_t begin, int64_t end) {
  a.script ? step_loop<kind, Update::kScript>(a, begin, end)
           : step_loop<kind, Update::kPaper>(a, begin, end);
}

template <class T, Gamma kind>
void backward_of(const StepArgs<T>& a, int64_t begin, int64_t end) {
  a.script ? backward_loop<kind, Update::kScript>(a, begin, end)
           : backward_loop<kind, Update::kPaper>(a, begin, end);
}

template <class T>
void step(const StepArgs<T>& a, int64_t begin, int64_t end) {
  switch (a.kind) {
    case Gamma::kAdaptive: return step_of<T, Gamma::kAdaptive>(a, begin, end);
    case Gamma::kScalar: return step_of<T, Gamma::kScalar>(a, begin, end);
    case Gamma::kTensor: return step_of<T, Gamma::kTensor>(a, begin, end);
  }
}

template <class T>
void step_backward(const StepArgs<T>& a, int64_t begin, int64_t end) {
  switch (a.kind) {
    case Gamma::kAdaptive: return backward_of<T, Gamma::kAdaptive>(a, begin, end);
    case Gamma::kScalar: return backward_of<T, Gamma::kScalar>(a, begin, end);
    case Gamma::kTensor: return backward_of<T, Gamma::kTensor>(a, begin, end);
  }
}

template <class T>
void normal(const Noise& noise, T* out, int64_t begin, int64_t end) {
  Scratch<T> scratch;
  for (int64_t at = begin; at < end; at += kChunk) {
    const int64_t n = end - at < kChunk ? end - at : kChunk;
    const T* xi = normals(noise, noise.first + at, n, scratch.words, scratch.noise);
    std::memcpy(out + at, xi, n * sizeof(T));
  }
}

template <class T>
void stepsizes(const T* grad, T threshold, T step_size, T* out, int64_t begin, int64_t end) {
#pragma GCC ivdep
  for (int64_t i = begin; i < end; ++i) out[i] = stepsize(grad[i], threshold, step_size);
}

template <class T>
constexpr Kernels<T> kTable = {step<T>, step_backward<T>, normal<T>, stepsizes<T>};

#define STANLEY_STRING(x) #x
#define STANLEY_NAME(x) STANLEY_STRING(x)

}  // namespace

extern const Level kLevel;
const Level kLevel = {STANLEY_NAME(STANLEY_LEVEL), kTable<float>, kTable<double>};

}  // namespace STANLEY_LEVEL
}  // namespace stanley::cpu
