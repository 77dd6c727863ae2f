// The operations of Metropolis-Hastings and the leapfrog on tensors, for any device, as ops.h. The
// same checks and messages as stanley_fast/checks.py.
//
// A Device has, besides what ops.h wants,
//   log_ratio<S>(args, chains, out)      a chain's log q(z | z') - log q(z' | z) to each of out
//   accept<L>(args, chains)              decides and copies rows
//   leapfrog<S>(args, n)
#pragma once

#include "metropolis.h"
#include "ops.h"

namespace stanley {

namespace checks {

inline void chains(const Tensor& z) {
  if (!z.defined()) fail("z must be a tensor, got None");
  if (z.scalar_type() != ScalarType::Float && z.scalar_type() != ScalarType::Double)
    fail("z must be float32 or float64, got ", name(z.scalar_type()));
  if (z.dim() == 0) fail("z must be (B, ...), a chain in each row, got []");
}

inline bool is_wide(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Float || tensor.scalar_type() == ScalarType::Double;
}

inline void scalar_stepsize(const Tensor& step_size, const Tensor& z) {
  if (!is_wide(step_size) || step_size.dim() != 0)
    fail("step_size must be a number or a float32 or float64 tensor of shape (), got ",
         name(step_size.scalar_type()), " ", shape(step_size));
  on_same_device("step_size", step_size, z);
}

inline void per_chain(const char* what, const Tensor& tensor, const Tensor& z) {
  if (!tensor.defined()) fail(what, " must be a tensor, got None");
  if (!is_wide(tensor) || tensor.dim() != 1 || tensor.size(0) != z.size(0))
    fail(what, " must be float32 or float64 of shape [", z.size(0), "], got ",
         name(tensor.scalar_type()), " ", shape(tensor));
  on_same_device(what, tensor, z);
}

}  // namespace checks

// Calls f with a float or a double, as the tensor's elements are.
template <class F>
void with_wide_type(const Tensor& tensor, const F& f) {
  tensor.scalar_type() == ScalarType::Double ? f(double()) : f(float());
}

// A number on its device, as the kernels read it.
inline Tensor as_double(const Tensor& number) {
  return number.scalar_type() == ScalarType::Double ? number
                                                    : torch::stable::to(number, ScalarType::Double);
}

template <class Device>
class MetropolisOperations : private Operations<Device> {
  using Base = Operations<Device>;

 public:
  static Tensor proposal_log_ratio(Tensor z, Tensor grad, Tensor z_new, Tensor grad_new,
                                   std::optional<Tensor> gamma, std::optional<Tensor> gamma_new,
                                   std::optional<Tensor> step_size, double threshold,
                                   double noise_scale) {
    validate_proposal(z, grad, z_new, grad_new, gamma, gamma_new, step_size, threshold,
                      noise_scale);
    const typename Device::Guard guard(z);
    const Tensor from = dense(z), there = dense(grad), to = dense(z_new), back = dense(grad_new);
    std::optional<Tensor> size, rates[2];
    if (gamma) {
      rates[0] = per_element(*gamma, z);
      rates[1] = per_element(*gamma_new, z);
    } else {
      size = as_double(*step_size);
    }
    const int64_t chains = z.size(0);
    Tensor out = torch::stable::new_empty(z, {chains}, ScalarType::Double);
    with_wide_type(z, [&](auto type) {
      using S = decltype(type);
      ProposalArgs<S> a = {};
      a.z = data<S>(from);
      a.grad = data<S>(there);
      a.z_new = data<S>(to);
      a.grad_new = data<S>(back);
      a.gamma = gamma ? data<S>(*rates[0]) : nullptr;
      a.gamma_new = gamma ? data<S>(*rates[1]) : nullptr;
      a.step_size = size ? data<double>(*size) : nullptr;
      a.threshold = threshold;
      a.noise_scale = noise_scale;
      a.kind = gamma ? Gamma::kTensor : std::isinf(threshold) ? Gamma::kScalar : Gamma::kAdaptive;
      a.width = chains ? z.numel() / chains : 0;
      if (chains) Device::template log_ratio<S>(a, chains, data<double>(out));
    });
    return out;
  }

