// What the operations on small nets share: the net as tensors, its validation, aligned memory.
#pragma once

#include <memory>
#include <new>

#include "../ops.h"
#include "net.h"

namespace stanley::cpu {

// Multiplications and additions that a thread should have at least: some 20 us of work.
constexpr int64_t kWork = 1 << 20;

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

// A net as its operations take it.
struct Layers {
  std::vector<Tensor> weights, biases;
  std::string activation;
  double slope;
};

inline Layers contiguous(Layers layers) {
  for (auto* list : {&layers.weights, &layers.biases})
    for (Tensor& tensor : *list) tensor = dense(tensor);
  return layers;
}

inline void between(const char* what, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most)
    checks::fail(what, " must be from ", least, " to ", most, ", got ", value);
}

inline void is_matrix(const std::string& what, const Tensor& tensor, const Tensor& z, int64_t rows,
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

inline void validate(const Tensor& z, const Layers& net) {
  if (z.scalar_type() != ScalarType::Float && z.scalar_type() != ScalarType::Double)
    checks::fail("z must be float32 or float64, got ", checks::name(z.scalar_type()));
  if (z.dim() != 2) checks::fail("z must be (B, d), got ", checks::shape(z));
  between("z's width", z.size(1), 1, kMaxInput);
  if (net.weights.size() != net.biases.size())
    checks::fail("biases must be as many as weights, ", net.weights.size(), ", got ",
                 net.biases.size());
  const int layers = static_cast<int>(net.weights.size());
  between("the number of layers", layers, 2, kMaxLayers);
  int64_t width = z.size(1);
  for (int l = 0; l < layers; ++l) {
    const std::string index = std::string("[") + std::to_string(l) + "]";
    const int64_t out = l + 1 == layers ? 1 : net.biases[l].numel();
    is_matrix("biases" + index, net.biases[l], z, out, -1);
    is_matrix("weights" + index, net.weights[l], z, out, width);
    between("the width of a layer", out, 1, kMaxWidth);
    width = out;
  }
  if (net.activation != "leaky_relu" && net.activation != "silu")
    checks::fail("activation must be 'leaky_relu' or 'silu', got '", net.activation, "'");
  if (!(net.slope >= 0 && net.slope <= checks::largest(z.scalar_type())))
    checks::fail("slope must be 0 or more and finite, got ", net.slope);
}

template <class T>
Net<T> net_of(int64_t width, const Layers& layers) {
  Net<T> net = {};
  net.layers = static_cast<int>(layers.weights.size());
  net.widths[0] = width;
  for (int l = 0; l < net.layers; ++l) {
    net.weights[l] = data<T>(layers.weights[l]);
    net.biases[l] = data<T>(layers.biases[l]);
    net.widths[l + 1] = layers.biases[l].numel();
  }
  net.activation = layers.activation == "silu" ? Activation::kSilu : Activation::kLeaky;
  net.slope = static_cast<T>(layers.slope);
  return net;
}

// Of one pass over one point.
template <class T>
int64_t products(const Net<T>& net) {
  int64_t count = 0;
  for (int l = 0; l < net.layers; ++l) count += net.widths[l] * net.widths[l + 1];
  return count;
}

}  // namespace stanley::cpu
