// The operations on tensors, for any device: validate, lay out, and hand contiguous elements to the
// device's kernels. Schemas are in stanley_fast/library.py.
//
// A Device has
//   Noise                 where a state's noise lies, as its kernels read it
//   noise(key, ...)       makes one
//   type()                torch's device type
//   Guard                 makes a tensor's device the current one while it lives
//   step<S>, step_backward<S>, normal<S>, stepsize<S>     the kernels, on n elements
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <limits>
#include <tuple>
#include <vector>

#include "args.h"
#include "checks.h"

namespace stanley {

using torch::stable::Tensor;
using ScalarType = torch::headeronly::ScalarType;

// Calls f with a value of the C++ type that holds the tensor's elements.
template <class F>
void with_type(const Tensor& tensor, const F& f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return f(float());
    case ScalarType::Double: return f(double());
    case ScalarType::Half: return f(Half());
    default: return f(BFloat16());  // checks::floating admits no others
  }
}

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

inline Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
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
  bool stochastic;
};

// `like` is z, or in a backward pass what stands for its shape and dtype.
inline void validate(const Tensor& like, const Step& s) {
  if (s.gamma) {
    checks::gamma(*s.gamma, like);
  } else {
    checks::floating("grad", s.grad);
    checks::positive("threshold", s.threshold, s.grad.scalar_type());
    checks::positive("step_size", s.step_size, s.grad.scalar_type());
  }
  checks::step(like, s.grad, s.key, s.noise_scale, s.lo, s.hi);
  checks::rounding(s.stochastic, like.scalar_type());
  checks::part(like.numel(), s.first, s.total);
}

// A bound beyond T's range bounds nothing.
template <class T>
T saturated(double bound) {
  constexpr double most = std::numeric_limits<T>::max();
  if (bound > most) return std::numeric_limits<T>::infinity();
  return bound < -most ? -std::numeric_limits<T>::infinity() : static_cast<T>(bound);
}

template <class Device>
typename Device::Noise noise_at(const int64_t* key, int64_t step, int64_t stream, int64_t first,
                                int64_t total) {
  const uint64_t per_step = static_cast<uint64_t>(total / 4 + (total % 4 != 0));
  return Device::noise(key, static_cast<uint64_t>(step) * per_step, static_cast<uint32_t>(stream),
                       first);
}

// What forward and backward share, from a Step or a DirectStep. All memory is laid out.
template <class Device, class S, class Settings>
StepArgs<S, typename Device::Noise> arguments(const Settings& s, const S* grad,
                                              const Compute<S>* gamma, int64_t gammas,
                                              const int64_t* key, int64_t n) {
  using T = Compute<S>;
  StepArgs<S, typename Device::Noise> a = {};
  a.grad = grad;
  a.gamma = gamma;
  a.kind = !gamma ? Gamma::kAdaptive : gammas == 1 ? Gamma::kScalar : Gamma::kTensor;
  a.threshold = static_cast<T>(s.threshold);
  a.root_scale = static_cast<T>(root_scale_of(s.step_size, s.threshold));
  a.noise_scale = static_cast<T>(s.noise_scale);
  a.lo = saturated<T>(s.lo);
  a.hi = saturated<T>(s.hi);
  a.script = s.script;
  a.stochastic = s.stochastic;
  a.noise = noise_at<Device>(key, s.step, 0, s.first, s.total.value_or(n));
  return a;
}

template <class Device>
class Operations {
 public:
  static Tensor stanley_step(Tensor z, Tensor grad, Tensor key, int64_t step, double threshold,
                             double step_size, double noise_scale, double lo, double hi,
                             bool script, int64_t first, std::optional<int64_t> total,
                             bool stochastic) {
    return functional(z, {grad, std::nullopt, threshold, step_size, key, step, noise_scale, lo, hi,
                          script, first, total, stochastic});
  }

  static void stanley_step_(Tensor z, Tensor grad, Tensor key, int64_t step, double threshold,
                            double step_size, double noise_scale, double lo, double hi, bool script,
                            int64_t first, std::optional<int64_t> total, bool stochastic) {
    in_place(z, {grad, std::nullopt, threshold, step_size, key, step, noise_scale, lo, hi, script,
                 first, total, stochastic});
  }

  static std::tuple<Tensor, Tensor> stanley_step_backward(
      Tensor grad_out, std::optional<Tensor> z, Tensor grad, Tensor key, int64_t step,
      double threshold, double step_size, double noise_scale, double lo, double hi, bool script,
      int64_t first, std::optional<int64_t> total, bool stochastic) {
    Grads grads = backward(grad_out, z,
                           {grad, std::nullopt, threshold, step_size, key, step, noise_scale, lo,
                            hi, script, first, total, stochastic});
    return {grads.z, grads.grad};
  }

