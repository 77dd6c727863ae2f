// What a small net's values and gradients on the CPU take. density.cpp is compiled once per vector
// level and fills a table each.
#pragma once

#include "net.h"

namespace stanley::cpu {

template <class T>
struct DensityArgs {
  const Net<T>* net;
  const T* packed;  // the net as `pack` lays it out
  const T* z;       // (points, widths[0]), contiguous
  int64_t points;
  T* f;               // (points,): what `value` writes
  const T* grad_out;  // (points,): what `gradient` takes for d loss / d f
  T* grad_z;          // like z, or null
  bool with_parameters;
};

// Points are worked on in groups of `lanes`.
template <class T>
struct DensityKernels {
  int64_t lanes;
  int64_t (*packed_size)(const Net<T>&);
  void (*pack)(const Net<T>&, T* packed);
  int64_t (*scratch_size)(const Net<T>&);
  int64_t (*sums_size)(const Net<T>&);
  // The groups [begin, end); `value` takes no sums, `gradient` adds the points' share of the
  // parameters' gradient to them. All memory is aligned to 64 bytes.
  void (*value)(const DensityArgs<T>&, T* scratch, int64_t begin, int64_t end, T* sums);
  void (*gradient)(const DensityArgs<T>&, T* scratch, int64_t begin, int64_t end, T* sums);
  // Sums to the parameters' gradient: layer by layer the weights, row-major, and the biases.
  void (*unpack)(const Net<T>&, const T* sums, T* grad);
};

struct Densities {
  DensityKernels<float> f32;
  DensityKernels<double> f64;
};

}  // namespace stanley::cpu
