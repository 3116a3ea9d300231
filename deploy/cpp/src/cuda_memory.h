// What is CUDA's, freed by whoever holds it; and CUDA's errors as ours. Only functions of the runtime API, which makes
// no context of its own: it works in the one that torch and ROS nodes share with it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <string>

namespace talent {

// Throws Error, with what was tried ("copy a photo to the GPU") and CUDA's words, for what is no success.
void check_cuda(cudaError_t result, const std::string& tried);

// The same for a kernel of deploy/csrc: `wrong` is what it says, nullptr for nothing.
void check_kernel(const char* wrong, const std::string& tried);

// Makes a GPU the current one of this thread, and in the end the one that was it before.
class OnDevice {
 public:
  explicit OnDevice(int device) noexcept;
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  // Throws Error where that did not succeed.
  void check() const;

 private:
  int device_;
  int before_ = -1;
  cudaError_t result_;
};

struct FreeCuda {
  void operator()(CUstream_st* stream) const noexcept { cudaStreamDestroy(stream); }
  void operator()(CUevent_st* event) const noexcept { cudaEventDestroy(event); }
  void operator()(CUgraph_st* graph) const noexcept { cudaGraphDestroy(graph); }
  void operator()(CUgraphExec_st* graph) const noexcept { cudaGraphExecDestroy(graph); }
};

using CudaStream = std::unique_ptr<CUstream_st, FreeCuda>;
using CudaEvent = std::unique_ptr<CUevent_st, FreeCuda>;
using CudaGraph = std::unique_ptr<CUgraph_st, FreeCuda>;
using CudaGraphExec = std::unique_ptr<CUgraphExec_st, FreeCuda>;

CudaStream make_stream();  // which waits for nobody's default stream
CudaEvent make_event();    // without a time

// Memory of the GPU, or of the host where copies to and from the GPU need not wait for pages. Grows, and never shrinks.
template <cudaError_t (*kAllocate)(void**, size_t), cudaError_t (*kFree)(void*)>
class CudaMemory {
 public:
  // At least `bytes`. What stood in it is lost where it has to grow. `what` names it for the Error, which is thrown
  // where there is not as much.
  std::byte* reserve(size_t bytes, const char* what) {
    if (bytes > size_) {
      memory_.reset();
      size_ = 0;
      void* memory = nullptr;
      check_cuda(kAllocate(&memory, bytes), "allocate " + std::to_string(bytes) + " bytes for " + what);
      memory_.reset(static_cast<std::byte*>(memory));
      size_ = bytes;
    }
    return memory_.get();
  }

  std::byte* get() const noexcept { return memory_.get(); }
  size_t size() const noexcept { return size_; }

 private:
  struct Free {
    void operator()(std::byte* memory) const noexcept { kFree(memory); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  size_t size_ = 0;
};

using DeviceMemory = CudaMemory<cudaMalloc, cudaFree>;
using PinnedMemory = CudaMemory<cudaMallocHost, cudaFreeHost>;

}  // namespace talent
