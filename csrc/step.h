// The element arithmetic of the steps and of their derivatives, written once for CPU and CUDA.
// No torch headers here.
#pragma once

#include "philox.h"

namespace stanley {

enum class Update { kPaper, kScript };

// Eq. 4. Written so that a NaN gradient gives a NaN stepsize.
template <class T>
STANLEY_HD T stepsize(T grad, T threshold, T step_size) {
  T size = std::fabs(grad);
  return step_size * (threshold / (size <= threshold ? threshold : size));
}

// Eq. 5, or the author's script's form of it; noise is noise_scale * xi.
template <Update update, class T>
STANLEY_HD T move(T z, T grad, T gamma, T noise) {
  if (update == Update::kPaper) return z + (gamma * T(0.5) * grad + std::sqrt(gamma) * noise);
  return z + (gamma * grad + gamma * noise);
}

template <class T>
STANLEY_HD T bound(T value, T lo, T hi) {  // NaN stays NaN
  return value < lo ? lo : (value > hi ? hi : value);
}

// d move / d grad with gamma fixed.
template <Update update, class T>
STANLEY_HD T move_by_grad(T gamma) {
  return update == Update::kPaper ? gamma * T(0.5) : gamma;
}

// d move / d gamma.
template <Update update, class T>
STANLEY_HD T move_by_gamma(T grad, T gamma, T noise) {
  if (update == Update::kPaper) return grad * T(0.5) + noise / (T(2) * std::sqrt(gamma));
  return grad + noise;
}

// d move / d grad through Eq. 4 as well. Above the threshold gamma * |grad| is constant, so the
// drift has no derivative and d gamma / d grad = -gamma / grad acts on the noise alone.
template <Update update, class T>
STANLEY_HD T stanley_by_grad(T grad, T gamma, T threshold, T noise) {
  T by_noise =
      update == Update::kPaper ? std::sqrt(gamma) * noise / (T(-2) * grad) : gamma * noise / -grad;
  return std::fabs(grad) <= threshold ? move_by_grad<update>(gamma) : by_noise;
}

}  // namespace stanley
