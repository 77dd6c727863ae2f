// What every operation on CPU tensors shares.
#pragma once

#include "../direct/direct.h"
#include "../ops.h"
#include "kernels.h"

namespace stanley::cpu {
namespace {

template <class F>
void for_elements(int64_t n, const F& f) {
  if (n <= kGrain) {
    if (n > 0) f(0, n);
  } else {
    torch::stable::parallel_for(0, n, kGrain, f);
  }
}

struct Cpu {
  using Noise = cpu::Noise;

  struct Guard {
    explicit Guard(const Tensor&) {}
  };

  static int32_t type() { return aoti_torch_device_type_cpu(); }

  static Noise noise(const int64_t* key, uint64_t ahead, uint32_t stream, int64_t first) {
    const uint64_t seed = key[0], offset = key[1];
    return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), offset + ahead, stream,
            first};
  }
};

}  // namespace
}  // namespace stanley::cpu
