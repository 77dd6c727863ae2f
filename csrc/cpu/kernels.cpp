// The steps and their derivatives on the CPU. Compiled once per vector level, STANLEY_LEVEL naming
// it; the loops are plain C++ that the compiler vectorises.
#include "kernels.h"

#include <type_traits>

#include "noise.h"

namespace stanley::cpu {
namespace STANLEY_LEVEL {
namespace {

template <class T>
struct Scratch {
  Draw draw;
  alignas(64) T noise[4 * kBlocks];
  alignas(64) uint16_t halves[4 * kBlocks];

  explicit Scratch(T noise_scale) {
    if (noise_scale == T(0)) std::memset(noise, 0, sizeof noise);
  }

  template <class S>
  const T* fill(const StepArgs<S>& a, int64_t begin, int64_t n) {
    if (a.noise_scale == T(0)) return noise;
    return normals(a.noise, a.noise.first + begin, n, draw, noise);
  }

  // The lower halves of the words that round these elements.
  template <class S>
  const uint16_t* rounding(const StepArgs<S>& a, int64_t begin, int64_t n) {
    Noise rounding = a.noise;
    rounding.stream = kRoundingStream;
    const int64_t element = rounding.first + begin;
    const int64_t pairs = 2 * draw_words(rounding, element, n, draw);
    for (int64_t i = 0; i < pairs; ++i) {
      halves[2 * i] = static_cast<uint16_t>(draw.radius[i]);
      halves[2 * i + 1] = static_cast<uint16_t>(draw.angle[i]);
    }
    return halves + (element & 3);
  }
};

// `scalar` is that of *a.gamma, read once, where there is one stepsize for all.
template <Gamma kind, class S, class T>
inline Rate<T> rate_at(const StepArgs<S>& a, Rate<T> scalar, T grad, int64_t i) {
  if (kind == Gamma::kAdaptive) return adaptive_rate(grad, a.threshold, a.root_scale);
  return kind == Gamma::kScalar ? scalar : given_rate(a.gamma[i]);
}

template <Gamma kind, Update update, bool stochastic, class S>
void step_loop(const StepArgs<S>& args, int64_t begin, int64_t end) {
  using T = Compute<S>;
  Scratch<T> scratch(args.noise_scale);
  const StepArgs<S> a = args;  // a copy that `out` cannot alias
  const Rate<T> scalar = given_rate(kind == Gamma::kScalar ? *a.gamma : T(0));
  for (int64_t at = begin; at < end; at += kChunk) {
    const int64_t n = end - at < kChunk ? end - at : kChunk;
    const T* xi = scratch.fill(a, at, n);
    const uint16_t* words = stochastic ? scratch.rounding(a, at, n) : nullptr;
    const S *z = a.z + at, *grad = a.grad + at;
    S* out = a.out + at;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
      const T g = widen(grad[i]);
      const Rate<T> rate = rate_at<kind>(a, scalar, g, at + i);
      const T moved = move<kind, update>(widen(z[i]), g, rate, a.noise_scale * xi[i]);
      const T kept = bound(moved, a.lo, a.hi);
      narrow(stochastic ? rounded_stochastically(kept, words[i]) : kept, out + i);
    }
  }
}

template <Gamma kind, Update update, class S>
void backward_loop(const StepArgs<S>& args, int64_t begin, int64_t end) {
  using T = Compute<S>;
  Scratch<T> scratch(args.noise_scale);
  const StepArgs<S> a = args;
  const Rate<T> scalar = given_rate(kind == Gamma::kScalar ? *a.gamma : T(0));
  for (int64_t at = begin; at < end; at += kChunk) {
    const int64_t n = end - at < kChunk ? end - at : kChunk;
    const T* xi = scratch.fill(a, at, n);
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
      const int64_t e = at + i;
      const T grad = widen(a.grad[e]), noise = a.noise_scale * xi[i];
      const Rate<T> rate = rate_at<kind>(a, scalar, grad, e);
      const T incoming = widen(a.grad_out[e]);
      bool cut = false;
      if (a.z) {
        const T moved = move<kind, update>(widen(a.z[e]), grad, rate, noise);
        cut = moved < a.lo || moved > a.hi;
        narrow(cut ? T(0) : incoming, a.grad_z + e);
      }
      if (kind == Gamma::kAdaptive) {
        const T by_grad = stanley_by_grad<update>(grad, rate, a.threshold, noise);
        narrow(cut ? T(0) : incoming * by_grad, a.grad_grad + e);
      } else {
        narrow(cut ? T(0) : incoming * move_by_grad<update>(rate), a.grad_grad + e);
        a.grad_gamma[e] = cut ? T(0) : incoming * move_by_gamma<update>(grad, rate, noise);
      }
    }
  }
}

template <Gamma kind, bool stochastic, class S>
void step_by(const StepArgs<S>& a, int64_t begin, int64_t end) {
  a.script ? step_loop<kind, Update::kScript, stochastic>(a, begin, end)
           : step_loop<kind, Update::kPaper, stochastic>(a, begin, end);
}

template <Gamma kind, class S>
void step_of(const StepArgs<S>& a, int64_t begin, int64_t end) {
  if constexpr (std::is_same_v<S, BFloat16>)
    if (a.stochastic) return step_by<kind, true>(a, begin, end);
  step_by<kind, false>(a, begin, end);
}

template <Gamma kind, class S>
void backward_of(const StepArgs<S>& a, int64_t begin, int64_t end) {
  a.script ? backward_loop<kind, Update::kScript>(a, begin, end)
           : backward_loop<kind, Update::kPaper>(a, begin, end);
}

template <class S>
void step(const StepArgs<S>& a, int64_t begin, int64_t end) {
  switch (a.kind) {
    case Gamma::kAdaptive: return step_of<Gamma::kAdaptive>(a, begin, end);
    case Gamma::kScalar: return step_of<Gamma::kScalar>(a, begin, end);
    case Gamma::kTensor: return step_of<Gamma::kTensor>(a, begin, end);
  }
}

template <class S>
void step_backward(const StepArgs<S>& a, int64_t begin, int64_t end) {
  switch (a.kind) {
    case Gamma::kAdaptive: return backward_of<Gamma::kAdaptive>(a, begin, end);
    case Gamma::kScalar: return backward_of<Gamma::kScalar>(a, begin, end);
    case Gamma::kTensor: return backward_of<Gamma::kTensor>(a, begin, end);
  }
}

template <class S>
void normal(const Noise& noise, S* out, int64_t begin, int64_t end) {
  Scratch<Compute<S>> scratch(1);
  for (int64_t at = begin; at < end; at += kChunk) {
    const int64_t n = end - at < kChunk ? end - at : kChunk;
    const auto* xi = normals(noise, noise.first + at, n, scratch.draw, scratch.noise);
    for (int64_t i = 0; i < n; ++i) narrow(xi[i], out + at + i);
  }
}

template <class S, class T = Compute<S>>
void stepsizes(const S* grad, T threshold, T step_size, T* out, int64_t begin, int64_t end) {
#pragma GCC ivdep
  for (int64_t i = begin; i < end; ++i) out[i] = stepsize(widen(grad[i]), threshold, step_size);
}

template <class S>
constexpr Kernels<S> kTable = {step<S>, step_backward<S>, normal<S>, stepsizes<S>};

#define STANLEY_STRING(x) #x
#define STANLEY_NAME(x) STANLEY_STRING(x)

}  // namespace

extern const Chains kChains;          // chain.cpp
extern const Convs kConvs;            // conv.cpp
extern const Densities kDensities;    // density.cpp
extern const Metropolis kMetropolis;  // metropolis.cpp
extern const Level kLevel;
const Level kLevel = {STANLEY_NAME(STANLEY_LEVEL),
                      kTable<float>,
                      kTable<double>,
                      kTable<Half>,
                      kTable<BFloat16>,
                      &kChains,
                      &kConvs,
                      &kDensities,
                      &kMetropolis};

}  // namespace STANLEY_LEVEL
}  // namespace stanley::cpu
