// The CUDA kernels of Metropolis-Hastings and the leapfrog, as the registration sees them.
#pragma once

#include "../metropolis.h"
#include "kernels.h"

namespace stanley::cuda {

// Each launches and returns CUDA's message, or null if all is well.
template <class S>
const char* log_ratio(const ProposalArgs<S>& args, int64_t chains, double* out, Where where);
template <class L>
const char* accept(const AcceptArgs<L, Noise>& args, int64_t chains, Where where);
template <class S>
const char* leapfrog(const LeapfrogArgs<S>& args, int64_t n, Where where);

}  // namespace stanley::cuda
