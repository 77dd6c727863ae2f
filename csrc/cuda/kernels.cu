// The steps, their derivatives, the noise and the stepsize on NVIDIA GPUs. No torch headers here.
//
// A thread works on groups of neighbouring elements, 4 of a Philox block or 8 where a state has 16
// bits, so that memory is read and written 128 bits at a time. Indices have 32 bits; the launcher
// cuts longer states into parts.
#include <type_traits>

#include "kernels.h"

namespace stanley::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kPart = 1 << 30;  // elements of one launch

template <class S>
constexpr int kGroup = sizeof(S) == 2 ? 8 : 4;

// Groups of a thread, kThreads apart: what hides the latency of memory and of Philox.
template <class S>
constexpr int kUnroll = sizeof(S) == 4 ? 2 : 1;

template <class T, int n>
struct alignas(16) Pack {
  T v[n];
};

// The elements of one group. Without kVector the state begins within a Philox block or is not
// aligned: a group then begins `shift` elements earlier, and elements are moved one by one.
template <bool kVector, int kSize>
struct Group {
  int32_t begin, end;  // of the group and of the state

  __device__ bool has(int j) const { return begin + j >= 0 && begin + j < end; }
  __device__ bool whole() const { return kVector && begin + kSize <= end; }

  template <class T>
  __device__ Pack<T, kSize> load(const T* from) const {
    if (whole()) return *reinterpret_cast<const Pack<T, kSize>*>(from + begin);
    Pack<T, kSize> pack = {};
#pragma unroll
    for (int j = 0; j < kSize; ++j)
      if (has(j)) pack.v[j] = from[begin + j];
    return pack;
  }

  template <class T>
  __device__ void store(T* to, const Pack<T, kSize>& pack) const {
    if (whole()) {
      *reinterpret_cast<Pack<T, kSize>*>(to + begin) = pack;
      return;
    }
#pragma unroll
    for (int j = 0; j < kSize; ++j)
      if (has(j)) to[begin + j] = pack.v[j];
  }
};

// A key as one thread reads it.
struct Seed {
  uint32_t k0, k1, stream;
  uint64_t block;  // of the first group

  __device__ explicit Seed(const Noise& noise) : stream(noise.stream) {
    const uint64_t seed = noise.key[0], offset = noise.key[1];
    k0 = static_cast<uint32_t>(seed);
    k1 = static_cast<uint32_t>(seed >> 32);
    block = offset + noise.ahead + static_cast<uint64_t>(noise.first >> 2);
  }

  // The words of elements j to j + 3 of a group of kSize.
  template <int kSize>
  __device__ Words4 words(uint32_t group, int j, uint32_t stream) const {
    const uint64_t at = block + group * uint64_t{kSize / 4} + j / 4;
    return philox(static_cast<uint32_t>(at), static_cast<uint32_t>(at >> 32), stream, 0, k0, k1);
  }

  template <class T, int kSize>
  __device__ void normals(uint32_t group, T (&xi)[kSize]) const {
#pragma unroll
    for (int j = 0; j < kSize; j += 4) {
      const Words4 four = words<kSize>(group, j, stream);
      box_muller(four.w[0], four.w[1], xi + j);
      box_muller(four.w[2], four.w[3], xi + j + 2);
    }
  }

  template <int kSize>
  __device__ void round(uint32_t group, float (&x)[kSize]) const {
#pragma unroll
    for (int j = 0; j < kSize; j += 4) {
      const Words4 four = words<kSize>(group, j, kRoundingStream);
#pragma unroll
      for (int i = 0; i < 4; ++i) x[j + i] = rounded_stochastically(x[j + i], four.w[i]);
    }
  }
};

template <Gamma kind, class S, class T = Compute<S>>
__device__ Rate<T> rate_at(const StepArgs<S>& a, Rate<T> scalar, T grad, T gamma) {
  if (kind == Gamma::kAdaptive) return adaptive_rate(grad, a.threshold, a.root_scale);
  return kind == Gamma::kScalar ? scalar : given_rate(gamma);
}

