// What the CPU kernels of Metropolis-Hastings and the leapfrog take. metropolis.cpp is compiled
// once per vector level and fills a table each.
#pragma once

#include "../metropolis.h"
#include "kernels.h"

namespace stanley::cpu {

// Elements whose share of a chain's log ratio is summed at once; a chain's bits depend on nothing
// but its elements, so this is the same for every vector level and number of threads.
constexpr int64_t kProposalChunk = 4096;

template <class S>
struct MetropolisOf {
  // The share of the chain's elements [begin, end), at most kProposalChunk.
  double (*log_ratio)(const ProposalArgs<S>&, int64_t chain, int64_t begin, int64_t end);
  void (*leapfrog)(const LeapfrogArgs<S>&, int64_t begin, int64_t end);
};

struct Metropolis {
  MetropolisOf<float> f32;
  MetropolisOf<double> f64;
};

}  // namespace stanley::cpu
