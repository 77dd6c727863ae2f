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
#define STANLEY_HD static inline __attribute__((always_inline))
#endif

namespace stanley {

// Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", table 2.
constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

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

// u(w) = w 2^-32 + 2^-33 in (0, 1], the same bits on every backend: the conversion rounds to
// nearest.
STANLEY_HD float uniform(uint32_t w, float) { return static_cast<float>(w) * 0x1p-32f + 0x1p-33f; }

STANLEY_HD double uniform(uint32_t w, double) { return w * 0x1p-32 + 0x1p-33; }

// ln x for x in [2^-33, 1], good to 2 ulp also near 1; Cephes' logf without its special cases.
STANLEY_HD float log_unit(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  int32_t exponent = (bits - 0x3F3504F3) >> 23;  // the mantissa lies in [sqrt 1/2, sqrt 2)
  bits -= exponent * (1 << 23);
  float mantissa;
  std::memcpy(&mantissa, &bits, sizeof mantissa);
  float f = mantissa - 1.0f, e = static_cast<float>(exponent);
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  float square = f * f;
  float tail = p * f * square + e * -2.12194440e-4f - 0.5f * square;
  return (f + tail) + e * 0.693359375f;  // ln 2 in two parts; the first is exact times e
}

STANLEY_HD double log_unit(double x) { return std::log(x); }

// Flips x's sign where bit 1 of `bits` is set.
STANLEY_HD float flip(float x, int32_t bits) {
  int32_t raw;
  std::memcpy(&raw, &x, sizeof raw);
  raw ^= static_cast<int32_t>((static_cast<uint32_t>(bits) & 2u) << 30);
  std::memcpy(&x, &raw, sizeof x);
  return x;
}

template <class T>
struct SinCos {
  T sin, cos;
};

// sin and cos of 2 pi u for u in [0, 1]. u - quadrant/4 is exact, so nothing is lost in the
// reduction; then Cephes' sinf and cosf on [-pi/4, pi/4].
STANLEY_HD SinCos<float> sincos_turn(float u) {
  int32_t quadrant = static_cast<int32_t>(u * 4.0f + 0.5f);
  float x = (u - static_cast<float>(quadrant) * 0.25f) * 6.283185307179586f;
  float square = x * x;
  float sin = -1.9515295891e-4f;
  sin = sin * square + 8.3321608736e-3f;
  sin = sin * square - 1.6666654611e-1f;
  sin = sin * square * x + x;
  float cos = 2.443315711809948e-5f;
  cos = cos * square - 1.388731625493765e-3f;
  cos = cos * square + 4.166664568298827e-2f;
  cos = cos * square * square - 0.5f * square + 1.0f;
  bool swap = quadrant & 1;
  float s = swap ? cos : sin, c = swap ? sin : cos;
  return {flip(s, quadrant), flip(c, quadrant + 1)};
}

STANLEY_HD SinCos<double> sincos_turn(double u) {
  double turn = u > 0.5 ? u - 1.0 : u;
#ifdef __CUDA_ARCH__
  SinCos<double> result;  // without sin's slow path for large angles, which needs local memory
  sincospi(2.0 * turn, &result.sin, &result.cos);
  return result;
#else
  return {std::sin(turn * 6.283185307179586), std::cos(turn * 6.283185307179586)};
#endif
}

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

// Two normals from two words: n[0] = r cos 2 pi u(b), n[1] = r sin 2 pi u(b), r = sqrt(-2 ln u(a)).
template <class T>
STANLEY_HD void box_muller(uint32_t a, uint32_t b, T* n) {
  T radius = square_root(T(-2) * log_unit(uniform(a, T())));
  SinCos<T> turn = sincos_turn(uniform(b, T()));
  n[0] = radius * turn.cos;
  n[1] = radius * turn.sin;
}

}  // namespace stanley
