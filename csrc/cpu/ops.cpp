// The operations on CPU tensors: the elements are shared among torch's threads.
#include <type_traits>

#include "../direct/direct.h"
#include "device.h"

namespace stanley::cpu {
namespace {

struct CpuSteps : Cpu {
  template <class S>
  static void step(const StepArgs<S>& a, int64_t n) {
    const auto run = kernels<S>().step;
    for_elements(n, [&](int64_t begin, int64_t end) { run(a, begin, end); });
  }

  template <class S>
  static void step_backward(const StepArgs<S>& a, int64_t n) {
    const auto run = kernels<S>().step_backward;
    for_elements(n, [&](int64_t begin, int64_t end) { run(a, begin, end); });
  }

  template <class S>
  static void normal(const Noise& noise, S* out, int64_t n) {
    const auto run = kernels<S>().normal;
    for_elements(n, [&](int64_t begin, int64_t end) { run(noise, out, begin, end); });
  }

  template <class S>
  static void stepsize(const S* grad, Compute<S> threshold, Compute<S> step_size, Compute<S>* out,
                       int64_t n) {
    const auto run = kernels<S>().stepsize;
    for_elements(
        n, [&](int64_t begin, int64_t end) { run(grad, threshold, step_size, out, begin, end); });
  }
};

// The short way: a step that one thread makes, or only whether it could. Throws as the operation.
template <class S>
bool direct_step(const DirectStep& s) {
  using T = Compute<S>;
  constexpr ScalarType type = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;
  if (s.n > kGrain || (s.stochastic && !std::is_same_v<S, BFloat16>)) return false;
  if (s.gamma_number) {
    checks::positive("gamma", *s.gamma_number, type);
  } else if (!s.gamma) {
    checks::positive("threshold", s.threshold, type);
    checks::positive("step_size", s.step_size, type);
  }
  checks::numbers(s.noise_scale, s.lo, s.hi, type);
  checks::part(s.n, s.first, s.total);
  if (!s.out) return true;
  const T number = static_cast<T>(s.gamma_number.value_or(0));
  const T* gamma = s.gamma_number ? &number : static_cast<const T*>(s.gamma);
  auto a = arguments<Cpu, S>(s, static_cast<const S*>(s.grad), gamma, s.gamma_number ? 1 : s.gammas,
                             s.key, s.n);
  a.z = static_cast<const S*>(s.z);
  a.out = static_cast<S*>(s.out);
  CpuSteps::step<S>(a, s.n);
  return true;
}

}  // namespace
}  // namespace stanley::cpu

extern "C" __attribute__((visibility("default"))) bool stanley_fast_direct_step(
    const stanley::DirectStep& s) {
  using namespace stanley;
  try {
    switch (s.format) {
      case Format::kFloat32: return cpu::direct_step<float>(s);
      case Format::kFloat64: return cpu::direct_step<double>(s);
      case Format::kFloat16: return cpu::direct_step<Half>(s);
      case Format::kBFloat16: return cpu::direct_step<BFloat16>(s);
    }
  } catch (...) {
  }
  return false;
}

STABLE_TORCH_LIBRARY_IMPL(stanley_fast, CPU, m) {
  stanley::register_operations<stanley::cpu::CpuSteps>(m);
}
