// What the kernels take, on the CPU and on the GPU. No torch headers here.
#pragma once

#include <cstdint>

#include "half.h"
#include "step.h"

namespace stanley {

// S is the state's type. `Noise` says where the state's noise lies in its key's sequence. All
// pointers are to contiguous elements on the kernel's device.
template <class S, class Noise>
struct StepArgs {
  using T = Compute<S>;
  const S* z;  // backward: null where no clamp could have cut
  const S* grad;
  const T* gamma;           // one, or one per element; null if adaptive
  T threshold, root_scale;  // if adaptive; sqrt(step_size * threshold)
  T noise_scale, lo, hi;
  Gamma kind;
  bool script;
  bool stochastic;  // how `out` is rounded; bfloat16 alone
  Noise noise;
  // forward
  S* out;
  // backward
  const S* grad_out;
  S *grad_z, *grad_grad;  // grad_z null as z is
  T* grad_gamma;          // null if adaptive
};

}  // namespace stanley
