// The log ratio of proposals, their acceptance, and the leapfrog on NVIDIA GPUs. No torch headers
// here.
//
// A block works on one chain, so that a chain's bits depend on nothing but its own elements. Where
// rows allow it, elements are read and written 128 bits at a time.
#include "metropolis.h"

namespace stanley::cuda {
namespace {

constexpr int kMostThreads = 512;
constexpr int kWarp = 32;
constexpr int kSize = 4;  // elements that a thread takes at once

template <class T>
struct alignas(16) Four {
  T v[kSize];
};

// Elements [at, at + kSize) of a row of `width`; those beyond it are `rest`.
template <bool kVector, class T>
__device__ Four<T> load(const T* row, int64_t at, int64_t width, T rest) {
  if constexpr (kVector) {
    return *reinterpret_cast<const Four<T>*>(row + at);
  } else {
    Four<T> four;
#pragma unroll
    for (int j = 0; j < kSize; ++j) four.v[j] = at + j < width ? row[at + j] : rest;
    return four;
  }
}

// The sum over the block's threads, in an order that does not change; for thread 0.
__device__ double block_sum(double x) {
  __shared__ double sums[kMostThreads / kWarp];
  for (int apart = kWarp / 2; apart; apart /= 2) x += __shfl_down_sync(~0u, x, apart);
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = x;
  __syncthreads();
  x = 0.0;
  if (threadIdx.x == 0)
    for (int warp = 0; warp < blockDim.x / kWarp; ++warp) x += sums[warp];
  return x;
}

// log q(z | z') - log q(z' | z) of chain blockIdx.x, q(z' | z) = N(z + gamma/2 g, gamma eps^2).
template <class S, bool kVector, Gamma kind>
__global__ void __launch_bounds__(kMostThreads)
    log_ratio_kernel(const ProposalArgs<S> a, double* out) {
  const int64_t row = blockIdx.x * a.width;
  const Scale scale = scale_of(a);
  ProposalSum<double> sum;
  for (int64_t i = int64_t{kSize} * threadIdx.x; i < a.width; i += int64_t{kSize} * blockDim.x) {
    const Four<S> z = load<kVector>(a.z + row, i, a.width, S(0));
    const Four<S> grad = load<kVector>(a.grad + row, i, a.width, S(0));
    const Four<S> z_new = load<kVector>(a.z_new + row, i, a.width, S(0));
    const Four<S> grad_new = load<kVector>(a.grad_new + row, i, a.width, S(0));
    Four<S> gamma = {}, gamma_new = {};
    if (kind == Gamma::kTensor) {
      gamma = load<kVector>(a.gamma + row, i, a.width, S(1));
      gamma_new = load<kVector>(a.gamma_new + row, i, a.width, S(1));
    }
#pragma unroll
    for (int j = 0; j < kSize; ++j)
      sum.add<kind>(scale, z.v[j], grad.v[j], gamma.v[j], z_new.v[j], grad_new.v[j],
                    gamma_new.v[j]);
    if (kind != Gamma::kScalar) sum.renormalise();
  }
  const double total = block_sum(log_ratio_of(sum, a.noise_scale));
  if (threadIdx.x == 0) out[blockIdx.x] = total;
}

template <class T>
__device__ void copy(const Rows& rows, int64_t bytes) {
  T* to = reinterpret_cast<T*>(rows.to + blockIdx.x * bytes);
  const T* from = reinterpret_cast<const T*>(rows.from + blockIdx.x * bytes);
  for (int64_t i = threadIdx.x; i < bytes / int64_t{sizeof(T)}; i += blockDim.x) to[i] = from[i];
}

// Chain blockIdx.x: accepted where log u <= log alpha (Hastings 1970), and then copied.
template <class L, bool kVector>
__global__ void __launch_bounds__(kMostThreads) accept_kernel(const AcceptArgs<L, Noise> a) {
  const int64_t chain = a.noise.first + blockIdx.x;
  const uint64_t seed = a.noise.key[0], offset = a.noise.key[1];
  const uint64_t block = offset + a.noise.ahead + static_cast<uint64_t>(chain >> 2);
  const Words4 words =
      philox(static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), a.noise.stream, 0,
             static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  const int lane = chain & 3;  // by selects: an index would put the words into local memory
  const uint32_t low = lane & 1 ? words.w[1] : words.w[0];
  const uint32_t high = lane & 1 ? words.w[3] : words.w[2];
  const Decision decision = decide(a.log_density[blockIdx.x], a.log_density_new[blockIdx.x],
                                   a.log_ratio[blockIdx.x], lane & 2 ? high : low);
  __syncthreads();  // all have read the log-density
  if (threadIdx.x == 0) {
    a.accepted[blockIdx.x] = decision.accepted;
    a.probability[blockIdx.x] = decision.probability;
    if (decision.accepted) a.log_density[blockIdx.x] = a.log_density_new[blockIdx.x];
  }
  if (!decision.accepted) return;
  for (int i = 0; i < 2; ++i)
    if (a.rows[i].to != a.rows[i].from)
      kVector ? copy<uint4>(a.rows[i], a.row_bytes) : copy<uint32_t>(a.rows[i], a.row_bytes);
}

// momentum += kick grad, then z += step_size inverse_mass momentum (Duane et al. 1987).
template <class S, bool kVector>
__global__ void __launch_bounds__(kMostThreads)
    leapfrog_kernel(const LeapfrogArgs<S> a, int64_t n) {
  const int64_t i = kSize * (int64_t{blockIdx.x} * blockDim.x + threadIdx.x);
  if (i >= n) return;
  const S kick = static_cast<S>(a.kick * *a.step_size), rate = static_cast<S>(*a.step_size);
  Four<S> z = load<kVector>(a.z, i, n, S(0)), momentum = load<kVector>(a.momentum, i, n, S(0));
  const Four<S> grad = load<kVector>(a.grad, i, n, S(0));
  int64_t column = a.inverse_mass ? i % a.width : 0;
#pragma unroll
  for (int j = 0; j < kSize; ++j) {
    S by = rate;
    if (a.inverse_mass) {
      by *= a.inverse_mass[column];
      column = column + 1 == a.width ? 0 : column + 1;
    }
    stanley::leapfrog(z.v[j], momentum.v[j], grad.v[j], kick, by);
  }
  if constexpr (kVector) {
    *reinterpret_cast<Four<S>*>(a.z + i) = z;
    *reinterpret_cast<Four<S>*>(a.momentum + i) = momentum;
  } else {
#pragma unroll
    for (int j = 0; j < kSize && i + j < n; ++j) {
      a.z[i + j] = z.v[j];
      a.momentum[i + j] = momentum.v[j];
    }
  }
}

template <class... Pointers>
bool aligned(const Pointers*... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

// Of a block that has `items` to do; it depends on a chain's size alone.
int threads_for(int64_t items) {
  int threads = kWarp;
  while (threads < kMostThreads && threads < items) threads *= 2;
  return threads;
}

template <class F>
const char* on(Where where, const F& launch) {
  if (cudaError_t error = cudaSetDevice(where.device)) return cudaGetErrorString(error);
  launch(static_cast<cudaStream_t>(where.stream));
  const cudaError_t error = cudaGetLastError();
  return error ? cudaGetErrorString(error) : nullptr;
}

template <class S, Gamma kind>
void launch_log_ratio(const ProposalArgs<S>& a, int64_t chains, double* out, cudaStream_t stream) {
  const bool vector =
      a.width % kSize == 0 && aligned(a.z, a.grad, a.z_new, a.grad_new, a.gamma, a.gamma_new);
  const int threads = threads_for(a.width / kSize);
  const auto kernel = vector ? log_ratio_kernel<S, true, kind> : log_ratio_kernel<S, false, kind>;
  kernel<<<static_cast<unsigned>(chains), threads, 0, stream>>>(a, out);
}

}  // namespace

template <class S>
const char* log_ratio(const ProposalArgs<S>& a, int64_t chains, double* out, Where where) {
  return on(where, [&](cudaStream_t stream) {
    switch (a.kind) {
      case Gamma::kAdaptive: return launch_log_ratio<S, Gamma::kAdaptive>(a, chains, out, stream);
      case Gamma::kScalar: return launch_log_ratio<S, Gamma::kScalar>(a, chains, out, stream);
      case Gamma::kTensor: return launch_log_ratio<S, Gamma::kTensor>(a, chains, out, stream);
    }
  });
}

template <class L>
const char* accept(const AcceptArgs<L, Noise>& a, int64_t chains, Where where) {
  return on(where, [&](cudaStream_t stream) {
    const bool vector = a.row_bytes % 16 == 0 && aligned(a.rows[0].to, a.rows[0].from) &&
                        aligned(a.rows[1].to, a.rows[1].from);
    const int threads = threads_for(a.row_bytes / 16);
    const auto kernel = vector ? accept_kernel<L, true> : accept_kernel<L, false>;
    kernel<<<static_cast<unsigned>(chains), threads, 0, stream>>>(a);
  });
}

template <class S>
const char* leapfrog(const LeapfrogArgs<S>& a, int64_t n, Where where) {
  return on(where, [&](cudaStream_t stream) {
    constexpr int kThreads = 256;
    const bool vector = n % kSize == 0 && aligned(a.z, a.momentum, a.grad);
    const int64_t per_block = int64_t{kThreads} * kSize;
    const auto blocks = static_cast<unsigned>((n + per_block - 1) / per_block);
    const auto kernel = vector ? leapfrog_kernel<S, true> : leapfrog_kernel<S, false>;
    kernel<<<blocks, kThreads, 0, stream>>>(a, n);
  });
}

#define STANLEY_INSTANTIATE(T)                                                        \
  template const char* log_ratio<T>(const ProposalArgs<T>&, int64_t, double*, Where); \
  template const char* accept<T>(const AcceptArgs<T, Noise>&, int64_t, Where);        \
  template const char* leapfrog<T>(const LeapfrogArgs<T>&, int64_t, Where);

STANLEY_INSTANTIATE(float)
STANLEY_INSTANTIATE(double)

}  // namespace stanley::cuda
