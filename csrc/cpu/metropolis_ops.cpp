// The operations of Metropolis-Hastings and the leapfrog on CPU tensors: chains, or chunks of them,
// are shared among torch's threads.
#include "../metropolis_ops.h"

#include <algorithm>
#include <numeric>

#include "device.h"
#include "metropolis_kernels.h"

namespace stanley::cpu {
namespace {

template <class S>
const MetropolisOf<S>& metropolis();

template <>
const MetropolisOf<float>& metropolis<float>() {
  return level().metropolis->f32;
}

template <>
const MetropolisOf<double>& metropolis<double>() {
  return level().metropolis->f64;
}

// Calls f(begin, end) for parts of n items of `width` elements each.
template <class F>
void for_items(int64_t n, int64_t width, const F& f) {
  const int64_t grain = kGrain / (width + 1) + 1;
  if (n <= grain)
    f(0, n);
  else
    torch::stable::parallel_for(0, n, grain, f);
}

// Four neighbouring chains, by global index, have a Philox block together.
template <class L>
void accept_chains(const AcceptArgs<L, Noise>& a, int64_t begin, int64_t end) {
  Words4 words = {};
  for (int64_t c = begin; c < end; ++c) {
    const int64_t chain = a.noise.first + c;
    if (c == begin || chain % 4 == 0) {
      const uint64_t block = a.noise.block + static_cast<uint64_t>(chain >> 2);
      words = philox(static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                     a.noise.stream, 0, a.noise.k0, a.noise.k1);
    }
    const Decision decision =
        decide(a.log_density[c], a.log_density_new[c], a.log_ratio[c], words.w[chain & 3]);
    a.accepted[c] = decision.accepted;
    a.probability[c] = decision.probability;
    if (!decision.accepted) continue;
    a.log_density[c] = a.log_density_new[c];
    for (const Rows& rows : a.rows)
      if (rows.to != rows.from)
        std::memcpy(rows.to + c * a.row_bytes, rows.from + c * a.row_bytes, a.row_bytes);
  }
}

struct CpuMetropolis : Cpu {
  // A chain's chunks are summed by themselves and then in order.
  template <class S>
  static void log_ratio(const ProposalArgs<S>& a, int64_t chains, double* out) {
    const auto run = metropolis<S>().log_ratio;
    const int64_t chunks = (a.width + kProposalChunk - 1) / kProposalChunk;
    std::vector<double> several(chunks > 1 ? chains * chunks : 0);
    double* sums = chunks > 1 ? several.data() : out;
    if (chunks == 0) std::fill_n(out, chains, 0.0);
    for_items(chains * chunks, std::min(a.width, kProposalChunk), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t from = i % chunks * kProposalChunk;
        sums[i] = run(a, i / chunks, from, std::min(from + kProposalChunk, a.width));
      }
    });
    if (chunks > 1)
      for (int64_t c = 0; c < chains; ++c)
        out[c] = std::accumulate(sums + c * chunks, sums + (c + 1) * chunks, 0.0);
  }

  template <class L>
  static void accept(const AcceptArgs<L, Noise>& a, int64_t chains) {
    for_items(chains, a.row_bytes / 4,
              [&](int64_t begin, int64_t end) { accept_chains(a, begin, end); });
  }

  template <class S>
  static void leapfrog(const LeapfrogArgs<S>& a, int64_t n) {
    const auto run = metropolis<S>().leapfrog;
    for_elements(n, [&](int64_t begin, int64_t end) { run(a, begin, end); });
  }
};

}  // namespace
}  // namespace stanley::cpu

STABLE_TORCH_LIBRARY_IMPL(stanley_fast, CPU, m) {
  stanley::register_metropolis<stanley::cpu::CpuMetropolis>(m);
}