  static Tensor langevin_step(Tensor z, Tensor grad, Tensor gamma, Tensor key, int64_t step,
                              double noise_scale, double lo, double hi, bool script, int64_t first,
                              std::optional<int64_t> total, bool stochastic) {
    return functional(
        z, {grad, gamma, 0, 0, key, step, noise_scale, lo, hi, script, first, total, stochastic});
  }

  static void langevin_step_(Tensor z, Tensor grad, Tensor gamma, Tensor key, int64_t step,
                             double noise_scale, double lo, double hi, bool script, int64_t first,
                             std::optional<int64_t> total, bool stochastic) {
    in_place(z,
             {grad, gamma, 0, 0, key, step, noise_scale, lo, hi, script, first, total, stochastic});
  }

  static std::tuple<Tensor, Tensor, Tensor> langevin_step_backward(
      Tensor grad_out, std::optional<Tensor> z, Tensor grad, Tensor gamma, Tensor key, int64_t step,
      double noise_scale, double lo, double hi, bool script, int64_t first,
      std::optional<int64_t> total, bool stochastic) {
    Grads grads = backward(
        grad_out, z,
        {grad, gamma, 0, 0, key, step, noise_scale, lo, hi, script, first, total, stochastic});
    return {grads.z, grads.grad, grads.gamma};
  }

  static void normal_(Tensor out, Tensor key, int64_t step, int64_t stream, int64_t first,
                      std::optional<int64_t> total) {
    checks::key(key);
    checks::floating("dtype", out);
    checks::on_same_device("key", key, out);
    if (stream < 0 || stream > UINT32_MAX)
      checks::fail("stream must be in [0, 2^32), got ", stream);
    const int64_t whole = checks::part(out.numel(), first, total);
    checks::no_overlap(out);
    const typename Device::Guard guard(out);
    const Tensor filled = dense(out), seed = dense(key);
    const auto noise = noise_at<Device>(data<int64_t>(seed), step, stream, first, whole);
    with_type(out, [&](auto type) {
      using S = decltype(type);
      Device::template normal<S>(noise, data<S>(filled), out.numel());
    });
    if (!out.is_contiguous()) torch::stable::copy_(out, filled);
  }

  static Tensor stepsize(Tensor grad, double threshold, double step_size) {
    checks::floating("grad", grad);
    checks::positive("threshold", threshold, grad.scalar_type());
    checks::positive("step_size", step_size, grad.scalar_type());
    const typename Device::Guard guard(grad);
    const ScalarType type = checks::compute_type(grad.scalar_type());
    const Tensor values = dense(grad), out = empty_result(grad, type);
    with_type(grad, [&](auto type) {
      using S = decltype(type);
      using T = Compute<S>;
      Device::template stepsize<S>(data<S>(values), static_cast<T>(threshold),
                                   static_cast<T>(step_size), data<T>(out), grad.numel());
    });
    return with_strides_of(grad, out);
  }

