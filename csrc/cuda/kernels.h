// The CUDA kernels as the registration sees them: no CUDA header, so that a C++ compiler reads it.
#pragma once

#include "../args.h"

namespace stanley::cuda {

// Where a state's noise lies. The key is read on the device, so that a captured launch draws anew
// when the key has moved.
struct Noise {
  const int64_t* key;
  uint64_t ahead;  // blocks from the key's offset to this step
  uint32_t stream;
  int64_t first;  // global index of the local element 0
};

template <class S>
using StepArgs = stanley::StepArgs<S, Noise>;

// The GPU and the stream to launch on.
struct Where {
  int device;
  void* stream;
};

// Each launches on n elements and returns CUDA's message, or null if all is well.
template <class S>
const char* step(const StepArgs<S>& args, int64_t n, Where where);
template <class S>
const char* step_backward(const StepArgs<S>& args, int64_t n, Where where);
template <class S>
const char* normal(const Noise& noise, S* out, int64_t n, Where where);
template <class S>
const char* stepsize(const S* grad, Compute<S> threshold, Compute<S> step_size, Compute<S>* out,
                     int64_t n, Where where);

}  // namespace stanley::cuda
