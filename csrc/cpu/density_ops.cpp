// The operations mlp_log_density and mlp_log_density_backward on CPU tensors. The points are cut
// into blocks, by their number alone, that torch's threads share; each block has sums of its own,
// which are added in order: the same bits for any number of threads. Schemas are in
// stanley_fast/library.py.
#include <algorithm>

#include "density.h"
#include "net_ops.h"

namespace stanley::cpu {
namespace {

constexpr int64_t kGroups = 3, kBlocks = 32;  // groups of a block, at least; blocks, at most

template <class T>
const DensityKernels<T>& density_kernels();

template <>
const DensityKernels<float>& density_kernels<float>() {
  return level().densities->f32;
}

template <>
const DensityKernels<double>& density_kernels<double>() {
  return level().densities->f64;
}

// A call's net and points, laid out for the kernels.
template <class T>
struct Call {
  Call(const Tensor& z, const Layers& given)
      : kernels(density_kernels<T>()),
        state(dense(z)),
        layers(contiguous(given)),
        net(net_of<T>(z.size(1), layers)),
        packed(kernels.packed_size(net)) {
    kernels.pack(net, packed.get());
    args.net = &net;
    args.packed = packed.get();
    args.z = data<T>(state);
    args.points = z.size(0);
    groups = (args.points + kernels.lanes - 1) / kernels.lanes;
  }
  Call(const Call&) = delete;

  // How many groups, or blocks of as many, make a thread's while.
  int64_t grain(int64_t passes, int64_t groups_each) const {
    return kWork / (passes * products(net) * kernels.lanes * groups_each + 1) + 1;
  }

  const DensityKernels<T>& kernels;
  const Tensor state;
  const Layers layers;
  const Net<T> net;
  const Aligned<T> packed;
  DensityArgs<T> args = {};
  int64_t groups;
};

template <class T>
void value(const Tensor& z, const Layers& layers, const Tensor& out) {
  Call<T> call(z, layers);
  call.args.f = data<T>(out);
  torch::stable::parallel_for(0, call.groups, call.grain(2, 1), [&](int64_t begin, int64_t end) {
    const Aligned<T> scratch(call.kernels.scratch_size(call.net));
    call.kernels.value(call.args, scratch.get(), begin, end, nullptr);
  });
}

template <class T>
void gradient(const Tensor& grad_out, const Tensor& z, const Layers& layers, const Tensor& grad_z,
              const Tensor& grad) {
  Call<T> call(z, layers);
  const Tensor given = dense(grad_out);
  call.args.grad_out = data<T>(given);
  call.args.grad_z = grad_z.numel() ? data<T>(grad_z) : nullptr;
  call.args.with_parameters = grad.numel() > 0;
  const int64_t blocks = std::clamp<int64_t>(call.groups / kGroups, 1, kBlocks);
  const int64_t size = call.args.with_parameters ? call.kernels.sums_size(call.net) : 0;
  const Aligned<T> sums(blocks * size);
  std::fill_n(sums.get(), blocks * size, T(0));
  const int64_t grain = call.grain(8, call.groups / blocks);
  torch::stable::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    const Aligned<T> scratch(call.kernels.scratch_size(call.net));
    for (int64_t block = begin; block < end; ++block)
      call.kernels.gradient(call.args, scratch.get(), call.groups * block / blocks,
                            call.groups * (block + 1) / blocks, sums.get() + block * size);
  });
  if (!call.args.with_parameters) return;
  for (int64_t block = 1; block < blocks; ++block)
    for (int64_t i = 0; i < size; ++i) sums.get()[i] += sums.get()[block * size + i];
  call.kernels.unpack(call.net, sums.get(), data<T>(grad));
}

Tensor mlp_log_density(Tensor z, std::vector<Tensor> weights, std::vector<Tensor> biases,
                       std::string activation, double slope) {
  const Layers layers = {weights, biases, activation, slope};
  validate(z, layers);
  Tensor out = torch::stable::new_empty(z, {z.size(0)});
  z.scalar_type() == ScalarType::Float ? value<float>(z, layers, out)
                                       : value<double>(z, layers, out);
  return out;
}

std::tuple<Tensor, Tensor> mlp_log_density_backward(Tensor grad_out, Tensor z,
                                                    std::vector<Tensor> weights,
                                                    std::vector<Tensor> biases,
                                                    std::string activation, double slope,
                                                    bool with_z, bool with_parameters) {
  const Layers layers = {weights, biases, activation, slope};
  validate(z, layers);
  is_matrix("grad_out", grad_out, z, z.size(0), -1);
  int64_t parameters = 0;
  for (size_t l = 0; with_parameters && l < weights.size(); ++l)
    parameters += weights[l].numel() + biases[l].numel();
  Tensor grad_z = torch::stable::new_empty(z, {with_z ? z.size(0) : 0, z.size(1)});
  Tensor grad = torch::stable::new_empty(z, {parameters});
  z.scalar_type() == ScalarType::Float ? gradient<float>(grad_out, z, layers, grad_z, grad)
                                       : gradient<double>(grad_out, z, layers, grad_z, grad);
  return {grad_z, grad};
}

}  // namespace
}  // namespace stanley::cpu

STABLE_TORCH_LIBRARY_IMPL(stanley_fast, CPU, m) {
  m.impl("mlp_log_density", TORCH_BOX(&stanley::cpu::mlp_log_density));
  m.impl("mlp_log_density_backward", TORCH_BOX(&stanley::cpu::mlp_log_density_backward));
}