  static std::tuple<Tensor, Tensor> accept_(Tensor z, std::optional<Tensor> grad,
                                            Tensor log_density, Tensor z_new,
                                            std::optional<Tensor> grad_new, Tensor log_density_new,
                                            Tensor log_ratio, Tensor key, int64_t step,
                                            int64_t first, std::optional<int64_t> total) {
    const int64_t whole = validate_accept(z, grad, log_density, z_new, grad_new, log_density_new,
                                          log_ratio, key, first, total);
    const typename Device::Guard guard(z);
    const int64_t chains = z.size(0);
    Tensor accepted = torch::stable::new_empty(z, {chains}, ScalarType::Bool);
    Tensor probability = torch::stable::new_empty(z, {chains}, ScalarType::Double);
    if (chains == 0) return {accepted, probability};
    const Tensor state = dense(z), density = dense(log_density), seed = dense(key);
    const Tensor to = dense(z_new), density_new = dense(log_density_new), ratio = dense(log_ratio);
    std::optional<Tensor> gradient, gradient_new;
    if (grad) {
      gradient = dense(*grad);
      gradient_new = dense(*grad_new);
    }
    with_wide_type(log_density, [&](auto type) {
      using L = decltype(type);
      AcceptArgs<L, typename Device::Noise> a = {};
      a.rows[0] = {data<char>(state), data<char>(to)};
      if (grad) a.rows[1] = {data<char>(*gradient), data<char>(*gradient_new)};
      a.row_bytes = z.numel() / chains * z.element_size();
      a.log_density = data<L>(density);
      a.log_density_new = data<L>(density_new);
      a.log_ratio = data<double>(ratio);
      a.noise = noise_at<Device>(data<int64_t>(seed), step, 1, first, whole);
      a.accepted = data<bool>(accepted);
      a.probability = data<double>(probability);
      Device::template accept<L>(a, chains);
    });
    if (!z.is_contiguous()) torch::stable::copy_(z, state);
    if (grad && !grad->is_contiguous()) torch::stable::copy_(*grad, *gradient);
    if (!log_density.is_contiguous()) torch::stable::copy_(log_density, density);
    return {accepted, probability};
  }

  static void leapfrog_(Tensor z, Tensor momentum, Tensor grad, Tensor step_size, double kick,
                        std::optional<Tensor> inverse_mass) {
    validate_leapfrog(z, momentum, grad, step_size, kick, inverse_mass);
    if (z.numel() == 0) return;
    const typename Device::Guard guard(z);
    const Tensor state = dense(z), moving = dense(momentum), kicks = dense(grad);
    const Tensor size = as_double(step_size);
    std::optional<Tensor> mass;
    if (inverse_mass) mass = per_element(*inverse_mass, torch::stable::select(z, 0, 0));
    with_wide_type(z, [&](auto type) {
      using S = decltype(type);
      LeapfrogArgs<S> a = {};
      a.z = data<S>(state);
      a.momentum = data<S>(moving);
      a.grad = data<S>(kicks);
      a.step_size = data<double>(size);
      a.kick = kick;
      a.inverse_mass = mass ? data<S>(*mass) : nullptr;
      a.width = z.numel() / z.size(0);
      Device::template leapfrog<S>(a, z.numel());
    });
    if (!z.is_contiguous()) torch::stable::copy_(z, state);
    if (!momentum.is_contiguous()) torch::stable::copy_(momentum, moving);
  }

 private:
  // Contiguous, as many elements as `like`.
  static Tensor per_element(const Tensor& tensor, const Tensor& like) {
    if (checks::same_shape(tensor, like)) return dense(tensor);
    Tensor full = Base::empty_contiguous(like, tensor.scalar_type());
    torch::stable::copy_(full, tensor);  // broadcasts
    return full;
  }

