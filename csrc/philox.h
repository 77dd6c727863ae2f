// Philox4x32-10 and Box-Muller: the noise of every backend, written once for CPU and CUDA.
// No torch headers here.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define STANLEY_HD __host__ __device__ __forceinline__
#else
// Always inlined: files compiled for other vector levels use these too, and the linker would keep
// one copy for all.
#define STANLEY_HD inline __attribute__((always_inline))
#endif

namespace stanley {

// On a GPU the hardware's approximation, good to 2 ulp: an exact root takes ten times the
// instructions.
STANLEY_HD float square_root(float x) {
#ifdef __CUDA_ARCH__
  asm("sqrt.approx.f32 %0, %0;" : "+f"(x));
  return x;
#else
  return std::sqrt(x);
#endif
}

STANLEY_HD double square_root(double x) { return std::sqrt(x); }

// Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", table 2.
constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

// Counter word c2 of the draws that round a state; its noise has stream 0.
constexpr uint32_t kRoundingStream = 3;

struct Words4 {
  uint32_t w[4];
};

// The words of one counter under one key.
STANLEY_HD Words4 philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0,
                         uint32_t k1) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(kPhiloxM0) * c0;
    const uint64_t p1 = static_cast<uint64_t>(kPhiloxM1) * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  return {{c0, c1, c2, c3}};
}

// What the functions below need of F: float, or a vector of floats on the CPU (cpu/noise.h).
template <class F>
struct Lane {
  using Int = int32_t;
  using Word = uint32_t;
  static STANLEY_HD F of(Word w) { return static_cast<F>(w); }
  static STANLEY_HD F of(Int i) { return static_cast<F>(i); }
  static STANLEY_HD Int truncated(F x) { return static_cast<Int>(x); }
  static STANLEY_HD F root(F x) { return square_root(x); }

  static STANLEY_HD Word bits(F x) {
    Word bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
  }
  static STANLEY_HD F from_bits(Word bits) {
    F x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  }
};

// u(w) = w 2^-32 + 2^-33 in (0, 1], the same bits on every backend: the conversion rounds to
// nearest, and the product is exact.
template <class F>
STANLEY_HD F uniform(typename Lane<F>::Word w) {
  return Lane<F>::of(w) * 0x1p-32f + 0x1p-33f;
}

// -2 ln x for x in [2^-33, 1], good to 2 ulp also near 1; Cephes' logf without its special cases,
// its coefficients times -2.
template <class F>
STANLEY_HD F radius_squared(F x) {
  using Int = typename Lane<F>::Int;
  const auto bits = Lane<F>::bits(x);
  const Int exponent = (Int)(bits - 0x3F3504F3u) >> 23;  // the mantissa lies in [sqrt 1/2, sqrt 2)
  const F f = Lane<F>::from_bits(bits - ((decltype(bits))exponent << 23)) - 1.0f;
  const F e = Lane<F>::of(exponent);
  F p = f * (-2 * 7.0376836292e-2f) + 2 * 1.1514610310e-1f;
  p = p * f - 2 * 1.1676998740e-1f;
  p = p * f + 2 * 1.2420140846e-1f;
  p = p * f - 2 * 1.4249322787e-1f;
  p = p * f + 2 * 1.6668057665e-1f;
  p = p * f - 2 * 2.0000714765e-1f;
  p = p * f + 2 * 2.4999993993e-1f;
  p = p * f - 2 * 3.3333331174e-1f;
  const F square = f * f;
  const F tail = p * f * square + e * (2 * 2.12194440e-4f) + square;
  return (tail - 2.0f * f) - e * (2 * 0.693359375f);  // ln 2 in two parts; this one is exact
}

STANLEY_HD double radius_squared(double x) { return -2.0 * std::log(x); }

template <class T>
struct SinCos {
  T sin, cos;
};

// sin and cos of 2 pi u for u in [0, 1]. u - quadrant/4 is exact, so nothing is lost in the
// reduction; then Cephes' sinf and cosf on [-pi/4, pi/4].
template <class F>
STANLEY_HD SinCos<F> sincos_turn(F u) {
  using Word = typename Lane<F>::Word;
  const auto rounded = Lane<F>::truncated(u * 4.0f + 0.5f);
  const F x = (u - Lane<F>::of(rounded) * 0.25f) * 6.2831853072f, square = x * x;
  F sin = square * -1.9515295891e-4f + 8.3321608736e-3f;
  sin = sin * square - 1.6666654611e-1f;
  sin = sin * square * x + x;
  F cos = square * 2.443315711809948e-5f - 1.388731625493765e-3f;
  cos = cos * square + 4.166664568298827e-2f;
  cos = cos * square * square - 0.5f * square + 1.0f;
  // An odd quadrant swaps the two; its second bit is the sign of the sine.
  const Word quadrant = (Word)rounded, swap = 0u - (quadrant & 1u);
  const Word s = Lane<F>::bits(sin), c = Lane<F>::bits(cos);
  const Word sine = (c & swap) | (s & ~swap), cosine = (s & swap) | (c & ~swap);
  return {Lane<F>::from_bits(sine ^ (quadrant & 2u) << 30),
          Lane<F>::from_bits(cosine ^ ((quadrant + 1u) & 2u) << 30)};
}

STANLEY_HD SinCos<double> sincos_turn(double u) {
  const double turn = u > 0.5 ? u - 1.0 : u;
#ifdef __CUDA_ARCH__
  SinCos<double> result;  // without sin's slow path for large angles, which needs local memory
  sincospi(2.0 * turn, &result.sin, &result.cos);
  return result;
#else
  return {std::sin(turn * 6.283185307179586), std::cos(turn * 6.283185307179586)};
#endif
}

// Two normals from two words: n[0] = r cos 2 pi u(b), n[1] = r sin 2 pi u(b), r = sqrt(-2 ln u(a)).
template <class F, class Word>
STANLEY_HD void box_muller(Word a, Word b, F* n) {
  const F radius = Lane<F>::root(radius_squared(uniform<F>(a)));
  const SinCos<F> turn = sincos_turn(uniform<F>(b));
  n[0] = radius * turn.cos;
  n[1] = radius * turn.sin;
}

}  // namespace stanley
