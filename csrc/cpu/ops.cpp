// The operations on CPU tensors: validate, lay out, and share the elements among torch's threads.
// Schemas are in stanley_fast/library.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <limits>
#include <tuple>

#include "../checks.h"
#include "kernels.h"

namespace stanley::cpu {
namespace {

using torch::stable::Tensor;
using ScalarType = torch::headeronly::ScalarType;

// Elements a thread should have at least: some 10 us of work.
constexpr int64_t kGrain = 16384;

template <class F>
void for_elements(int64_t n, const F& f) {
  if (n <= kGrain) {
    if (n > 0) f(0, n);
  } else {
    torch::stable::parallel_for(0, n, kGrain, f);
  }
}

// Calls f with a value of the C++ type that holds the tensor's elements.
template <class F>
void with_type(const Tensor& tensor, const F& f) {
  tensor.scalar_type() == ScalarType::Float ? f(float()) : f(double());
}

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// Uninitialised. Without the dispatcher's look-up by name, which costs a small call.
Tensor empty_strided(const Tensor& like, const int64_t* strides) {
  int32_t type;
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      like.dim(), like.sizes().data(), strides, type, aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

// Uninitialised, in row-major order.
Tensor empty_contiguous(const Tensor& like) {
  std::vector<int64_t> strides(like.dim());
  int64_t stride = 1;
  for (int64_t i = like.dim() - 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= like.size(i) > 1 ? like.size(i) : 1;
  }
  return empty_strided(like, strides.data());
}

// Where the elements of `z` are computed: z's own strides if it is contiguous, since those of
// dimensions of size 1 say nothing about memory but a lot to a convolution.
Tensor empty_result(const Tensor& z) {
  return z.is_contiguous() ? empty_strided(z, z.strides().data()) : empty_contiguous(z);
}

// A contiguous result is the result; otherwise it is copied into a tensor with z's strides.
Tensor with_strides_of(const Tensor& z, const Tensor& contiguous_result) {
  if (z.is_contiguous()) return contiguous_result;
  Tensor result = torch::stable::empty_like(z);
  torch::stable::copy_(result, contiguous_result);
  return result;
}

Noise noise_of(const Tensor& key, int64_t step, int64_t stream, int64_t first, int64_t total) {
  const Tensor values = dense(key);
  const uint64_t seed = data<int64_t>(values)[0], offset = data<int64_t>(values)[1];
  const uint64_t per_step = static_cast<uint64_t>(total / 4 + (total % 4 != 0));
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
          offset + static_cast<uint64_t>(step) * per_step, static_cast<uint32_t>(stream), first};
}

// What a step takes besides the state.
struct Step {
  Tensor grad;
  std::optional<Tensor> gamma;  // none: adaptive, Eq. 4
  double threshold, step_size;
  Tensor key;
  int64_t step;
  double noise_scale, lo, hi;
  bool script;
  int64_t first;
  std::optional<int64_t> total;
};

// `like` is z, or in a backward pass what stands for its shape and dtype.
void validate(const Tensor& like, const Step& s) {
  if (s.gamma) {
    checks::gamma(*s.gamma, like);
  } else {
    checks::floating("grad", s.grad);
    checks::positive("threshold", s.threshold, s.grad.scalar_type());
    checks::positive("step_size", s.step_size, s.grad.scalar_type());
  }
  checks::step(like, s.grad, s.key, s.noise_scale, s.lo, s.hi);
  checks::part(like.numel(), s.first, s.total);
}

// gamma as the kernels read it: one element, or as many as `like`.
Tensor laid_out(const Tensor& gamma, const Tensor& like) {
  if (gamma.numel() == 1 || checks::same_shape(gamma, like)) return dense(gamma);
  Tensor full = empty_contiguous(like);
  torch::stable::copy_(full, gamma);  // broadcasts
  return full;
}

// A bound beyond T's range bounds nothing.
template <class T>
T saturated(double bound) {
  constexpr double most = std::numeric_limits<T>::max();
  if (bound > most) return std::numeric_limits<T>::infinity();
  return bound < -most ? -std::numeric_limits<T>::infinity() : static_cast<T>(bound);
}

// The arguments that forward and backward share. `grad` and `gamma` are laid out.
template <class T>
StepArgs<T> arguments(const Step& s, const Tensor& grad, const std::optional<Tensor>& gamma) {
  const int64_t total = s.total.value_or(grad.numel());
  StepArgs<T> a = {};
  a.grad = data<T>(grad);
  const bool scalar = gamma && gamma->numel() == 1;
  a.gamma = gamma ? data<T>(*gamma) : nullptr;
  // Read now: gamma may be an element of a z that is written in place.
  a.gamma_value = scalar ? *a.gamma : T(0);
  a.kind = !gamma ? Gamma::kAdaptive : scalar ? Gamma::kScalar : Gamma::kTensor;
  a.threshold = static_cast<T>(s.threshold);
  a.step_size = static_cast<T>(s.step_size);
  a.noise_scale = static_cast<T>(s.noise_scale);
  a.lo = saturated<T>(s.lo);
  a.hi = saturated<T>(s.hi);
  a.script = s.script;
  a.noise = noise_of(s.key, s.step, 0, s.first, total);
  return a;
}

// z and out are contiguous, and may be the same.
void forward(const Tensor& z, const Step& s, const Tensor& out) {
  const Tensor grad = dense(s.grad);
  std::optional<Tensor> gamma;
  if (s.gamma) gamma = laid_out(*s.gamma, z);
  with_type(z, [&](auto type) {
    using T = decltype(type);
    StepArgs<T> a = arguments<T>(s, grad, gamma);
    a.z = data<T>(z);
    a.out = data<T>(out);
    const auto run = kernels<T>().step;
    for_elements(z.numel(), [&](int64_t begin, int64_t end) { run(a, begin, end); });
  });
}

Tensor functional(const Tensor& z, const Step& s) {
  validate(z, s);
  Tensor out = empty_result(z);
  forward(dense(z), s, out);
  return with_strides_of(z, out);
}

void in_place(Tensor z, const Step& s) {
  validate(z, s);
  checks::no_overlap(z);
  checks::same_or_apart("grad", s.grad, z);
  // A gamma of another shape is copied or read before anything is written.
  if (s.gamma && checks::same_shape(*s.gamma, z)) checks::same_or_apart("gamma", *s.gamma, z);
  const Tensor state = dense(z);
  forward(state, s, state);
  if (!z.is_contiguous()) torch::stable::copy_(z, state);
}

struct Grads {
  Tensor z, grad, gamma;
};

Grads backward(const Tensor& grad_out, const std::optional<Tensor>& z, const Step& s) {
  validate(grad_out, s);
  if (z) checks::same("z", *z, grad_out);
  const Tensor incoming = dense(grad_out), grad = dense(s.grad);
  const Tensor none = torch::stable::new_empty(grad_out, {0});
  std::optional<Tensor> state, gamma;
  if (z) state = dense(*z);
  if (s.gamma) gamma = laid_out(*s.gamma, grad_out);
  Grads grads = {z ? empty_contiguous(grad) : none, empty_contiguous(grad),
                 s.gamma ? empty_contiguous(grad) : none};
  with_type(grad_out, [&](auto type) {
    using T = decltype(type);
    StepArgs<T> a = arguments<T>(s, grad, gamma);
    a.z = state ? data<T>(*state) : nullptr;
    a.grad_out = data<T>(incoming);
    a.grad_z = data<T>(grads.z);
    a.grad_grad = data<T>(grads.grad);
    a.grad_gamma = data<T>(grads.gamma);
    const auto run = kernels<T>().step_backward;
    for_elements(grad.numel(), [&](int64_t begin, int64_t end) { run(a, begin, end); });
  });
  return grads;
}

// The registered functions, in the order of their schemas.

Tensor stanley_step(Tensor z, Tensor grad, Tensor key, int64_t step, double threshold,
                    double step_size, double noise_scale, double lo, double hi, bool script,
                    int64_t first, std::optional<int64_t> total) {
  return functional(z, {grad, std::nullopt, threshold, step_size, key, step, noise_scale, lo, hi,
                        script, first, total});
}

void stanley_step_(Tensor z, Tensor grad, Tensor key, int64_t step, double threshold,
                   double step_size, double noise_scale, double lo, double hi, bool script,
                   int64_t first, std::optional<int64_t> total) {
  in_place(z, {grad, std::nullopt, threshold, step_size, key, step, noise_scale, lo, hi, script,
               first, total});
}

std::tuple<Tensor, Tensor> stanley_step_backward(Tensor grad_out, std::optional<Tensor> z,
                                                 Tensor grad, Tensor key, int64_t step,
                                                 double threshold, double step_size,
                                                 double noise_scale, double lo, double hi,
                                                 bool script, int64_t first,
                                                 std::optional<int64_t> total) {
  Grads grads = backward(grad_out, z,
                         {grad, std::nullopt, threshold, step_size, key, step, noise_scale, lo, hi,
                          script, first, total});
  return {grads.z, grads.grad};
}

Tensor langevin_step(Tensor z, Tensor grad, Tensor gamma, Tensor key, int64_t step,
                     double noise_scale, double lo, double hi, bool script, int64_t first,
                     std::optional<int64_t> total) {
  return functional(z, {grad, gamma, 0, 0, key, step, noise_scale, lo, hi, script, first, total});
}

void langevin_step_(Tensor z, Tensor grad, Tensor gamma, Tensor key, int64_t step,
                    double noise_scale, double lo, double hi, bool script, int64_t first,
                    std::optional<int64_t> total) {
  in_place(z, {grad, gamma, 0, 0, key, step, noise_scale, lo, hi, script, first, total});
}

std::tuple<Tensor, Tensor, Tensor> langevin_step_backward(Tensor grad_out, std::optional<Tensor> z,
                                                          Tensor grad, Tensor gamma, Tensor key,
                                                          int64_t step, double noise_scale,
                                                          double lo, double hi, bool script,
                                                          int64_t first,
                                                          std::optional<int64_t> total) {
  Grads grads = backward(grad_out, z,
                         {grad, gamma, 0, 0, key, step, noise_scale, lo, hi, script, first, total});
  return {grads.z, grads.grad, grads.gamma};
}

void normal_(Tensor out, Tensor key, int64_t step, int64_t stream, int64_t first,
             std::optional<int64_t> total) {
  checks::key(key);
  checks::floating("dtype", out);
  if (stream < 0 || stream > UINT32_MAX) checks::fail("stream must be in [0, 2^32), got ", stream);
  const int64_t whole = checks::part(out.numel(), first, total);
  checks::no_overlap(out);
  const Tensor filled = dense(out);
  const Noise noise = noise_of(key, step, stream, first, whole);
  with_type(out, [&](auto type) {
    using T = decltype(type);
    const auto run = kernels<T>().normal;
    for_elements(out.numel(),
                 [&](int64_t begin, int64_t end) { run(noise, data<T>(filled), begin, end); });
  });
  if (!out.is_contiguous()) torch::stable::copy_(out, filled);
}

Tensor stepsize(Tensor grad, double threshold, double step_size) {
  checks::floating("grad", grad);
  checks::positive("threshold", threshold, grad.scalar_type());
  checks::positive("step_size", step_size, grad.scalar_type());
  const Tensor values = dense(grad), out = empty_result(grad);
  with_type(grad, [&](auto type) {
    using T = decltype(type);
    const auto run = kernels<T>().stepsize;
    const T th = static_cast<T>(threshold), largest = static_cast<T>(step_size);
    for_elements(grad.numel(), [&](int64_t begin, int64_t end) {
      run(data<T>(values), th, largest, data<T>(out), begin, end);
    });
  });
  return with_strides_of(grad, out);
}

}  // namespace
}  // namespace stanley::cpu

STABLE_TORCH_LIBRARY_IMPL(stanley_fast, CPU, m) {
  m.impl("stanley_step", TORCH_BOX(&stanley::cpu::stanley_step));
  m.impl("stanley_step_", TORCH_BOX(&stanley::cpu::stanley_step_));
  m.impl("stanley_step_backward", TORCH_BOX(&stanley::cpu::stanley_step_backward));
  m.impl("langevin_step", TORCH_BOX(&stanley::cpu::langevin_step));
  m.impl("langevin_step_", TORCH_BOX(&stanley::cpu::langevin_step_));
  m.impl("langevin_step_backward", TORCH_BOX(&stanley::cpu::langevin_step_backward));
  m.impl("normal_", TORCH_BOX(&stanley::cpu::normal_));
  m.impl("stepsize", TORCH_BOX(&stanley::cpu::stepsize));
}
