// The operations on CUDA tensors. Compiled by the C++ compiler and linked without torch's CUDA
// libraries, so that the library loads where there are none.
#include "device.h"

namespace stanley::cuda {
namespace {

struct CudaSteps : Cuda {
  template <class S>
  static void step(const StepArgs<S>& a, int64_t n) {
    check(cuda::step(a, n, here()), "step");
  }

  template <class S>
  static void step_backward(const StepArgs<S>& a, int64_t n) {
    check(cuda::step_backward(a, n, here()), "backward");
  }

  template <class S>
  static void normal(const Noise& noise, S* out, int64_t n) {
    check(cuda::normal(noise, out, n, here()), "normal");
  }

  template <class S>
  static void stepsize(const S* grad, Compute<S> threshold, Compute<S> step_size, Compute<S>* out,
                       int64_t n) {
    check(cuda::stepsize(grad, threshold, step_size, out, n, here()), "stepsize");
  }
};

}  // namespace
}  // namespace stanley::cuda

STABLE_TORCH_LIBRARY_IMPL(stanley_fast, CUDA, m) {
  stanley::register_operations<stanley::cuda::CudaSteps>(m);
}