// The groups of this thread, and how far they begin before a Philox block of the state's own.
template <class S, bool vector>
struct Part {
  static constexpr bool kVector = vector;
  static constexpr int kSize = kGroup<S>, kTimes = kUnroll<S>;
  int32_t n;
  int32_t shift;

  __device__ uint32_t index(int t) const {
    return (blockIdx.x * kTimes + t) * kThreads + threadIdx.x;
  }
  __device__ Group<kVector, kSize> group(int t) const {
    return {static_cast<int32_t>(index(t)) * kSize - (kVector ? 0 : shift), n};
  }
};

// z' = z + gamma/2 g + sqrt(gamma) noise_scale xi (the paper's Eq. 5), gamma by Eq. 4 or given.
template <class S, bool kVector, Gamma kind, Update update, bool stochastic>
__global__ void __launch_bounds__(kThreads)
    step_kernel(const StepArgs<S> a, const Part<S, kVector> part) {
  using T = Compute<S>;
  constexpr int kSize = kGroup<S>, kTimes = kUnroll<S>;
  Pack<S, kSize> z[kTimes], grad[kTimes];
  Pack<T, kSize> gamma[kTimes];
#pragma unroll
  for (int t = 0; t < kTimes; ++t) {
    z[t] = part.group(t).load(a.z);
    grad[t] = part.group(t).load(a.grad);
    if (kind == Gamma::kTensor) gamma[t] = part.group(t).load(a.gamma);
  }
  const Seed seed(a.noise);
  const Rate<T> scalar = given_rate(kind == Gamma::kScalar ? *a.gamma : T(0));
#pragma unroll
  for (int t = 0; t < kTimes; ++t) {
    T xi[kSize] = {}, moved[kSize];
    if (a.noise_scale != T(0)) seed.normals(part.index(t), xi);
#pragma unroll
    for (int j = 0; j < kSize; ++j) {
      const T g = widen(grad[t].v[j]), noise = a.noise_scale * xi[j];
      const Rate<T> rate = rate_at<kind>(a, scalar, g, gamma[t].v[j]);
      moved[j] = bound(move<kind, update>(widen(z[t].v[j]), g, rate, noise), a.lo, a.hi);
    }
    if constexpr (stochastic) seed.round(part.index(t), moved);
#pragma unroll
    for (int j = 0; j < kSize; ++j) narrow(moved[j], &z[t].v[j]);
    part.group(t).store(a.out, z[t]);
  }
}

// The derivatives of step_kernel's z' with respect to z, g and a given gamma, times grad_out; xi is
// made again from the key.
template <class S, bool kVector, Gamma kind, Update update>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const StepArgs<S> a, const Part<S, kVector> part) {
  using T = Compute<S>;
  constexpr int kSize = kGroup<S>;
  const Seed seed(a.noise);
  const Rate<T> scalar = given_rate(kind == Gamma::kScalar ? *a.gamma : T(0));
  for (int t = 0; t < kUnroll<S>; ++t) {
    const auto group = part.group(t);
    Pack<S, kSize> z = {}, grad = group.load(a.grad), out = group.load(a.grad_out);
    if (a.z) z = group.load(a.z);
    Pack<T, kSize> gamma = {};
    if (kind == Gamma::kTensor) gamma = group.load(a.gamma);
    T xi[kSize] = {};
    if (a.noise_scale != T(0)) seed.normals(part.index(t), xi);
#pragma unroll
    for (int j = 0; j < kSize; ++j) {
      const T g = widen(grad.v[j]), noise = a.noise_scale * xi[j];
      const Rate<T> rate = rate_at<kind>(a, scalar, g, gamma.v[j]);
      const T moved = move<kind, update>(widen(z.v[j]), g, rate, noise);
      const bool cut = a.z && (moved < a.lo || moved > a.hi);
      const T incoming = cut ? T(0) : widen(out.v[j]);
      const T by_grad = kind == Gamma::kAdaptive
                            ? stanley_by_grad<update>(g, rate, a.threshold, noise)
                            : move_by_grad<update>(rate);
      narrow(incoming, &z.v[j]);
      narrow(cut ? T(0) : incoming * by_grad, &grad.v[j]);
      gamma.v[j] = cut ? T(0) : incoming * move_by_gamma<update>(g, rate, noise);
    }
    if (a.z) group.store(a.grad_z, z);
    group.store(a.grad_grad, grad);
    if (kind != Gamma::kAdaptive) group.store(a.grad_gamma, gamma);
  }
}

