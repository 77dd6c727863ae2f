// What every operation on CUDA tensors shares.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "../ops.h"
#include "kernels.h"

namespace stanley::cuda {
namespace {

// torch's current stream. The function exists only in a torch with CUDA, which has loaded its
// library by the time there is a CUDA tensor.
void* current_stream(int32_t device) {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const auto function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library
               ? reinterpret_cast<Function>(dlsym(library, "aoti_torch_get_current_cuda_stream"))
               : nullptr;
  }();
  if (!function) checks::fail("this torch has no CUDA: aoti_torch_get_current_cuda_stream");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(function(device, &stream));
  return stream;
}

void check(const char* error, const char* kernel) {
  if (error) checks::fail("CUDA could not launch the ", kernel, " kernel: ", error);
}

struct Cuda {
  using Noise = cuda::Noise;

  struct Guard {
    explicit Guard(const Tensor& tensor) : device(tensor.get_device_index()) {}
    torch::stable::accelerator::DeviceGuard device;
  };

  static int32_t type() { return aoti_torch_device_type_cuda(); }

  static Noise noise(const int64_t* key, uint64_t ahead, uint32_t stream, int64_t first) {
    return {key, ahead, stream, first};
  }

  static Where here() {
    const int32_t device = torch::stable::accelerator::getCurrentDeviceIndex();
    return {device, current_stream(device)};
  }
};

}  // namespace
}  // namespace stanley::cuda
