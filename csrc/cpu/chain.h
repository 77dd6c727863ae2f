// What whole chains on the CPU take. chain.cpp is compiled once per vector level and fills a table
// each.
#pragma once

#include "net.h"

namespace stanley::cpu {

// What a chain can tell about each step: sums over a group's elements, or chains.
enum Stat { kGradAbs, kLogDensity, kStepsize, kAtMax, kStats };

template <class T>
struct ChainArgs {
  const Net<T>* net;
  const T* packed;  // the net as `pack` lays it out
  const T* z;       // (chains, widths[0]), contiguous, as is `out`; may be the same
  T* out;
  int64_t chains, steps;
  const T* gamma;  // if a tensor: like z
  T gamma_value;   // if scalar
  T threshold, step_size, root_scale, noise_scale, grad_clamp, lo, hi;
  Gamma kind;
  bool script;
  Noise noise;  // at the first step
  uint64_t blocks_per_step;
  double* stats;  // (groups, steps, kStats), or null
};

// Chains are worked on in groups of `lanes`; nothing depends on which groups a call has.
template <class T>
struct ChainKernels {
  int64_t lanes;
  int64_t (*packed_size)(const Net<T>&);
  void (*pack)(const Net<T>&, T* packed);
  int64_t (*scratch_size)(const Net<T>&);
  // All steps of the groups [begin, end). packed and scratch are aligned to 64 bytes.
  void (*run)(const ChainArgs<T>&, T* scratch, int64_t begin, int64_t end);
};

struct Chains {
  ChainKernels<float> f32;
  ChainKernels<double> f64;
};

}  // namespace stanley::cpu
