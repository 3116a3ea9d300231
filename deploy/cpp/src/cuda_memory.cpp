#include "cuda_memory.h"

#include "talent/errors.h"

namespace talent {
namespace {

// What to do about an error.
const char* remedy(cudaError_t error) {
  if (error == cudaErrorMemoryAllocation) {
    return "; close what else uses this GPU, or call from fewer threads at once";
  }
  return "; where it goes on, start this process again: after some errors CUDA refuses all further calls of a process";
}

}  // namespace

void check_cuda(cudaError_t result, const std::string& tried) {
  if (result != cudaSuccess) {
    cudaGetLastError();  // it is told here, and not left for somebody else's next call to find
    throw Error("expected CUDA to " + tried + ", received " + cudaGetErrorName(result) + " (" +
                cudaGetErrorString(result) + ")" + remedy(result));
  }
}

void check_kernel(const char* wrong, const std::string& tried) {
  if (wrong != nullptr) {
    throw Error("expected CUDA to " + tried + ", received: " + wrong + remedy(cudaErrorUnknown));
  }
}

OnDevice::OnDevice(int device) noexcept : device_(device), result_(cudaGetDevice(&before_)) {
  if (result_ == cudaSuccess && before_ != device_) {
    result_ = cudaSetDevice(device_);
  }
}

OnDevice::~OnDevice() {
  if (result_ == cudaSuccess && before_ != device_) {
    cudaSetDevice(before_);
  }
}

void OnDevice::check() const { check_cuda(result_, "use GPU " + std::to_string(device_)); }

CudaStream make_stream() {
  cudaStream_t stream = nullptr;
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "make a stream");
  return CudaStream(stream);
}

CudaEvent make_event() {
  cudaEvent_t event = nullptr;
  check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "make an event");
  return CudaEvent(event);
}

}  // namespace talent
