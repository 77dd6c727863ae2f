// The operations on CPU tensors: the elements are shared among torch's threads.
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

}  // namespace
}  // namespace stanley::cpu

STABLE_TORCH_LIBRARY_IMPL(stanley_fast, CPU, m) {
  stanley::register_operations<stanley::cpu::CpuSteps>(m);
}
