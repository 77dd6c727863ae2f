// Chooses the vector level once, by what the CPU has.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace stanley::cpu {

#if defined(__x86_64__)
namespace avx512 {
extern const Level kLevel;
}
namespace avx2 {
extern const Level kLevel;
}
#endif
namespace baseline {
extern const Level kLevel;
}

namespace {

struct Choice {
  const Level* level;
  bool runs;
};

const Level& choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool wide = fma && __builtin_cpu_supports("avx512f") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl");
  const Choice choices[] = {
      {&avx512::kLevel, wide}, {&avx2::kLevel, fma}, {&baseline::kLevel, true}};
#else
  const Choice choices[] = {{&baseline::kLevel, true}};
#endif
  const char* asked = std::getenv("STANLEY_FAST_VECTOR");
  std::string able;
  for (const Choice& choice : choices) {
    if (!choice.runs) continue;
    if (!asked || !*asked || asked == std::string(choice.level->name)) return *choice.level;
    able += (able.empty() ? "" : ", ") + std::string(choice.level->name);
  }
  throw std::runtime_error("STANLEY_FAST_VECTOR must be one of " + able + " on this CPU, got " +
                           asked);
}

}  // namespace

const Level& level() {
  static const Level& chosen = choose();
  return chosen;
}

template <>
const Kernels<float>& kernels<float>() {
  return level().f32;
}

template <>
const Kernels<double>& kernels<double>() {
  return level().f64;
}

template <>
const Kernels<Half>& kernels<Half>() {
  return level().f16;
}

template <>
const Kernels<BFloat16>& kernels<BFloat16>() {
  return level().bf16;
}

}  // namespace stanley::cpu

// For `stanley-fast doctor`; null where STANLEY_FAST_VECTOR asks for what this CPU lacks.
extern "C" __attribute__((visibility("default"))) const char* stanley_fast_vector_level() {
  try {
    return stanley::cpu::level().name;
  } catch (const std::runtime_error&) {
    return nullptr;
  }
}
