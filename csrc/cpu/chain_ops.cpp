// The operation mlp_chain on CPU tensors: validate, pack the net, and share the chains among
// torch's threads, each of which takes all steps. Its schema is in stanley_fast/library.py.
#include <cmath>

#include "chain.h"
#include "net_ops.h"

namespace stanley::cpu {
namespace {

template <class T>
const ChainKernels<T>& chain_kernels();

template <>
const ChainKernels<float>& chain_kernels<float>() {
  return level().chains->f32;
}

template <>
const ChainKernels<double>& chain_kernels<double>() {
  return level().chains->f64;
}

// What mlp_chain takes besides the state.
struct Chain {
  Layers layers;
  std::optional<Tensor> gamma;  // none: adaptive, Eq. 4
  Tensor key;
  int64_t step, steps;
  double threshold, step_size, noise_scale, grad_clamp, lo, hi;
  bool script;
  int64_t first;
  std::optional<int64_t> total;
  bool record;
};

void validate(const Tensor& z, const Chain& c) {
  validate(z, c.layers);
  if (c.gamma) checks::gamma(*c.gamma, z);
  checks::step(z, z, c.key, c.noise_scale, c.lo, c.hi);
  checks::positive("threshold", c.threshold, z.scalar_type());
  checks::positive("step_size", c.step_size, z.scalar_type());
  if (!(c.grad_clamp > 0)) checks::fail("grad_clamp must be positive, got ", c.grad_clamp);
  if (c.steps < 0) checks::fail("steps must be 0 or more, got ", c.steps);
  checks::part(z.numel(), c.first, c.total);
}

template <class T>
ChainArgs<T> arguments(const Tensor& z, const Chain& c, const int64_t* key, const T* gamma) {
  const uint64_t seed = key[0], offset = key[1];
  const int64_t total = c.total.value_or(z.numel());
  ChainArgs<T> a = {};
  a.z = data<T>(z);
  a.chains = z.size(0);
  a.steps = c.steps;
  a.kind = !gamma ? Gamma::kAdaptive : c.gamma->numel() == 1 ? Gamma::kScalar : Gamma::kTensor;
  a.gamma = gamma;
  a.threshold = static_cast<T>(c.threshold);
  a.step_size = static_cast<T>(c.step_size);
  a.root_scale = static_cast<T>(root_scale_of(c.step_size, c.threshold));
  a.noise_scale = static_cast<T>(c.noise_scale);
  a.grad_clamp = saturated<T>(c.grad_clamp);
  a.lo = saturated<T>(c.lo);
  a.hi = saturated<T>(c.hi);
  a.script = c.script;
  a.blocks_per_step = static_cast<uint64_t>(total / 4 + (total % 4 != 0));
  a.noise = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
             offset + static_cast<uint64_t>(c.step) * a.blocks_per_step, 0, c.first};
  return a;
}

// Sums (groups, steps, kStats) to means (kStats, steps), always in the same order.
template <class T>
void means(const std::vector<double>& sums, int64_t groups, int64_t steps, int64_t chains,
           int64_t width, T* out) {
  for (int stat = 0; stat < kStats; ++stat)
    for (int64_t step = 0; step < steps; ++step) {
      double sum = 0;
      for (int64_t group = 0; group < groups; ++group)
        sum += sums[(group * steps + step) * kStats + stat];
      out[stat * steps + step] =
          static_cast<T>(sum / (stat == kLogDensity ? chains : chains * width));
    }
}

template <class T>
void run(const Tensor& z, const Chain& c, const Tensor& out, const Tensor& stats) {
  const Layers layers = contiguous(c.layers);
  const Tensor state = dense(z), key = dense(c.key);
  std::optional<Tensor> gamma;
  if (c.gamma && c.gamma->numel() != 1 && !checks::same_shape(*c.gamma, z)) {
    gamma = torch::stable::new_empty(z, {z.size(0), z.size(1)});
    torch::stable::copy_(*gamma, *c.gamma);  // broadcasts
  } else if (c.gamma) {
    gamma = dense(*c.gamma);
  }

  const Net<T> net = net_of<T>(z.size(1), layers);
  const ChainKernels<T>& kernels = chain_kernels<T>();
  const Aligned<T> packed(kernels.packed_size(net));
  kernels.pack(net, packed.get());
  ChainArgs<T> a = arguments<T>(state, c, data<int64_t>(key), gamma ? data<T>(*gamma) : nullptr);
  a.net = &net;
  a.packed = packed.get();
  a.out = data<T>(out);
  if (a.kind == Gamma::kScalar) a.gamma_value = *a.gamma;
  const int64_t groups = (a.chains + kernels.lanes - 1) / kernels.lanes;
  std::vector<double> sums(c.record ? groups * a.steps * kStats : 0);
  a.stats = c.record ? sums.data() : nullptr;

  const int64_t work = 4 * products(net) * a.steps * kernels.lanes;
  torch::stable::parallel_for(0, groups, kWork / (work + 1) + 1, [&](int64_t begin, int64_t end) {
    const Aligned<T> scratch(kernels.scratch_size(net));
    kernels.run(a, scratch.get(), begin, end);
  });
  if (c.record) means(sums, groups, a.steps, a.chains, z.size(1), data<T>(stats));
}

std::tuple<Tensor, Tensor> mlp_chain(Tensor z, std::vector<Tensor> weights,
                                     std::vector<Tensor> biases, std::string activation,
                                     double slope, std::optional<Tensor> gamma, Tensor key,
                                     int64_t step, int64_t steps, double threshold,
                                     double step_size, double noise_scale, double grad_clamp,
                                     double lo, double hi, bool script, int64_t first,
                                     std::optional<int64_t> total, bool record) {
  const Chain c = {{weights, biases, activation, slope},
                   gamma,
                   key,
                   step,
                   steps,
                   threshold,
                   step_size,
                   noise_scale,
                   grad_clamp,
                   lo,
                   hi,
                   script,
                   first,
                   total,
                   record};
  validate(z, c);
  Tensor out = torch::stable::new_empty(z, {z.size(0), z.size(1)});
  Tensor stats = torch::stable::new_empty(z, {kStats, record ? steps : 0});
  if (z.scalar_type() == ScalarType::Float)
    run<float>(z, c, out, stats);
  else
    run<double>(z, c, out, stats);
  return {out, stats};
}

}  // namespace
}  // namespace stanley::cpu

STABLE_TORCH_LIBRARY_IMPL(stanley_fast, CPU, m) {
  m.impl("mlp_chain", TORCH_BOX(&stanley::cpu::mlp_chain));
}
