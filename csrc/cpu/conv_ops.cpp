// The operations conv_pack and conv_log_density on CPU tensors. Torch's threads share the images.
// Schemas are in stanley_fast/library.py.
#include "conv.h"
#include "net_ops.h"

namespace stanley::cpu {
namespace {

constexpr int64_t kMaxSide = 4096, kMaxChannels = 4096;

const Convs& convs() { return *level().convs; }

void is_float(const std::string& what, const Tensor& tensor) {
  if (tensor.scalar_type() != ScalarType::Float || !tensor.is_cpu())
    checks::fail(what, " must be float32 on cpu, got ", checks::name(tensor.scalar_type()), " on ",
                 checks::device(tensor));
}

void has_shape(const std::string& what, const Tensor& tensor, const std::vector<int64_t>& shape) {
  is_float(what, tensor);
  bool fits = tensor.dim() == static_cast<int64_t>(shape.size());
  std::string wanted;
  for (size_t i = 0; i < shape.size(); ++i) {
    fits = fits && tensor.size(i) == shape[i];
    wanted += (i ? ", " : "") + std::to_string(shape[i]);
  }
  if (!fits) checks::fail(what, " must be [", wanted, "], got ", checks::shape(tensor));
}

ConvNet net_of(const std::vector<int64_t>& channels, int64_t height, int64_t width, double slope) {
  ConvNet net = {};
  net.layers = static_cast<int>(channels.size()) - 1;
  between("the number of layers", net.layers, 1, kMaxConvolutions);
  between("height", height, 1, kMaxSide);
  between("width", width, 1, kMaxSide);
  for (int l = 0; l <= net.layers; ++l) {
    between("channels", channels[l], 1, kMaxChannels);
    net.channels[l] = channels[l];
  }
  if (!(slope >= 0 && slope <= checks::largest(ScalarType::Float)))
    checks::fail("slope must be 0 or more and finite, got ", slope);
  net.height = height;
  net.width = width;
  net.slope = static_cast<float>(slope);
  return net;
}

Tensor conv_pack(std::vector<Tensor> weights, std::vector<Tensor> biases, Tensor readout,
                 Tensor readout_bias) {
  if (weights.size() != biases.size())
    checks::fail("biases must be as many as weights, ", weights.size(), ", got ", biases.size());
  between("the number of layers", weights.size(), 1, kMaxConvolutions);
  if (readout.dim() != 3) checks::fail("readout must be (C, H, W), got ", checks::shape(readout));
  std::vector<int64_t> channels;
  for (size_t l = 0; l < weights.size(); ++l) {
    if (weights[l].dim() != 4)
      checks::fail("weights[", l, "] must be (O, I, 3, 3), got ", checks::shape(weights[l]));
    if (l == 0) channels.push_back(weights[0].size(1));
    channels.push_back(weights[l].size(0));
    const std::string index = "[" + std::to_string(l) + "]";
    has_shape("weights" + index, weights[l], {channels[l + 1], channels[l], 3, 3});
    has_shape("biases" + index, biases[l], {channels[l + 1]});
  }
  has_shape("readout", readout, {channels.back(), readout.size(1), readout.size(2)});
  has_shape("readout_bias", readout_bias, {1});
  const ConvNet net = net_of(channels, readout.size(1), readout.size(2), 0.0);
  std::vector<Tensor> kept = {dense(readout), dense(readout_bias)};
  ConvWeights given = {};
  given.readout = data<float>(kept[0]);
  given.readout_bias = data<float>(kept[1]);
  for (int l = 0; l < net.layers; ++l) {
    kept.push_back(dense(weights[l]));
    given.weights[l] = data<float>(kept.back());
    kept.push_back(dense(biases[l]));
    given.biases[l] = data<float>(kept.back());
  }
  Tensor packed = torch::stable::new_empty(readout, {convs().packed_size(net)});
  convs().pack(net, given, data<float>(packed));
  return packed;
}

// Multiplications of one image, forward.
int64_t products(const ConvNet& net) {
  int64_t count = 0;
  for (int l = 0; l < net.layers; ++l) count += 9 * net.channels[l] * net.channels[l + 1];
  return count * net.height * net.width;
}

std::tuple<Tensor, Tensor> conv_log_density(Tensor z, Tensor packed, std::vector<int64_t> channels,
                                            double slope, bool with_grad) {
  is_float("z", z);
  if (z.dim() != 4) checks::fail("z must be (B, C, H, W), got ", checks::shape(z));
  if (channels.empty() || z.size(1) != channels[0])
    checks::fail("z must have as many channels as the net, got ", checks::shape(z));
  const ConvNet net = net_of(channels, z.size(2), z.size(3), slope);
  has_shape("packed", packed, {convs().packed_size(net)});
  if (!packed.is_contiguous() || reinterpret_cast<uintptr_t>(packed.data_ptr()) % 64)
    checks::fail("packed must be as conv_pack gave it");
  const Tensor images = dense(z);
  Tensor f = torch::stable::new_empty(z, {z.size(0)});
  Tensor grad =
      torch::stable::new_empty(z, {with_grad ? z.size(0) : 0, z.size(1), z.size(2), z.size(3)});
  const ConvArgs args = {&net, data<float>(packed), data<float>(images), data<float>(f),
                         with_grad ? data<float>(grad) : nullptr};
  const int64_t grain = kWork / (products(net) + 1) + 1;
  torch::stable::parallel_for(0, z.size(0), grain, [&](int64_t begin, int64_t end) {
    const Aligned<float> scratch(convs().scratch_size(net));
    convs().run(args, scratch.get(), begin, end);
  });
  return {f, grad};
}

}  // namespace
}  // namespace stanley::cpu

STABLE_TORCH_LIBRARY_IMPL(stanley_fast, CPU, m) {
  m.impl("conv_pack", TORCH_BOX(&stanley::cpu::conv_pack));
  m.impl("conv_log_density", TORCH_BOX(&stanley::cpu::conv_log_density));
}
