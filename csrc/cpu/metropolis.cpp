// The log ratio of proposals, and the leapfrog, on the CPU. Compiled once per vector level,
// STANLEY_LEVEL naming it.
#include "metropolis_kernels.h"

namespace stanley::cpu {
namespace STANLEY_LEVEL {

constexpr int kLanes = 8;
typedef double Doubles __attribute__((vector_size(8 * kLanes)));
typedef int64_t Longs __attribute__((vector_size(8 * kLanes)));

}  // namespace STANLEY_LEVEL
}  // namespace stanley::cpu

namespace stanley {

template <>
struct Wide<cpu::STANLEY_LEVEL::Doubles> {
  using Bits = cpu::STANLEY_LEVEL::Longs;
};

namespace cpu {
namespace STANLEY_LEVEL {
namespace {

static_assert(kProposalChunk / kLanes <= ProposalSum<Doubles>::kMostFactors);

// kLanes elements in float64; only n < kLanes of them where there are no more, and then `rest`.
template <class S>
inline Doubles load(const S* from, int64_t n, double rest) {
  if (!from) return Doubles{};
  typedef S Lanes __attribute__((vector_size(sizeof(S) * kLanes)));
  Lanes lanes = Lanes{} + static_cast<S>(rest);
  if (n >= kLanes)
    std::memcpy(&lanes, from, sizeof lanes);
  else
    for (int64_t i = 0; i < n; ++i) lanes[i] = from[i];
  return __builtin_convertvector(lanes, Doubles);
}

template <Gamma kind, class S>
double log_ratio(const ProposalArgs<S>& args, int64_t begin, int64_t end) {
  const ProposalArgs<S> a = args;
  const Scale scale = scale_of(a);
  if (end - begin < kLanes / 2) {  // vectors would be all but empty
    ProposalSum<double> sum;
    for (int64_t i = begin; i < end; ++i)
      sum.add<kind>(scale, a.z[i], a.grad[i], kind == Gamma::kTensor ? a.gamma[i] : 0, a.z_new[i],
                    a.grad_new[i], kind == Gamma::kTensor ? a.gamma_new[i] : 0);
    return log_ratio_of(sum, a.noise_scale);
  }
  ProposalSum<Doubles> sum;
  const auto add = [&](int64_t at, int64_t n) __attribute__((always_inline)) {
    const bool given = kind == Gamma::kTensor;
    sum.template add<kind>(scale, load(a.z + at, n, 0), load(a.grad + at, n, 0),
                           load(given ? a.gamma + at : nullptr, n, 1), load(a.z_new + at, n, 0),
                           load(a.grad_new + at, n, 0),
                           load(given ? a.gamma_new + at : nullptr, n, 1));
  };
  int64_t at = begin;
  for (; at + kLanes <= end; at += kLanes) add(at, kLanes);
  if (at < end) add(at, end - at);
  ProposalSum<double> whole;
  for (int i = 0; i < kLanes; ++i) {
    whole.squares += sum.squares[i];
    whole.exponents += sum.exponents[i];
    whole.there *= whole.mantissa(sum.there[i], -1);
    whole.back *= whole.mantissa(sum.back[i], 1);
  }
  return log_ratio_of(whole, a.noise_scale);
}

template <class S>
double log_ratio_of_chunk(const ProposalArgs<S>& a, int64_t chain, int64_t begin, int64_t end) {
  const int64_t row = chain * a.width;
  switch (a.kind) {
    case Gamma::kAdaptive: return log_ratio<Gamma::kAdaptive>(a, row + begin, row + end);
    case Gamma::kScalar: return log_ratio<Gamma::kScalar>(a, row + begin, row + end);
    default: return log_ratio<Gamma::kTensor>(a, row + begin, row + end);
  }
}

template <class S>
void leapfrog_elements(const LeapfrogArgs<S>& args, int64_t begin, int64_t end) {
  const LeapfrogArgs<S> a = args;  // a copy that what is written cannot alias
  const S kick = static_cast<S>(a.kick * *a.step_size), rate = static_cast<S>(*a.step_size);
  if (!a.inverse_mass) {
#pragma GCC ivdep
    for (int64_t i = begin; i < end; ++i) leapfrog(a.z[i], a.momentum[i], a.grad[i], kick, rate);
    return;
  }
  for (int64_t at = begin; at < end;) {  // a part of one chain
    const int64_t column = at % a.width, left = a.width - column;
    const int64_t n = end - at < left ? end - at : left;
    const S* inverse_mass = a.inverse_mass + column;
    S *z = a.z + at, *momentum = a.momentum + at;
    const S* grad = a.grad + at;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i)
      leapfrog(z[i], momentum[i], grad[i], kick, rate * inverse_mass[i]);
    at += n;
  }
}

template <class S>
constexpr MetropolisOf<S> kTable = {log_ratio_of_chunk<S>, leapfrog_elements<S>};

}  // namespace

extern const Metropolis kMetropolis;
const Metropolis kMetropolis = {kTable<float>, kTable<double>};

}  // namespace STANLEY_LEVEL
}  // namespace cpu
}  // namespace stanley
