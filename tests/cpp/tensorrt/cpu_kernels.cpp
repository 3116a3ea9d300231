// In the place of stand_in_kernels.cpp where the kernels' own code is not what is tested, and many frames are run: the
// same by the CPU's way of talent/image.h, in FP32.
#include <algorithm>
#include <cmath>

#include "picture_kernel.h"
#include "picture_math.h"
#include "stand_in_cuda.h"
#include "talent/image.h"

namespace talent {
namespace {

void write_input(const PictureInput& problem) {
  preprocess({static_cast<const uint8_t*>(problem.pixels), static_cast<int>(problem.width),
              static_cast<int>(problem.height), problem.stride, static_cast<PixelFormat>(problem.format)},
             static_cast<int>(problem.size), static_cast<float*>(problem.output));
}

PictureTotals totals_of(const MaskSummary& summary, int width, int height) {
  const Box box = summary.box.value_or(Box{width, height, 0, 0});
  const double units = summary.score * static_cast<double>(summary.pixels) * picture::kProbabilityUnits;
  return {static_cast<uint64_t>(std::llround(units)),
          static_cast<uint32_t>(summary.pixels),
          0,
          {static_cast<uint32_t>(width - box.x0), static_cast<uint32_t>(height - box.y0)},
          {static_cast<uint32_t>(box.x1), static_cast<uint32_t>(box.y1)}};
}

void write_masks(const PictureMask& problem) {
  const int width = static_cast<int>(problem.width), height = static_cast<int>(problem.height);
  const int rows = static_cast<int>(problem.grid_height), columns = static_cast<int>(problem.grid_width);
  const int64_t area = problem.width * problem.height;
  for (int64_t index = 0; index < problem.batch; ++index) {
    const float* logits = static_cast<const float*>(problem.logits) + index * rows * columns;
    if (!std::all_of(logits, logits + rows * columns, picture::is_finite)) {
      problem.totals[index] = {0, 0, 1, {0, 0}, {0, 0}};
      continue;
    }
    float* probability = problem.probability == nullptr ? nullptr : problem.probability + index * area;
    const MaskSummary summary = mask_on_photo(logits, rows, columns, {width, height, static_cast<int>(problem.size)},
                                              problem.threshold, problem.mask + index * area, probability);
    problem.totals[index] = totals_of(summary, width, height);
  }
}

}  // namespace

const char* picture_to_input(const PictureInput& problem, CUstream_st* stream) {
  if (problem.type != PictureType::kFloat) {
    return "only FP32 is stood for";
  }
  stand_in::enqueue(stream, [problem] { write_input(problem); });
  return nullptr;
}

const char* logits_to_mask(const PictureMask& problem, CUstream_st* stream) {
  if (problem.type != PictureType::kFloat) {
    return "only FP32 is stood for";
  }
  stand_in::enqueue(stream, [problem] { write_masks(problem); });
  return nullptr;
}

}  // namespace talent