 protected:
  // Uninitialised. Without the dispatcher's look-up by name, which costs a small call.
  static Tensor empty_strided(const Tensor& like, const int64_t* strides, ScalarType type) {
    AtenTensorHandle handle;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        like.dim(), like.sizes().data(), strides,
        torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)), Device::type(),
        like.get_device_index(), &handle));
    return Tensor(handle);
  }

  // Uninitialised, in row-major order.
  static Tensor empty_contiguous(const Tensor& like, ScalarType type) {
    std::vector<int64_t> strides(like.dim());
    int64_t stride = 1;
    for (int64_t i = like.dim() - 1; i >= 0; --i) {
      strides[i] = stride;
      stride *= like.size(i) > 1 ? like.size(i) : 1;
    }
    return empty_strided(like, strides.data(), type);
  }

  // Where the elements of a result are computed: z's own strides if it is contiguous, since those
  // of dimensions of size 1 say nothing about memory but a lot to a convolution.
  static Tensor empty_result(const Tensor& z, ScalarType type) {
    return z.is_contiguous() ? empty_strided(z, z.strides().data(), type)
                             : empty_contiguous(z, type);
  }

  // A contiguous result is the result; otherwise it is copied into a tensor with z's strides.
  static Tensor with_strides_of(const Tensor& z, const Tensor& contiguous_result) {
    if (z.is_contiguous()) return contiguous_result;
    Tensor result = torch::stable::empty_like(z);
    if (contiguous_result.scalar_type() != z.scalar_type())
      result = torch::stable::to(result, contiguous_result.scalar_type());
    torch::stable::copy_(result, contiguous_result);
    return result;
  }

  // gamma as the kernels read it: one element, or as many as `like`.
  static Tensor laid_out(const Tensor& gamma, const Tensor& like) {
    if (gamma.numel() == 1 || checks::same_shape(gamma, like)) return dense(gamma);
    Tensor full = empty_contiguous(like, gamma.scalar_type());
    torch::stable::copy_(full, gamma);  // broadcasts
    return full;
  }

  template <class S>
  static StepArgs<S, typename Device::Noise> arguments(const Step& s, const Tensor& grad,
                                                       const std::optional<Tensor>& gamma,
                                                       const Tensor& key) {
    return stanley::arguments<Device, S>(
        s, data<S>(grad), gamma ? data<Compute<S>>(*gamma) : nullptr, gamma ? gamma->numel() : 0,
        data<int64_t>(key), grad.numel());
  }

  // z and out are contiguous, and may be the same.
  static void forward(const Tensor& z, const Step& s, const Tensor& out) {
    const Tensor grad = dense(s.grad), key = dense(s.key);
    std::optional<Tensor> gamma;
    if (s.gamma) gamma = laid_out(*s.gamma, z);
    with_type(z, [&](auto type) {
      using S = decltype(type);
      auto a = arguments<S>(s, grad, gamma, key);
      a.z = data<S>(z);
      a.out = data<S>(out);
      Device::template step<S>(a, z.numel());
    });
  }

  static Tensor functional(const Tensor& z, const Step& s) {
    validate(z, s);
    const typename Device::Guard guard(z);
    Tensor out = empty_result(z, z.scalar_type());
    forward(dense(z), s, out);
    return with_strides_of(z, out);
  }

  static void in_place(Tensor z, Step s) {
    validate(z, s);
    checks::no_overlap(z);
    checks::same_or_apart("grad", s.grad, z);
    const typename Device::Guard guard(z);
    if (s.gamma && s.gamma->numel() == 1 && checks::share_memory(*s.gamma, z))
      s.gamma = torch::stable::clone(*s.gamma);  // it is read while z is written
    // One of another shape is copied before anything is written.
    else if (s.gamma && checks::same_shape(*s.gamma, z))
      checks::same_or_apart("gamma", *s.gamma, z);
    const Tensor state = dense(z);
    forward(state, s, state);
    if (!z.is_contiguous()) torch::stable::copy_(z, state);
  }

  struct Grads {
    Tensor z, grad, gamma;
  };

  static Grads backward(const Tensor& grad_out, const std::optional<Tensor>& z, const Step& s) {
    validate(grad_out, s);
    if (z) checks::same("z", *z, grad_out);
    const typename Device::Guard guard(grad_out);
    const Tensor incoming = dense(grad_out), grad = dense(s.grad), key = dense(s.key);
    const Tensor none = torch::stable::new_empty(grad_out, {0});
    const ScalarType type = grad_out.scalar_type();
    std::optional<Tensor> state, gamma;
    if (z) state = dense(*z);
    if (s.gamma) gamma = laid_out(*s.gamma, grad_out);
    Grads grads = {z ? empty_contiguous(grad, type) : none, empty_contiguous(grad, type),
                   s.gamma ? empty_contiguous(grad, checks::compute_type(type)) : none};
    with_type(grad_out, [&](auto type) {
      using S = decltype(type);
      auto a = arguments<S>(s, grad, gamma, key);
      a.z = state ? data<S>(*state) : nullptr;
      a.grad_out = data<S>(incoming);
      a.grad_z = data<S>(grads.z);
      a.grad_grad = data<S>(grads.grad);
      a.grad_gamma = data<Compute<S>>(grads.gamma);
      Device::template step_backward<S>(a, grad.numel());
    });
    return grads;
  }
};

template <class Device>
void register_operations(torch::stable::detail::StableLibrary& library) {
  using Ops = Operations<Device>;
  library.impl("stanley_step", TORCH_BOX(&Ops::stanley_step));
  library.impl("stanley_step_", TORCH_BOX(&Ops::stanley_step_));
  library.impl("stanley_step_backward", TORCH_BOX(&Ops::stanley_step_backward));
  library.impl("langevin_step", TORCH_BOX(&Ops::langevin_step));
  library.impl("langevin_step_", TORCH_BOX(&Ops::langevin_step_));
  library.impl("langevin_step_backward", TORCH_BOX(&Ops::langevin_step_backward));
  library.impl("normal_", TORCH_BOX(&Ops::normal_));
  library.impl("stepsize", TORCH_BOX(&Ops::stepsize));
}

}  // namespace stanley
