#include "emulated_picture.h"

#include <algorithm>
#include <vector>

#include "export.h"
#include "picture_device.h"

namespace emulated {

const char* picture_to_input(const talent::PictureInput& problem, Order order) {
  talent::PictureInputArguments arguments = {};
  const talent::PictureLaunch plan = talent::plan_picture_input(problem, arguments);
  const char* wrong = plan.error;
  if (wrong == nullptr) {
    talent::visit_input_kernel(problem.type, problem.format, [&](auto kernel) {
      wrong = launch(plan.blocks, plan.threads, plan.shared_bytes, order, [&] { decltype(kernel)::run(arguments); });
    });
  }
  return wrong;
}

const char* logits_to_mask(const talent::PictureMask& problem, Order order) {
  talent::PictureMaskArguments arguments = {};
  const talent::PictureLaunch plan = talent::plan_picture_mask(problem, arguments);
  const char* wrong = plan.error;
  if (wrong == nullptr) {
    if (problem.totals != nullptr) {
      std::fill_n(problem.totals, problem.batch, talent::PictureTotals{});
    }
    talent::visit_mask_kernel(problem.type, [&](auto kernel) {
      wrong = launch(plan.blocks, plan.threads, plan.shared_bytes, order, [&] { decltype(kernel)::run(arguments); });
    });
  }
  return wrong;
}

}  // namespace emulated

// For ctypes.
extern "C" TALENT_EXPORT const char* talent_picture_to_input_emulated(const void* pixels, int64_t width, int64_t height,
                                                                      int64_t stride, int32_t format, void* output,
                                                                      int64_t size, int32_t type, int32_t order) {
  using namespace talent;
  return emulated::picture_to_input(
      {pixels, width, height, stride, PictureFormat{format}, output, size, PictureType{type}}, emulated::Order{order});
}

// `summaries` receives, for each mask: finite, pixels, score, x0, y0, x1, y1.
extern "C" TALENT_EXPORT const char* talent_logits_to_mask_emulated(
    const void* logits, int32_t type, int64_t batch, int64_t grid_width, int64_t grid_height, int64_t size,
    int64_t width, int64_t height, float threshold, uint8_t inside, uint8_t* mask, float* probability,
    double* summaries, int32_t order) {
  using namespace talent;
  std::vector<PictureTotals> totals(static_cast<size_t>(batch));
  const PictureMask problem = {logits, PictureType{type}, batch,       grid_width, grid_height, size,
                               width,  height,            threshold,   inside,     mask,        probability,
                               totals.data()};
  const char* wrong = emulated::logits_to_mask(problem, emulated::Order{order});
  for (size_t i = 0; i < totals.size(); ++i) {
    const PictureSummary summary = picture_summary(totals[i], width, height);
    const double values[] = {summary.finite ? 1.0 : 0.0,
                             static_cast<double>(summary.pixels),
                             summary.score,
                             static_cast<double>(summary.x0),
                             static_cast<double>(summary.y0),
                             static_cast<double>(summary.x1),
                             static_cast<double>(summary.y1)};
    std::copy_n(values, 7, summaries + i * 7);
  }
  return wrong;
}