// Standard normals: Philox4x32-10 (Salmon et al. 2011), then Box-Muller (1958).
template <class S, bool kVector>
__global__ void __launch_bounds__(kThreads)
    normal_kernel(const Noise noise, S* out, const Part<S, kVector> part) {
  constexpr int kSize = kGroup<S>;
  const Seed seed(noise);
#pragma unroll
  for (int t = 0; t < kUnroll<S>; ++t) {
    Compute<S> xi[kSize];
    seed.normals(part.index(t), xi);
    Pack<S, kSize> pack;
#pragma unroll
    for (int j = 0; j < kSize; ++j) narrow(xi[j], &pack.v[j]);
    part.group(t).store(out, pack);
  }
}

// gamma = step_size * threshold / max(threshold, |g|), the paper's Eq. 4.
template <class S, bool kVector, class T = Compute<S>>
__global__ void __launch_bounds__(kThreads)
    stepsize_kernel(const S* grad, T threshold, T step_size, T* out, const Part<S, kVector> part) {
  constexpr int kSize = kGroup<S>;
#pragma unroll
  for (int t = 0; t < kUnroll<S>; ++t) {
    const Pack<S, kSize> pack = part.group(t).load(grad);
    Pack<T, kSize> gamma;
#pragma unroll
    for (int j = 0; j < kSize; ++j)
      gamma.v[j] = stanley::stepsize<T>(widen(pack.v[j]), threshold, step_size);
    part.group(t).store(out, gamma);
  }
}

// Whether all of these allow 128-bit access; null does.
template <class... Pointers>
bool aligned(const Pointers*... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

template <class T>
T* ahead(T* pointer, int64_t elements) {
  return pointer ? pointer + elements : nullptr;
}

template <class S>
StepArgs<S> ahead(StepArgs<S> a, int64_t elements) {
  a.z = ahead(a.z, elements);
  a.grad = ahead(a.grad, elements);
  if (a.kind == Gamma::kTensor) a.gamma = ahead(a.gamma, elements);
  a.out = ahead(a.out, elements);
  a.grad_out = ahead(a.grad_out, elements);
  a.grad_z = ahead(a.grad_z, elements);
  a.grad_grad = ahead(a.grad_grad, elements);
  a.grad_gamma = ahead(a.grad_gamma, elements);
  a.noise.first += elements;
  return a;
}

// Calls launch(grid, part, from) for parts of the state that 32-bit indices reach, `from` being
// where one begins. `first` is the global index of element 0.
template <class S, class F>
const char* in_parts(int64_t n, int64_t first, bool vector, Where where, const F& launch) {
  if (cudaError_t error = cudaSetDevice(where.device)) return cudaGetErrorString(error);
  constexpr int64_t per_block = int64_t{kThreads} * kUnroll<S> * kGroup<S>;
  const int32_t shift = static_cast<int32_t>(first & 3);  // the same for all parts
  for (int64_t from = 0; from < n; from += kPart) {
    const int32_t elements = static_cast<int32_t>(n - from < kPart ? n - from : kPart);
    const unsigned grid = static_cast<unsigned>((elements + shift + per_block - 1) / per_block);
    if (vector && shift == 0) {
      launch(grid, Part<S, true>{elements, 0}, from);
    } else {
      launch(grid, Part<S, false>{elements, shift}, from);
    }
    if (cudaError_t error = cudaGetLastError()) return cudaGetErrorString(error);
  }
  return nullptr;
}

template <Gamma kind, Update update, class F>
void with(const F& f) {
  f(std::integral_constant<Gamma, kind>(), std::integral_constant<Update, update>());
}

// Calls f with the kind of stepsize and the update as types.
template <class S, class F>
void with_form(const StepArgs<S>& a, const F& f) {
  switch (a.kind) {
    case Gamma::kAdaptive:
      return a.script ? with<Gamma::kAdaptive, Update::kScript>(f)
                      : with<Gamma::kAdaptive, Update::kPaper>(f);
    case Gamma::kScalar:
      return a.script ? with<Gamma::kScalar, Update::kScript>(f)
                      : with<Gamma::kScalar, Update::kPaper>(f);
    case Gamma::kTensor:
      return a.script ? with<Gamma::kTensor, Update::kScript>(f)
                      : with<Gamma::kTensor, Update::kPaper>(f);
  }
}

}  // namespace

