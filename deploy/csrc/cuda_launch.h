// A launch whose errors are its own: neither those of an earlier call, nor left for a later one to find.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace talent {

template <typename Arguments>
cudaError_t launch_kernel(void (*kernel)(Arguments), int64_t blocks, int threads, int shared_bytes, cudaStream_t stream,
                          Arguments arguments) {
  void* parameters[] = {&arguments};
  return cudaLaunchKernel(kernel, dim3(static_cast<uint32_t>(blocks)), dim3(static_cast<uint32_t>(threads)), parameters,
                          static_cast<size_t>(shared_bytes), stream);
}

// CUDA's words for an error, which is taken back; nullptr where there is none.
inline const char* in_words(cudaError_t error) {
  if (error == cudaSuccess) {
    return nullptr;
  }
  cudaGetLastError();
  return cudaGetErrorString(error);
}

}  // namespace talent
