// The steps and their derivatives on the CPU. Compiled once per vector level, STANLEY_LEVEL naming
// it; the loops are plain C++ that the compiler vectorises.
#include "kernels.h"

#include "../step.h"
#include "noise.h"

namespace stanley::cpu {
namespace STANLEY_LEVEL {
namespace {

template <class T>
struct Scratch {
  Words words;
  alignas(64) T noise[4 * kBlocks] = {};

  const T* fill(const StepArgs<T>& a, int64_t begin, int64_t n) {
    if (a.noise_scale == T(0)) return noise;  // all zeros: never filled
    return normals(a.noise, a.noise.first + begin, n, words, noise);
  }
};

template <Gamma kind, class T>
inline T gamma_at(const StepArgs<T>& a, T grad, int64_t i) {
  if (kind == Gamma::kAdaptive) return stepsize(grad, a.threshold, a.step_size);
  return kind == Gamma::kScalar ? a.gamma_value : a.gamma[i];
}

template <Gamma kind, Update update, class T>
void step_loop(const StepArgs<T>& args, int64_t begin, int64_t end) {
  Scratch<T> scratch;
  const StepArgs<T> a = args;  // a copy that `out` cannot alias
  for (int64_t at = begin; at < end; at += kChunk) {
    const int64_t n = end - at < kChunk ? end - at : kChunk;
    const T* xi = scratch.fill(a, at, n);
    const T *z = a.z + at, *grad = a.grad + at;
    T* out = a.out + at;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
      const T gamma = gamma_at<kind>(a, grad[i], at + i);
      out[i] = bound(move<update>(z[i], grad[i], gamma, a.noise_scale * xi[i]), a.lo, a.hi);
    }
  }
}

template <Gamma kind, Update update, class T>
void backward_loop(const StepArgs<T>& args, int64_t begin, int64_t end) {
  Scratch<T> scratch;
  const StepArgs<T> a = args;
  for (int64_t at = begin; at < end; at += kChunk) {
    const int64_t n = end - at < kChunk ? end - at : kChunk;
    const T* xi = scratch.fill(a, at, n);
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
      const int64_t e = at + i;
      const T grad = a.grad[e], noise = a.noise_scale * xi[i];
      const T gamma = gamma_at<kind>(a, grad, e);
      const T incoming = a.grad_out[e];
      bool cut = false;
      if (a.z) {
        const T moved = move<update>(a.z[e], grad, gamma, noise);
        cut = moved < a.lo || moved > a.hi;
        a.grad_z[e] = cut ? T(0) : incoming;
      }
      if (kind == Gamma::kAdaptive) {
        const T by_grad = stanley_by_grad<update>(grad, gamma, a.threshold, noise);
        a.grad_grad[e] = cut ? T(0) : incoming * by_grad;
      } else {
        a.grad_grad[e] = cut ? T(0) : incoming * move_by_grad<update>(gamma);
        a.grad_gamma[e] = cut ? T(0) : incoming * move_by_gamma<update>(grad, gamma, noise);
      }
    }
  }
}

template <class T, Gamma kind>
void step_of(const StepArgs<T>& a, int64_t begin, int64_t end) {
  a.script ? step_loop<kind, Update::kScript>(a, begin, end)
           : step_loop<kind, Update::kPaper>(a, begin, end);
}

template <class T, Gamma kind>
void backward_of(const StepArgs<T>& a, int64_t begin, int64_t end) {
  a.script ? backward_loop<kind, Update::kScript>(a, begin, end)
           : backward_loop<kind, Update::kPaper>(a, begin, end);
}

template <class T>
void step(const StepArgs<T>& a, int64_t begin, int64_t end) {
  switch (a.kind) {
    case Gamma::kAdaptive: return step_of<T, Gamma::kAdaptive>(a, begin, end);
    case Gamma::kScalar: return step_of<T, Gamma::kScalar>(a, begin, end);
    case Gamma::kTensor: return step_of<T, Gamma::kTensor>(a, begin, end);
  }
}

template <class T>
void step_backward(const StepArgs<T>& a, int64_t begin, int64_t end) {
  switch (a.kind) {
    case Gamma::kAdaptive: return backward_of<T, Gamma::kAdaptive>(a, begin, end);
    case Gamma::kScalar: return backward_of<T, Gamma::kScalar>(a, begin, end);
    case Gamma::kTensor: return backward_of<T, Gamma::kTensor>(a, begin, end);
  }
}

template <class T>
void normal(const Noise& noise, T* out, int64_t begin, int64_t end) {
  Scratch<T> scratch;
  for (int64_t at = begin; at < end; at += kChunk) {
    const int64_t n = end - at < kChunk ? end - at : kChunk;
    const T* xi = normals(noise, noise.first + at, n, scratch.words, scratch.noise);
    std::memcpy(out + at, xi, n * sizeof(T));
  }
}

template <class T>
void stepsizes(const T* grad, T threshold, T step_size, T* out, int64_t begin, int64_t end) {
#pragma GCC ivdep
  for (int64_t i = begin; i < end; ++i) out[i] = stepsize(grad[i], threshold, step_size);
}

template <class T>
constexpr Kernels<T> kTable = {step<T>, step_backward<T>, normal<T>, stepsizes<T>};

#define STANLEY_STRING(x) #x
#define STANLEY_NAME(x) STANLEY_STRING(x)

}  // namespace

extern const Chains kChains;  // chain.cpp
extern const Level kLevel;
const Level kLevel = {STANLEY_NAME(STANLEY_LEVEL), kTable<float>, kTable<double>, &kChains};

}  // namespace STANLEY_LEVEL
}  // namespace stanley::cpu