  static void validate_proposal(const Tensor& z, const Tensor& grad, const Tensor& z_new,
                                const Tensor& grad_new, const std::optional<Tensor>& gamma,
                                const std::optional<Tensor>& gamma_new,
                                const std::optional<Tensor>& step_size, double threshold,
                                double noise_scale) {
    checks::chains(z);
    checks::same("grad", grad, z);
    checks::same("z_new", z_new, z);
    checks::same("grad_new", grad_new, z);
    const bool one_stepsize = threshold == std::numeric_limits<double>::infinity();
    if (!gamma && !gamma_new) {
      if (!step_size) checks::fail("step_size must be given where gamma and gamma_new are not");
      checks::scalar_stepsize(*step_size, z);
      if (!one_stepsize) checks::positive("threshold", threshold, z.scalar_type());
    } else {
      if (step_size || !one_stepsize)
        checks::fail("step_size and threshold must be None where gamma is given");
      if (!gamma) checks::fail("gamma must be a tensor, got None");
      if (!gamma_new) checks::fail("gamma_new must be a tensor, got None");
      checks::gamma(*gamma, z);
      checks::gamma(*gamma_new, z, "gamma_new");
    }
    checks::positive("noise_scale", noise_scale, z.scalar_type());
  }

  // Returns the total of chains.
  static int64_t validate_accept(const Tensor& z, const std::optional<Tensor>& grad,
                                 const Tensor& log_density, const Tensor& z_new,
                                 const std::optional<Tensor>& grad_new,
                                 const Tensor& log_density_new, const Tensor& log_ratio,
                                 const Tensor& key, int64_t first, std::optional<int64_t> total) {
    checks::chains(z);
    checks::same("z_new", z_new, z);
    if (grad.has_value() != grad_new.has_value())
      checks::fail("grad and grad_new must be given both, or both be None");
    if (grad) {
      checks::same("grad", *grad, z);
      checks::same("grad_new", *grad_new, z);
    }
    checks::per_chain("log_density", log_density, z);
    checks::per_chain("log_density_new", log_density_new, z);
    if (log_density_new.scalar_type() != log_density.scalar_type())
      checks::fail("log_density_new must have log_density's dtype ",
                   checks::name(log_density.scalar_type()), ", got ",
                   checks::name(log_density_new.scalar_type()));
    checks::per_chain("log_ratio", log_ratio, z);
    if (log_ratio.scalar_type() != ScalarType::Double)
      checks::fail("log_ratio must be float64, got ", checks::name(log_ratio.scalar_type()));
    checks::key(key);
    checks::on_same_device("key", key, z);
    const int64_t whole = checks::part(z.size(0), first, total);
    checks::no_overlap(z);
    checks::no_overlap(log_density, "log_density");
    checks::same_or_apart("z_new", z_new, z);
    checks::same_or_apart("log_density_new", log_density_new, log_density, "log_density");
    if (grad) {
      checks::no_overlap(*grad, "grad");
      checks::apart("grad", *grad, z);
      checks::same_or_apart("grad_new", *grad_new, *grad, "grad");
      checks::apart("grad_new", *grad_new, z);
      checks::apart("z_new", z_new, *grad, "grad");
    }
    return whole;
  }

  static void validate_leapfrog(const Tensor& z, const Tensor& momentum, const Tensor& grad,
                                const Tensor& step_size, double kick,
                                const std::optional<Tensor>& inverse_mass) {
    checks::chains(z);
    checks::same("momentum", momentum, z);
    checks::same("grad", grad, z);
    checks::scalar_stepsize(step_size, z);
    checks::positive("kick", kick, z.scalar_type());
    if (inverse_mass) {
      if (inverse_mass->scalar_type() != z.scalar_type())
        checks::fail("inverse_mass must have z's dtype ", checks::name(z.scalar_type()), ", got ",
                     checks::name(inverse_mass->scalar_type()));
      checks::on_same_device("inverse_mass", *inverse_mass, z);
      if (!checks::broadcasts(*inverse_mass, z, 1))
        checks::fail("inverse_mass must broadcast to a chain's shape ", checks::shape(z, 1),
                     ", got ", checks::shape(*inverse_mass));
    }
    checks::no_overlap(z);
    checks::no_overlap(momentum, "momentum");
    checks::apart("momentum", momentum, z);
    checks::same_or_apart("grad", grad, z);
    checks::same_or_apart("grad", grad, momentum, "momentum");
  }
};

template <class Device>
void register_metropolis(torch::stable::detail::StableLibrary& library) {
  using Ops = MetropolisOperations<Device>;
  library.impl("proposal_log_ratio", TORCH_BOX(&Ops::proposal_log_ratio));
  library.impl("accept_", TORCH_BOX(&Ops::accept_));
  library.impl("leapfrog_", TORCH_BOX(&Ops::leapfrog_));
}

}  // namespace stanley
