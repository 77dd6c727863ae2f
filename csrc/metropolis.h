// The arithmetic of Metropolis-Hastings and of the leapfrog, written once for CPU and CUDA, and
// what their kernels take. No torch headers here.
#pragma once

#include <cfloat>

#include "step.h"

namespace stanley {

// V is double or, on the CPU, a vector of doubles.
template <class V>
struct Wide;

template <>
struct Wide<double> {
  using Bits = int64_t;
};

// The chains' proposals. `width` is a chain's number of elements; all arrays are contiguous.
template <class S>
struct ProposalArgs {
  const S *z, *grad, *z_new, *grad_new;
  const S *gamma, *gamma_new;  // one per element; null unless kind is kTensor
  const double* step_size;     // one, on the device; null if kind is kTensor
  double threshold;            // if adaptive
  double noise_scale;
  Gamma kind;  // kScalar is one stepsize for all
  int64_t width;
};

// A stepsize and 1 / stepsize. The latter's mantissas and exponents make up log q's sum of logs.
template <class V>
struct Inverse {
  V gamma, inverse;
};

template <class V>
STANLEY_HD V magnitude(V x) {
  typename Wide<V>::Bits bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits &= INT64_MAX;
  std::memcpy(&x, &bits, sizeof bits);
  return x;
}

// What Eq. 4 needs of threshold and step size, or the one stepsize of all: NaN if that is negative,
// as its logarithms are, which are left out since they cancel.
struct Scale {
  double threshold, scale, inverse;
};

template <class Args>
STANLEY_HD Scale scale_of(const Args& a) {
  const double scale = a.kind == Gamma::kTensor   ? 1.0
                       : a.kind == Gamma::kScalar ? *a.step_size
                                                  : *a.step_size * a.threshold;
  return {a.threshold, scale >= 0.0 ? scale : NAN, 1.0 / scale};
}

template <Gamma kind, class V>
STANLEY_HD Inverse<V> inverse_at(const Scale& s, V grad, V gamma) {
  if (kind == Gamma::kTensor) return {gamma, 1.0 / gamma};
  if (kind == Gamma::kScalar) return {V{} + s.scale, V{} + s.inverse};
  const V size = magnitude(grad), least = V{} + s.threshold;
  const V at_least = size < least ? least : size;  // keeps a NaN
  return {s.scale / at_least, at_least * s.inverse};
}

// log q(z | z') - log q(z' | z) as it grows by elements, q(z' | z) = N(z + gamma/2 g, gamma eps^2).
// The logarithms of the stepsizes are two products of mantissas in [1, 2) and a sum of exponents:
// one logarithm for up to kMostFactors elements, and as exact as a sum of logarithms.
template <class V>
struct ProposalSum {
  static constexpr int kMostFactors = 1000;  // 2^1000 is in range
  using Bits = typename Wide<V>::Bits;

  V squares = V{};  // eps^2 (there - back), the quadratic forms
  V there = V{} + 1.0, back = V{} + 1.0;
  Bits exponents = Bits{};

  template <Gamma kind>
  STANLEY_HD void add(const Scale& s, V z, V grad, V gamma, V z_new, V grad_new, V gamma_new) {
    const Inverse<V> a = inverse_at<kind>(s, grad, gamma);
    const Inverse<V> b = inverse_at<kind>(s, grad_new, gamma_new);
    const V moved = z_new - z;
    const V there_by = moved - 0.5 * a.gamma * grad, back_by = moved + 0.5 * b.gamma * grad_new;
    const V difference = there_by * there_by * a.inverse - back_by * back_by * b.inverse;
    if (kind == Gamma::kScalar) {  // the logarithms cancel
      squares += difference;
      return;
    }
    // A stepsize that is not positive and normal has no logarithm: the sum becomes NaN.
    const V low = a.inverse < b.inverse ? a.inverse : b.inverse;
    const V high = a.inverse < b.inverse ? b.inverse : a.inverse;
    const V nan = V{} + NAN;
    squares += low >= DBL_MIN ? (high <= DBL_MAX ? difference : nan) : nan;
    there *= mantissa(a.inverse, -1);
    back *= mantissa(b.inverse, 1);
  }

  // x's mantissa in [1, 2); its exponent goes into the sum.
  STANLEY_HD V mantissa(V x, int sign) {
    Bits bits;
    std::memcpy(&bits, &x, sizeof bits);
    exponents += sign * (bits >> 52);
    bits = (bits & 0xFFFFFFFFFFFFF) | 0x3FF0000000000000;
    std::memcpy(&x, &bits, sizeof bits);
    return x;
  }

  // Makes room for as many factors again. The bias of 1 023 cancels between the two.
  STANLEY_HD void renormalise() {
    there = mantissa(there, -1);
    back = mantissa(back, 1);
  }
};

STANLEY_HD double log_ratio_of(const ProposalSum<double>& sum, double noise_scale) {
  const double logs =
      std::log(sum.back / sum.there) + static_cast<double>(sum.exponents) * 0.69314718055994530942;
  return 0.5 * (sum.squares / (noise_scale * noise_scale) + logs);
}

// Rows to be copied where a proposal is accepted; null where there are none.
struct Rows {
  char* to;
  const char* from;
};

template <class L, class Noise>
struct AcceptArgs {
  Rows rows[2];       // states, gradients
  int64_t row_bytes;  // a multiple of 4
  L* log_density;
  const L* log_density_new;
  const double* log_ratio;
  Noise noise;  // first is the global index of chain 0
  bool* accepted;
  double* probability;
};

struct Decision {
  bool accepted;
  double probability;
};

// Accepted where log u <= log alpha, u = (word + 1/2) 2^-32. What is NaN or would go where the
// log-density is not finite is rejected.
template <class L>
STANLEY_HD Decision decide(L log_density, L log_density_new, double log_ratio, uint32_t word) {
  const double to = log_density_new;
  const double log_alpha = to - static_cast<double>(log_density) + log_ratio;
  if (!(std::fabs(to) <= DBL_MAX) || log_alpha != log_alpha) return {false, 0.0};
  if (log_alpha >= 0.0) return {true, 1.0};  // u < 1
  const double u = (static_cast<double>(word) + 0.5) * 0x1p-32;
  return {std::log(u) <= log_alpha, std::exp(log_alpha)};
}

template <class S>
struct LeapfrogArgs {
  S *z, *momentum;
  const S* grad;
  const double* step_size;  // one, on the device
  double kick;
  const S* inverse_mass;  // of a chain's elements; null is 1
  int64_t width;
};

// momentum += kick grad, then z += rate momentum.
template <class S>
STANLEY_HD void leapfrog(S& z, S& momentum, S grad, S kick, S rate) {
  momentum += kick * grad;
  z += rate * momentum;
}

}  // namespace stanley
