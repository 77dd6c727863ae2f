// float16 and bfloat16 as their bits, conversions that round to nearest even, and stochastic
// rounding to bfloat16. No torch headers here.
#pragma once

#include "philox.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace stanley {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The type that a state's arithmetic is done in.
template <class S>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class S>
using Compute = typename ComputeOf<S>::type;

STANLEY_HD uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

STANLEY_HD float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

STANLEY_HD float widen(float x) { return x; }
STANLEY_HD double widen(double x) { return x; }

STANLEY_HD float widen(BFloat16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }

STANLEY_HD float widen(Half x) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(x.bits));
#else
  const uint32_t sign = (x.bits & 0x8000u) << 16, magnitude = (x.bits & 0x7FFFu) << 13;
  const uint32_t finite = bits_of(float_of(magnitude) * 0x1p112f);  // exact, also when denormal
  return float_of(sign | (magnitude < 0x7C00u << 13 ? finite : magnitude | 0x7F800000u));
#endif
}

STANLEY_HD void narrow(float x, float* out) { *out = x; }
STANLEY_HD void narrow(double x, double* out) { *out = x; }

STANLEY_HD void narrow(float x, BFloat16* out) {
#ifdef __CUDA_ARCH__
  out->bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
#else
  const uint32_t bits = bits_of(x), rounded = bits + 0x7FFFu + (bits >> 16 & 1u);
  out->bits = static_cast<uint16_t>((x == x ? rounded : 0x7FC00000u) >> 16);
#endif
}

STANLEY_HD void narrow(float x, Half* out) {
#ifdef __CUDA_ARCH__
  out->bits = __half_as_ushort(__float2half_rn(x));
#else
  const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
  // Below 2^-14 the sum with 1/2 rounds at a denormal's last bit.
  const uint32_t denormal = bits_of(float_of(magnitude) + 0.5f) - 0x3F000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0xFFFu + (magnitude >> 13 & 1u)) >> 13;
  const uint32_t finite = magnitude < 0x38800000u ? denormal : normal;
  const uint32_t beyond = magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u;
  out->bits = static_cast<uint16_t>(sign | (magnitude < 0x47800000u ? finite : beyond));
#endif
}

// x rounded to one of the two bfloat16 around it, on average x: its magnitude goes up with the
// probability of the bits that go, for a word whose lower half is uniform. What bfloat16 has stays,
// zeros, infinities and NaN too; beyond its largest number the upper neighbour is infinity.
STANLEY_HD float rounded_stochastically(float x, uint32_t word) {
  const uint32_t sum = bits_of(x) + (word & 0xFFFFu);
  return x == x ? float_of(sum & 0xFFFF0000u) : x;
}

}  // namespace stanley
