// The kernels on a CUDA device.
#include "cuda_launch.h"
#include "rca_dispatch.h"
#include "rca_kernel.h"
#include "rca_launch.h"

namespace talent {
namespace {

constexpr int kSharedWithoutAsking = 48 * 1024;

template <typename Kernel>
__global__ void __launch_bounds__(kRcaMostThreads) compute(RcaArguments arguments) {
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
  if (const cudaError_t error = read_limits(limits)) {
    return in_words(error);
  }
  const RcaLaunch launch = plan_rca(problem, method, limits);
  if (launch.error != nullptr) {
    return launch.error;
  }
  const RcaArguments arguments = rca_arguments(problem, launch);
  cudaError_t error = cudaSuccess;
  visit_kernel(launch, problem.type, [&](auto kernel) {
    void (*const function)(RcaArguments) = compute<decltype(kernel)>;
    if (launch.shared_bytes > kSharedWithoutAsking) {  // always the most there is: another thread may ask for another K
      error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, limits.shared_bytes);
    }
    if (error == cudaSuccess) {
      error = launch_kernel(function, launch.blocks, launch.threads, launch.shared_bytes, stream, arguments);
    }
  });
  return in_words(error);
}

}  // namespace talent
