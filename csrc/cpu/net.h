// A small fully connected net, as the CPU kernels take it.
#pragma once

#include "kernels.h"

namespace stanley::cpu {

constexpr int kMaxLayers = 8;
constexpr int64_t kMaxInput = 16, kMaxWidth = 128;

enum class Activation { kLeaky, kSilu };  // kLeaky with slope 0 is ReLU

// A fully connected net, from widths[0] to widths[layers] = 1, linear in its last layer.
template <class T>
struct Net {
  int layers;
  int64_t widths[kMaxLayers + 1];
  const T* weights[kMaxLayers];  // (widths[l + 1], widths[l]), row-major
  const T* biases[kMaxLayers];
  Activation activation;
  T slope;
};

}  // namespace stanley::cpu
