// What the module _direct hands to the library: a step whose tensors are plain memory.
#pragma once

#include <cstdint>
#include <optional>

namespace stanley {

// Elements that one thread works on alone, and a direct step has at most: some 10 us of work.
constexpr int64_t kGrain = 16384;

enum class Format { kFloat32, kFloat64, kFloat16, kBFloat16 };

// Memory is contiguous and on the CPU. Where `out` is z, grad is z as well or apart from it.
struct DirectStep {
  Format format;  // of z, grad and out
  int64_t n;
  const void *z, *grad;
  void* out;          // null: only say whether the step could be made
  const void* gamma;  // gammas values: 1 or n
  int64_t gammas;
  std::optional<double> gamma_number;  // instead of memory; without either Eq. 4's
  const int64_t* key;
  double threshold, step_size;
  int64_t step;
  double noise_scale, lo, hi;
  bool script;
  int64_t first;
  std::optional<int64_t> total;
  bool stochastic;
};

// stanley_fast_direct_step of the library. False, with nothing written: the operation says why.
using DirectStepFunction = bool(const DirectStep&);

}  // namespace stanley