template <class S>
const char* step(const StepArgs<S>& a, int64_t n, Where where) {
  const auto* gamma = a.kind == Gamma::kTensor ? a.gamma : nullptr;
  const bool vector = aligned(a.z, a.grad, gamma, a.out);
  const auto stream = static_cast<cudaStream_t>(where.stream);
  return in_parts<S>(n, a.noise.first, vector, where, [&](unsigned grid, auto part, int64_t from) {
    with_form(a, [&](auto kind, auto update) {
      auto* kernel = step_kernel<S, part.kVector, kind(), update(), false>;
      if constexpr (std::is_same_v<S, BFloat16>)
        if (a.stochastic) kernel = step_kernel<S, part.kVector, kind(), update(), true>;
      kernel<<<grid, kThreads, 0, stream>>>(ahead(a, from), part);
    });
  });
}

template <class S>
const char* step_backward(const StepArgs<S>& a, int64_t n, Where where) {
  const auto* gamma = a.kind == Gamma::kTensor ? a.gamma : nullptr;
  const bool vector =
      aligned(a.z, a.grad, gamma, a.grad_out) && aligned(a.grad_z, a.grad_grad, a.grad_gamma);
  const auto stream = static_cast<cudaStream_t>(where.stream);
  return in_parts<S>(n, a.noise.first, vector, where, [&](unsigned grid, auto part, int64_t from) {
    with_form(a, [&](auto kind, auto update) {
      backward_kernel<S, part.kVector, kind(), update()>
          <<<grid, kThreads, 0, stream>>>(ahead(a, from), part);
    });
  });
}

template <class S>
const char* normal(const Noise& noise, S* out, int64_t n, Where where) {
  const auto stream = static_cast<cudaStream_t>(where.stream);
  return in_parts<S>(n, noise.first, aligned(out), where,
                     [&](unsigned grid, auto part, int64_t from) {
                       Noise ahead = noise;
                       ahead.first += from;
                       normal_kernel<<<grid, kThreads, 0, stream>>>(ahead, out + from, part);
                     });
}

template <class S>
const char* stepsize(const S* grad, Compute<S> threshold, Compute<S> step_size, Compute<S>* out,
                     int64_t n, Where where) {
  const auto stream = static_cast<cudaStream_t>(where.stream);
  return in_parts<S>(n, 0, aligned(grad, out), where, [&](unsigned grid, auto part, int64_t from) {
    stepsize_kernel<<<grid, kThreads, 0, stream>>>(grad + from, threshold, step_size, out + from,
                                                   part);
  });
}

#define STANLEY_INSTANTIATE(S)                                               \
  template const char* step<S>(const StepArgs<S>&, int64_t, Where);          \
  template const char* step_backward<S>(const StepArgs<S>&, int64_t, Where); \
  template const char* normal<S>(const Noise&, S*, int64_t, Where);          \
  template const char* stepsize<S>(const S*, Compute<S>, Compute<S>, Compute<S>*, int64_t, Where);

STANLEY_INSTANTIATE(float)
STANLEY_INSTANTIATE(double)
STANLEY_INSTANTIATE(Half)
STANLEY_INSTANTIATE(BFloat16)

}  // namespace stanley::cuda
