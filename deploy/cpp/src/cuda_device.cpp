#include "cuda_device.h"

#include <cuda_runtime_api.h>

#include "cuda_memory.h"
#include "talent/errors.h"

namespace talent {
namespace {

bool has_driver() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess && version > 0;
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, which, device), "tell the compute capability of a GPU");
  return value;
}

}  // namespace

std::string gpu_architecture(int device, const std::string& runtime) {
  int count = 0;
  const cudaError_t result = cudaGetDeviceCount(&count);
  if (result == cudaErrorNoDevice || (result == cudaSuccess && count == 0) || !has_driver()) {
    cudaGetLastError();
    throw Error(runtime + " needs an NVIDIA GPU and its driver, and none was found (nvidia-smi lists them); use the "
                "backend onnxruntime instead");
  }
  check_cuda(result, "count the GPUs for " + runtime);
  if (device < 0 || device >= count) {
    throw Error("expected the number of a GPU from 0 to " + std::to_string(count - 1) + ", received " +
                std::to_string(device) + "; nvidia-smi lists them");
  }
  return "sm" + std::to_string(attribute(cudaDevAttrComputeCapabilityMajor, device)) +
         std::to_string(attribute(cudaDevAttrComputeCapabilityMinor, device));
}

}  // namespace talent
