// The operation mlp_chain on CPU tensors: validate, pack the net, and share the chains among
// torch's threads, each of which takes all steps. Its schema is in stanley_fast/library.py.
#include <cmath>
#include <memory>
#include <new>

#include "../ops.h"
#include "chain.h"

namespace stanley::cpu {
namespace {

// Multiplications and additions that a thread should have at least: some 20 us of work.
constexpr int64_t kGrain = 1 << 20;

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

// Uninitialised, aligned to 64 bytes.
template <class T>
class Aligned {
 public:
  explicit Aligned(int64_t n)
      : values_(static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(64)))) {}
  T* get() const { return values_.get(); }

 private:
  struct Free {
    void operator()(T* values) const { ::operator delete(values, std::align_val_t(64)); }
  };
  std::unique_ptr<T, Free> values_;
};

// What mlp_chain takes besides the state.
struct Chain {
  std::vector<Tensor> weights, biases;
  std::string activation;
  double slope;
  std::optional<Tensor> gamma;  // none: adaptive, Eq. 4
  Tensor key;
  int64_t step, steps;
  double threshold, step_size, noise_scale, grad_clamp, lo, hi;
  bool script;
  int64_t first;
  std::optional<int64_t> total;
  bool record;
};

void between(const char* what, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most)
    checks::fail(what, " must be from ", least, " to ", most, ", got ", value);
}

void is_matrix(const std::string& what, const Tensor& tensor, const Tensor& z, int64_t rows,
               int64_t columns) {
  const bool fits = columns < 0
                        ? tensor.dim() == 1 && tensor.size(0) == rows
                        : tensor.dim() == 2 && tensor.size(0) == rows && tensor.size(1) == columns;
  if (!fits || tensor.scalar_type() != z.scalar_type() || !tensor.is_cpu())
    checks::fail(what, " must be [", rows, columns < 0 ? "" : ", " + std::to_string(columns),
                 "] and like z on cpu in ", checks::name(z.scalar_type()), ", got ",
                 checks::shape(tensor), " on ", checks::device(tensor), " in ",
                 checks::name(tensor.scalar_type()));
}

void validate_net(const Tensor& z, const Chain& c) {
  if (c.weights.size() != c.biases.size())
    checks::fail("biases must be as many as weights, ", c.weights.size(), ", got ",
                 c.biases.size());
  const int layers = static_cast<int>(c.weights.size());
  between("the number of layers", layers, 2, kMaxLayers);
  int64_t width = z.size(1);
  for (int l = 0; l < layers; ++l) {
    const std::string index = "[" + std::to_string(l) + "]";
    const int64_t out = l + 1 == layers ? 1 : c.biases[l].numel();
    is_matrix("biases" + index, c.biases[l], z, out, -1);
    is_matrix("weights" + index, c.weights[l], z, out, width);
    between("the width of a layer", out, 1, kMaxWidth);
    width = out;
  }
  if (c.activation != "leaky_relu" && c.activation != "silu")
    checks::fail("activation must be 'leaky_relu' or 'silu', got '", c.activation, "'");
  if (!(c.slope >= 0 && c.slope <= checks::largest(z.scalar_type())))
    checks::fail("slope must be 0 or more and finite, got ", c.slope);
}

void validate(const Tensor& z, const Chain& c) {
  if (z.scalar_type() != ScalarType::Float && z.scalar_type() != ScalarType::Double)
    checks::fail("z must be float32 or float64, got ", checks::name(z.scalar_type()));
  if (z.dim() != 2) checks::fail("z must be (B, d), got ", checks::shape(z));
  between("z's width", z.size(1), 1, kMaxInput);
  validate_net(z, c);
  if (c.gamma) checks::gamma(*c.gamma, z);
  checks::step(z, z, c.key, c.noise_scale, c.lo, c.hi);
  checks::positive("threshold", c.threshold, z.scalar_type());
  checks::positive("step_size", c.step_size, z.scalar_type());
  if (!(c.grad_clamp > 0)) checks::fail("grad_clamp must be positive, got ", c.grad_clamp);
  if (c.steps < 0) checks::fail("steps must be 0 or more, got ", c.steps);
  checks::part(z.numel(), c.first, c.total);
}

template <class T>
Net<T> net_of(int64_t width, const Chain& c, const std::vector<Tensor>& tensors) {
  Net<T> net = {};
  net.layers = static_cast<int>(c.weights.size());
  net.widths[0] = width;
  for (int l = 0; l < net.layers; ++l) {
    net.weights[l] = data<T>(tensors[l]);
    net.biases[l] = data<T>(tensors[net.layers + l]);
    net.widths[l + 1] = c.biases[l].numel();
  }
  net.activation = c.activation == "silu" ? Activation::kSilu : Activation::kLeaky;
  net.slope = static_cast<T>(c.slope);
  return net;
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

template <class T>
int64_t work_per_group(const Net<T>& net, int64_t steps, int64_t lanes) {
  int64_t products = 0;
  for (int l = 0; l < net.layers; ++l) products += net.widths[l] * net.widths[l + 1];
  return 4 * products * steps * lanes;
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
  std::vector<Tensor> tensors;
  for (const auto* list : {&c.weights, &c.biases})
    for (const Tensor& tensor : *list) tensors.push_back(dense(tensor));
  const Tensor state = dense(z), key = dense(c.key);
  std::optional<Tensor> gamma;
  if (c.gamma && c.gamma->numel() != 1 && !checks::same_shape(*c.gamma, z)) {
    gamma = torch::stable::new_empty(z, {z.size(0), z.size(1)});
    torch::stable::copy_(*gamma, *c.gamma);  // broadcasts
  } else if (c.gamma) {
    gamma = dense(*c.gamma);
  }

  const Net<T> net = net_of<T>(z.size(1), c, tensors);
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

  const int64_t work = work_per_group(net, a.steps, kernels.lanes);
  torch::stable::parallel_for(0, groups, kGrain / (work + 1) + 1, [&](int64_t begin, int64_t end) {
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
  const Chain c = {weights, biases, activation, slope,     gamma,       key,
                   step,    steps,  threshold,  step_size, noise_scale, grad_clamp,
                   lo,      hi,     script,     first,     total,       record};
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
