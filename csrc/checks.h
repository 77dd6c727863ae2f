// What the operations accept, checked before anything is written. The same checks and messages as
// stanley_fast/checks.py.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <limits>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

namespace stanley::checks {

using torch::stable::Tensor;
using ScalarType = torch::headeronly::ScalarType;

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline std::string name(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "torch.float32";
    case ScalarType::Double: return "torch.float64";
    case ScalarType::Half: return "torch.float16";
    case ScalarType::BFloat16: return "torch.bfloat16";
    case ScalarType::Bool: return "torch.bool";
    case ScalarType::Byte: return "torch.uint8";
    case ScalarType::Char: return "torch.int8";
    case ScalarType::Short: return "torch.int16";
    case ScalarType::Int: return "torch.int32";
    case ScalarType::Long: return "torch.int64";
    case ScalarType::ComplexFloat: return "torch.complex64";
    case ScalarType::ComplexDouble: return "torch.complex128";
    default: return std::string("torch.") + torch::headeronly::toString(type);
  }
}

// Without the first `skip` dimensions.
inline std::string shape(const Tensor& tensor, int64_t skip = 0) {
  std::ostringstream text;
  text << "[";
  for (int64_t i = skip; i < tensor.dim(); ++i) text << (i > skip ? ", " : "") << tensor.size(i);
  text << "]";
  return text.str();
}

inline std::string device(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  const std::string type = tensor.is_cuda() ? "cuda" : "another device type";
  return type + ":" + std::to_string(tensor.get_device_index());
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t i = 0; i < a.dim(); ++i)
    if (a.size(i) != b.size(i)) return false;
  return true;
}

inline void on_same_device(const char* what, const Tensor& tensor, const Tensor& z) {
  if (tensor.is_cpu() != z.is_cpu() || tensor.get_device_index() != z.get_device_index())
    fail(what, " must be on z's device ", device(z), ", got ", device(tensor));
}

inline void floating(const char* what, const Tensor& tensor) {
  if (!tensor.defined()) fail(what, " must be a tensor, got None");
  const ScalarType type = tensor.scalar_type();
  if (type != ScalarType::Float && type != ScalarType::Double && type != ScalarType::Half &&
      type != ScalarType::BFloat16)
    fail(what, " must be float32, float64, float16 or bfloat16, got ", name(type));
}

// The type that a state's arithmetic is done in.
inline ScalarType compute_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline double largest(ScalarType type) {
  return compute_type(type) == ScalarType::Double ? std::numeric_limits<double>::max()
                                                  : std::numeric_limits<float>::max();
}

inline void same(const char* what, const Tensor& tensor, const Tensor& z) {
  if (!tensor.defined()) fail(what, " must be a tensor, got None");
  if (!same_shape(tensor, z))
    fail(what, " must have z's shape ", shape(z), ", got ", shape(tensor));
  if (tensor.scalar_type() != z.scalar_type())
    fail(what, " must have z's dtype ", name(z.scalar_type()), ", got ",
         name(tensor.scalar_type()));
  on_same_device(what, tensor, z);
}

// Positive and finite in the arithmetic of a state of `type`: in float32 1e-50 is 0 and 1e50 is
// infinite.
inline void positive(const char* what, double value, ScalarType type) {
  const ScalarType compute = compute_type(type);
  const double least = compute == ScalarType::Double ? std::numeric_limits<double>::denorm_min()
                                                     : std::numeric_limits<float>::denorm_min();
  if (!(least <= value && value <= largest(type)))
    fail(what, " must be positive and finite in ", name(compute), ", got ", value);
}

inline void key(const Tensor& key) {
  if (!key.defined()) fail("key must be a tensor, got None");
  if (key.scalar_type() != ScalarType::Long || key.dim() != 1 || key.size(0) != 2)
    fail("key must be an int64 tensor of shape (2,), as stanley_fast.key makes it, got ",
         name(key.scalar_type()), " ", shape(key));
}

