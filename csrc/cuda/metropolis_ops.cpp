// The operations of Metropolis-Hastings and the leapfrog on CUDA tensors.
#include "../metropolis_ops.h"

#include "device.h"
#include "metropolis.h"

namespace stanley::cuda {
namespace {

struct CudaMetropolis : Cuda {
  template <class S>
  static void log_ratio(const ProposalArgs<S>& a, int64_t chains, double* out) {
    check(cuda::log_ratio(a, chains, out, here()), "proposal_log_ratio");
  }

  template <class L>
  static void accept(const AcceptArgs<L, Noise>& a, int64_t chains) {
    check(cuda::accept(a, chains, here()), "accept");
  }

  template <class S>
  static void leapfrog(const LeapfrogArgs<S>& a, int64_t n) {
    check(cuda::leapfrog(a, n, here()), "leapfrog");
  }
};

}  // namespace
}  // namespace stanley::cuda

STABLE_TORCH_LIBRARY_IMPL(stanley_fast, CUDA, m) {
  stanley::register_metropolis<stanley::cuda::CudaMetropolis>(m);
}
