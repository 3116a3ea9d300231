// The picture kernels on a CUDA device.
#include "cuda_launch.h"
#include "picture_device.h"
#include "picture_kernel.h"
#include "picture_launch.h"

namespace talent {
namespace {

template <typename Kernel, typename Arguments>
__global__ void __launch_bounds__(kPictureThreads) compute(Arguments arguments) {
  Kernel::run(arguments);
}

// `Kernel` stands for its type only.
template <typename Kernel, typename Arguments>
cudaError_t start(Kernel, const PictureLaunch& launch, const Arguments& arguments, CUstream_st* stream) {
  void (*const function)(Arguments) = compute<Kernel>;
  return launch_kernel(function, launch.blocks, launch.threads, launch.shared_bytes, stream, arguments);
}

}  // namespace

const char* picture_to_input(const PictureInput& problem, CUstream_st* stream) {
  PictureInputArguments arguments = {};
  const PictureLaunch launch = plan_picture_input(problem, arguments);
  if (launch.error != nullptr) {
    return launch.error;
  }
  cudaError_t error = cudaSuccess;
  visit_input_kernel(problem.type, problem.format,
                     [&](auto kernel) { error = start(kernel, launch, arguments, stream); });
  return in_words(error);
}

const char* logits_to_mask(const PictureMask& problem, CUstream_st* stream) {
  PictureMaskArguments arguments = {};
  const PictureLaunch launch = plan_picture_mask(problem, arguments);
  if (launch.error != nullptr || launch.blocks == 0) {
    return launch.error;
  }
  cudaError_t error = cudaSuccess;
  if (problem.totals != nullptr) {
    error = cudaMemsetAsync(problem.totals, 0, static_cast<size_t>(problem.batch) * sizeof(PictureTotals), stream);
  }
  if (error == cudaSuccess) {
    visit_mask_kernel(problem.type, [&](auto kernel) { error = start(kernel, launch, arguments, stream); });
  }
  return in_words(error);
}

}  // namespace talent