// Elements [first, first + n) of a state of `total`; returns the total.
inline int64_t part(int64_t n, int64_t first, std::optional<int64_t> total) {
  if (first < 0) fail("first must be 0 or more, got ", first);
  if (!total) {
    if (first) fail("total must be given when first is not 0, got first = ", first);
    return n;
  }
  if (n > *total || first > *total - n)
    fail("first + the number of elements must be at most total, got ", first, " + ", n, " > ",
         *total);
  return *total;
}

// Whether `tensor` broadcasts to z's shape, less its first `skip` dimensions.
inline bool broadcasts(const Tensor& tensor, const Tensor& z, int64_t skip = 0) {
  const int64_t missing = z.dim() - tensor.dim();
  bool does = missing >= skip;
  for (int64_t i = 0; does && i < tensor.dim(); ++i)
    does = tensor.size(i) == 1 || tensor.size(i) == z.size(missing + i);
  return does;
}

inline void gamma(const Tensor& gamma, const Tensor& z, const char* what = "gamma") {
  if (!gamma.defined()) fail(what, " must be a tensor, got None");
  const ScalarType type = compute_type(z.scalar_type());
  if (gamma.scalar_type() != type)
    fail(what, " must be ", name(type), " for a ", name(z.scalar_type()), " z, got ",
         name(gamma.scalar_type()));
  on_same_device(what, gamma, z);
  if (!broadcasts(gamma, z))
    fail(what, " must broadcast to z's shape ", shape(z), ", got ", shape(gamma));
}

inline void numbers(double noise_scale, double lo, double hi, ScalarType type) {
  if (!(noise_scale >= 0 && noise_scale <= largest(type)))
    fail("noise_scale must be 0 or more and finite, got ", noise_scale);
  if (!(lo <= hi)) fail("clamp must be (lo, hi) with lo <= hi, got (", lo, ", ", hi, ")");
}

// A stochastically rounded state is a bfloat16 one.
inline void rounding(bool stochastic, ScalarType type) {
  if (stochastic && type != ScalarType::BFloat16)
    fail("rounding must be 'nearest' for a ", name(type),
         " z, got 'stochastic', which needs torch.bfloat16");
}

inline void step(const Tensor& z, const Tensor& grad, const Tensor& key, double noise_scale,
                 double lo, double hi) {
  floating("z", z);
  same("grad", grad, z);
  checks::key(key);
  on_same_device("key", key, z);
  numbers(noise_scale, lo, hi, z.scalar_type());
}

// An expanded tensor has many elements in one place, so that it can't be written.
inline void no_overlap(const Tensor& z, const char* what = "z") {
  for (int64_t i = 0; i < z.dim(); ++i)
    if (z.size(i) > 1 && z.stride(i) == 0)
      fail(what, " must not be an expanded tensor where it is written in place: dimension ", i,
           " has stride 0");
}

// Whether two contiguous tensors have memory in common.
inline bool share_memory(const Tensor& x, const Tensor& y) {
  const char* a = static_cast<const char*>(x.data_ptr());
  const char* b = static_cast<const char*>(y.data_ptr());
  return a < b + y.numel() * y.element_size() && b < a + x.numel() * x.element_size();
}

// Where z is written in place, another input is z's own memory or none of it. One that is not
// contiguous is copied before anything is written.
inline void same_or_apart(const char* what, const Tensor& tensor, const Tensor& z,
                          const char* written = "z") {
  if (!tensor.is_contiguous() || !z.is_contiguous()) return;
  const bool same = tensor.data_ptr() == z.data_ptr() && tensor.element_size() == z.element_size();
  if (!same && share_memory(tensor, z))
    fail(what, " must not share a part of ", written, "'s memory where ", written,
         " is written in place");
}

// One that is not read where z is written at the same place, or is written too.
inline void apart(const char* what, const Tensor& tensor, const Tensor& z,
                  const char* written = "z") {
  if (tensor.is_contiguous() && z.is_contiguous() && share_memory(tensor, z))
    fail(what, " must not share ", written, "'s memory where ", written, " is written in place");
}

}  // namespace stanley::checks
