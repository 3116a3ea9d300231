// The kernels on a CUDA device.
#include <cuda_runtime.h>

#include "rca_device.h"
#include "rca_kernel.h"
#include "rca_launch.h"

namespace talent {
namespace {

constexpr int kMostThreads = 256;
constexpr int kSharedWithoutAsking = 48 * 1024;

template <typename Kernel>
__global__ void __launch_bounds__(kMostThreads) compute(const RcaArguments arguments) {
  Kernel::run(arguments);
}

cudaError_t read_limits(DeviceLimits& limits) {
  int device = 0;
  int major = 0;
  int minor = 0;
  cudaError_t error = cudaGetDevice(&device);
  const auto read = [&](int& value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) {
      error = cudaDeviceGetAttribute(&value, attribute, device);
    }
  };
  read(major, cudaDevAttrComputeCapabilityMajor);
  read(minor, cudaDevAttrComputeCapabilityMinor);
  read(limits.multiprocessors, cudaDevAttrMultiProcessorCount);
  read(limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  limits.capability = major * 10 + minor;
  return error;
}

}  // namespace

const char* rca_cost_aggregation(const RcaProblem& problem, RcaMethod method, CUstream_st* stream) {
  if (const char* wrong = rca_problem_error(problem)) {
    return wrong;
  }
  DeviceLimits limits = {};
  cudaError_t error = read_limits(limits);
  if (error != cudaSuccess) {
    return cudaGetErrorString(error);
  }
  const RcaLaunch launch = plan_rca(problem, method, limits);
  if (launch.error != nullptr) {
    return launch.error;
  }
  const RcaArguments arguments = rca_arguments(problem, launch);
  visit_kernel(launch, problem.type, [&](auto kernel) {
    void (*const function)(RcaArguments) = compute<decltype(kernel)>;
    if (launch.shared_bytes > kSharedWithoutAsking) {
      error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, launch.shared_bytes);
    }
    if (error == cudaSuccess) {
      function<<<static_cast<uint32_t>(launch.blocks), launch.threads, launch.shared_bytes, stream>>>(arguments);
      error = cudaGetLastError();
    }
  });
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace talent
