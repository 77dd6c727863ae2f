// What the CPU kernels take. kernels.cpp is compiled once per vector level and fills a table each.
#pragma once

#include <cstdint>

#include "../args.h"

namespace stanley::cpu {

// Where a state's noise lies in its key's sequence.
struct Noise {
  uint32_t k0, k1;  // the seed's halves
  uint64_t block;   // of element 0 of the global state at this step
  uint32_t stream;
  int64_t first;  // global index of the local element 0
};

template <class S>
using StepArgs = stanley::StepArgs<S, Noise>;

// Every function works on the local elements [begin, end).
template <class S>
struct Kernels {
  void (*step)(const StepArgs<S>&, int64_t begin, int64_t end);
  void (*step_backward)(const StepArgs<S>&, int64_t begin, int64_t end);
  void (*normal)(const Noise&, S* out, int64_t begin, int64_t end);
  void (*stepsize)(const S* grad, Compute<S> threshold, Compute<S> step_size, Compute<S>* out,
                   int64_t begin, int64_t end);
};

struct Chains;      // chain.h
struct Convs;       // conv.h
struct Densities;   // density.h
struct Metropolis;  // metropolis_kernels.h

struct Level {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;
  Kernels<Half> f16;
  Kernels<BFloat16> bf16;
  const Chains* chains;
  const Convs* convs;
  const Densities* densities;
  const Metropolis* metropolis;
};

// The vector level for this machine, or the one STANLEY_FAST_VECTOR names. Throws if that can't
// run.
const Level& level();

template <class S>
const Kernels<S>& kernels();

}  // namespace stanley::cpu
