// What the value and the gradient of a convolutional net on the CPU take. conv.cpp is compiled once
// per vector level and fills a table each.
#pragma once

#include <cstdint>

namespace stanley::cpu {

constexpr int kMaxConvolutions = 32;

// 3x3 convolutions with stride 1 and zeros around the image, each with a leaky ReLU; then one
// linear read-out of the whole last feature map. float32.
struct ConvNet {
  int layers;
  int64_t channels[kMaxConvolutions + 1];  // of the image, then of each layer
  int64_t height, width;
  float slope;
};

struct ConvWeights {
  const float* weights[kMaxConvolutions];  // (channels[l + 1], channels[l], 3, 3)
  const float* biases[kMaxConvolutions];   // (channels[l + 1],)
  const float* readout;                    // (channels[layers], height, width)
  const float* readout_bias;               // (1,)
};

struct ConvArgs {
  const ConvNet* net;
  const float* packed;  // the weights as `pack` lays them out
  const float* z;       // (images, channels[0], height, width), contiguous
  float* f;             // (images,)
  float* grad;          // like z, or null where the values are enough
};

struct Convs {
  int64_t (*packed_size)(const ConvNet&);
  void (*pack)(const ConvNet&, const ConvWeights&, float* packed);
  int64_t (*scratch_size)(const ConvNet&);
  // The images [begin, end). All memory but z, f and grad is aligned to 64 bytes.
  void (*run)(const ConvArgs&, float* scratch, int64_t begin, int64_t end);
};

}  // namespace stanley::cpu
