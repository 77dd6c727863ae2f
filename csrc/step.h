// The element arithmetic of the steps and of their derivatives, written once for CPU and CUDA.
// No torch headers here.
#pragma once

#include "philox.h"

namespace stanley {

enum class Update { kPaper, kScript };
enum class Gamma { kAdaptive, kScalar, kTensor };  // by Eq. 4, one for all, one per element

// As square_root: on a GPU good to 2 ulp.
STANLEY_HD float quotient(float x, float y) {
#ifdef __CUDA_ARCH__
  asm("div.full.f32 %0, %0, %1;" : "+f"(x) : "f"(y));
  return x;
#else
  return x / y;
#endif
}

// Of x > 0, good to 2 ulp. CPUs multiply several times as fast as they divide and take roots: a
// guess from x's exponent, 3.5 % off, then steps of third and second order.
STANLEY_HD float reciprocal_root(float x) {
#ifdef __CUDA_ARCH__
  asm("rsqrt.approx.f32 %0, %0;" : "+f"(x));
  return x;
#else
  const bool tiny = x < 0x1p-100f;  // so that no denormal number takes part
  const float a = x * (tiny ? 0x1p64f : 1.0f);
  uint32_t bits;
  std::memcpy(&bits, &a, sizeof bits);
  bits = 0x5F3759DFu - (bits >> 1);
  float y;
  std::memcpy(&y, &bits, sizeof y);
  const float t = a * y * y;
  y *= 1.875f + t * (0.375f * t - 1.25f);
  y += 0.5f * y * (1.0f - a * y * y);
  y *= tiny ? 0x1p32f : 1.0f;
  return x > 0x1.fffffep127f ? 0.0f : y;
#endif
}

STANLEY_HD double quotient(double x, double y) { return x / y; }
STANLEY_HD double reciprocal_root(double x) { return 1.0 / std::sqrt(x); }

// max and min that keep a NaN of x.
template <class T>
STANLEY_HD T at_least(T x, T lo) {
  return x < lo ? lo : x;
}

template <class T>
STANLEY_HD T at_most(T x, T hi) {
  return x > hi ? hi : x;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
template <>
STANLEY_HD float at_least(float x, float lo) {
  asm("max.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(lo));
  return x;
}

template <>
STANLEY_HD float at_most(float x, float hi) {
  asm("min.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(hi));
  return x;
}
#endif

template <class T>
STANLEY_HD T bound(T x, T lo, T hi) {
  return at_most(at_least(x, lo), hi);
}

// Eq. 4. A NaN gradient gives a NaN stepsize.
template <class T>
STANLEY_HD T stepsize(T grad, T threshold, T step_size) {
  return step_size * (threshold / at_least(std::fabs(grad), threshold));
}

// A stepsize as Eq. 5 uses it.
template <class T>
struct Rate {
  T gamma, root;  // root is sqrt(gamma)
};

// sqrt(step_size * threshold), also where the product leaves a double's range. On the host.
inline double root_scale_of(double step_size, double threshold) {
  const double product = step_size * threshold;
  return std::isnormal(product) ? std::sqrt(product) : std::sqrt(step_size) * std::sqrt(threshold);
}

// Eq. 4 by one reciprocal root; root_scale is root_scale_of(step_size, threshold).
template <class T>
STANLEY_HD Rate<T> adaptive_rate(T grad, T threshold, T root_scale) {
  T root = root_scale * reciprocal_root(at_least(std::fabs(grad), threshold));
  return {root * root, root};
}

template <class T>
STANLEY_HD Rate<T> given_rate(T gamma) {
  return {gamma, square_root(gamma)};
}

// Eq. 5, or the author's script's form of it; noise is noise_scale * xi.
template <Gamma kind, Update update, class T>
STANLEY_HD T move(T z, T grad, Rate<T> rate, T noise) {
  if (update == Update::kScript) return z + rate.gamma * (grad + noise);
  if (kind == Gamma::kAdaptive) return z + rate.root * (rate.root * T(0.5) * grad + noise);
  return z + (rate.gamma * T(0.5) * grad + rate.root * noise);
}

// d move / d grad with gamma fixed.
template <Update update, class T>
STANLEY_HD T move_by_grad(Rate<T> rate) {
  return update == Update::kPaper ? rate.gamma * T(0.5) : rate.gamma;
}

// d move / d gamma.
template <Update update, class T>
STANLEY_HD T move_by_gamma(T grad, Rate<T> rate, T noise) {
  if (update == Update::kPaper) return grad * T(0.5) + quotient(noise, T(2) * rate.root);
  return grad + noise;
}

// d move / d grad through Eq. 4 as well. Above the threshold gamma * |grad| is constant, so the
// drift has no derivative and d gamma / d grad = -gamma / grad acts on the noise alone.
template <Update update, class T>
STANLEY_HD T stanley_by_grad(T grad, Rate<T> rate, T threshold, T noise) {
  T by_noise =
      update == Update::kPaper ? rate.root * noise / (T(-2) * grad) : rate.gamma * noise / -grad;
  return std::fabs(grad) <= threshold ? move_by_grad<update>(rate) : by_noise;
}

}  // namespace stanley
