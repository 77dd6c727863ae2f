// What the CPU kernels take. kernels.cpp is compiled once per vector level and fills a table each.
#pragma once

#include <cstdint>

namespace stanley::cpu {

// Where a state's noise lies in its key's sequence.
struct Noise {
  uint32_t k0, k1;  // the seed's halves
  uint64_t block;   // of element 0 of the global state at this step
  uint32_t stream;
  int64_t first;  // global index of the local element 0
};

enum class Gamma { kAdaptive, kScalar, kTensor };

// All pointers are to contiguous elements.
template <class T>
struct StepArgs {
  const T* z;  // backward: null where no clamp could have cut
  const T* grad;
  const T* gamma;  // if a tensor
  T gamma_value;   // if scalar
  T threshold, step_size, noise_scale, lo, hi;
  Gamma kind;
  bool script;
  Noise noise;
  // forward
  T* out;
  // backward
  const T* grad_out;
  T *grad_z, *grad_grad, *grad_gamma;  // grad_z null as z is; grad_gamma null if adaptive
};

// Every function works on the local elements [begin, end).
template <class T>
struct Kernels {
  void (*step)(const StepArgs<T>&, int64_t begin, int64_t end);
  void (*step_backward)(const StepArgs<T>&, int64_t begin, int64_t end);
  void (*normal)(const Noise&, T* out, int64_t begin, int64_t end);
  void (*stepsize)(const T* grad, T threshold, T step_size, T* out, int64_t begin, int64_t end);
};

struct Chains;  // chain.h

struct Level {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;
  const Chains* chains;
};

// The vector level for this machine, or the one STANLEY_FAST_VECTOR names. Throws if that can't
// run.
const Level& level();

template <class T>
const Kernels<T>& kernels();

}  // namespace stanley::cpu
