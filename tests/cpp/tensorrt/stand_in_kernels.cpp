// The picture kernels' own code on the emulated device, put into the streams of the stand-in for CUDA.
#include <cstdlib>
#include <cstring>

#include "emulated_picture.h"
#include "picture_kernel.h"
#include "picture_launch.h"
#include "picture_math.h"
#include "stand_in_cuda.h"

namespace talent {
namespace {

size_t bytes_of(PictureType type) { return type == PictureType::kFloat ? 4 : 2; }

size_t product(int64_t one, int64_t other, int64_t third) { return static_cast<size_t>(one * other * third); }

// The memory is the GPU's, or the kernel could not reach it.
const char* checked(const char* wrong, bool reached) {
  return wrong != nullptr || reached ? wrong : "an illegal memory access was encountered";
}

// What goes wrong when the work is done comes too late to be told.
void must_work(const char* wrong) {
  if (wrong != nullptr) {
    std::abort();
  }
}

}  // namespace

const char* picture_to_input(const PictureInput& problem, CUstream_st* stream) {
  const size_t pixels = product(problem.height - 1, problem.stride, 1) +
                        product(problem.width, picture::bytes_per_pixel(problem.format), 1);
  const char* wrong = checked(picture_input_error(problem),
                              stand_in::is_on_gpu(problem.pixels, pixels) &&
                                  stand_in::is_on_gpu(problem.output, product(3, problem.size, problem.size) *
                                                                          bytes_of(problem.type)));
  if (wrong == nullptr) {
    stand_in::enqueue(stream, [=] { must_work(emulated::picture_to_input(problem, emulated::Order::kForward)); });
  }
  return wrong;
}

const char* logits_to_mask(const PictureMask& problem, CUstream_st* stream) {
  const size_t pixels = product(problem.batch, problem.height, problem.width);
  const size_t cells = product(problem.batch, problem.grid_height, problem.grid_width);
  const bool reached =
      stand_in::is_on_gpu(problem.logits, cells * bytes_of(problem.type)) &&
      stand_in::is_on_gpu(problem.mask, pixels) &&
      (problem.probability == nullptr || stand_in::is_on_gpu(problem.probability, pixels * sizeof(float))) &&
      stand_in::is_on_gpu(problem.totals, static_cast<size_t>(problem.batch) * sizeof(PictureTotals));
  const char* wrong = checked(picture_mask_error(problem), reached);
  if (wrong == nullptr) {
    stand_in::enqueue(stream, [=] { must_work(emulated::logits_to_mask(problem, emulated::Order::kForward)); });
  }
  return wrong;
}

}  // namespace talent
