#include "picture_launch.h"

#include <algorithm>
#include <limits>

namespace talent {
namespace {

constexpr int64_t kMostBlocks = std::numeric_limits<int32_t>::max();

int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

bool is_side(int64_t side) { return side >= 1 && side <= picture::kMostSide; }

size_t bytes_of(PictureType type) { return type == PictureType::kFloat ? 4 : 2; }

bool is_aligned(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

// Rows of the grid that `rows` rows of the photo in a block depend on, at most.
int64_t cells_of(const PictureMask& problem, const picture::Axis& axis, int64_t rows) {
  const int64_t canvas = ((rows - 1) * axis.step >> 32) + 1;
  const int64_t steps = std::max<int64_t>(problem.size - 1, 1);
  return divide_up(canvas * (problem.grid_height - 1), steps) +
         picture::grid_taps(static_cast<int>(problem.size), static_cast<int>(problem.grid_height));
}

}  // namespace

const char* picture_input_error(const PictureInput& problem) {
  if (problem.format < PictureFormat::kRgb || problem.format > PictureFormat::kGrey) {
    return "picture: expected the format to be RGB, BGR, RGBA, BGRA or grey";
  }
  if (problem.type != PictureType::kFloat && problem.type != PictureType::kHalf) {
    return "picture: expected the type to be float or half";
  }
  if (!is_side(problem.width) || !is_side(problem.height) || !is_side(problem.size)) {
    return "picture: expected width, height and size from 1 to 32766";
  }
  if (problem.stride < problem.width * picture::bytes_per_pixel(problem.format)) {
    return "picture: expected a stride of at least the bytes of a row";
  }
  if (problem.pixels == nullptr || problem.output == nullptr || !is_aligned(problem.output, bytes_of(problem.type))) {
    return "picture: expected pointers to pixels and output that are aligned to their type";
  }
  return nullptr;
}

const char* picture_mask_error(const PictureMask& problem) {
  if (problem.type != PictureType::kFloat && problem.type != PictureType::kHalf) {
    return "mask: expected the type to be float or half";
  }
  if (!is_side(problem.width) || !is_side(problem.height) || !is_side(problem.size)) {
    return "mask: expected width, height and size from 1 to 32766";
  }
  if (problem.grid_width < 1 || problem.grid_width > problem.size || problem.grid_height < 1 ||
      problem.grid_height > problem.size) {
    return "mask: expected logits of at least one cell and at most the size of the canvas";
  }
  if (!(problem.threshold >= 0.0f && problem.threshold < 1.0f)) {
    return "mask: expected a threshold from 0 to below 1";
  }
  if (problem.inside == 0) {
    return "mask: expected the value of a pixel inside to differ from 0";
  }
  if (problem.batch < 0 || problem.batch > kMostBlocks) {
    return "mask: expected a batch from 0 to 2147483647";
  }
  if (problem.batch > 0 && (problem.logits == nullptr || problem.mask == nullptr ||
                            !is_aligned(problem.logits, bytes_of(problem.type)) ||
                            !is_aligned(problem.probability, alignof(float)) ||
                            !is_aligned(problem.totals, alignof(PictureTotals)))) {
    return "mask: expected pointers to logits, mask, probability and totals that are aligned to their type";
  }
  return nullptr;
}

PictureSummary picture_summary(const PictureTotals& totals, int64_t width, int64_t height) {
  PictureSummary summary = {totals.not_finite == 0, totals.pixels, 0.0, 0, 0, 0, 0};
  if (totals.pixels > 0) {
    summary.score = static_cast<double>(totals.probability) / picture::kProbabilityUnits / totals.pixels;
    summary.x0 = static_cast<int32_t>(width - totals.before[0]);
    summary.y0 = static_cast<int32_t>(height - totals.before[1]);
    summary.x1 = static_cast<int32_t>(totals.behind[0]);
    summary.y1 = static_cast<int32_t>(totals.behind[1]);
  }
  return summary;
}

PictureLaunch plan_picture_input(const PictureInput& problem, PictureInputArguments& arguments) {
  PictureLaunch launch = {picture_input_error(problem), kPictureThreads, 0, 0};
  if (launch.error == nullptr) {
    arguments = {static_cast<const uint8_t*>(problem.pixels),
                 problem.output,
                 problem.stride,
                 picture::to_photo(problem.width, problem.height, problem.size),
                 picture::channels_of(problem.format),
                 static_cast<int>(problem.width),
                 static_cast<int>(problem.height),
                 static_cast<int>(problem.size)};
    launch.blocks = divide_up(problem.size * problem.size, kPictureThreads);
  }
  return launch;
}

PictureLaunch plan_picture_mask(const PictureMask& problem, PictureMaskArguments& arguments) {
  PictureLaunch launch = {picture_mask_error(problem), kPictureThreads, 0, 0};
  if (launch.error != nullptr) {
    return launch;
  }
  const picture::Warp warp = picture::to_canvas(problem.width, problem.height, problem.size);
  int rows = kMostMaskRows;
  while (rows > 1 && cells_of(problem, warp.rows, rows) > kMostMaskCells) {
    rows /= 2;
  }
  const int64_t cells = cells_of(problem, warp.rows, rows);
  const int64_t blocks_across = divide_up(problem.width, kMaskColumns);
  const int64_t blocks_per_mask = blocks_across * divide_up(problem.height, rows);
  launch.blocks = problem.batch * blocks_per_mask;
  if (launch.blocks > kMostBlocks) {
    launch.error = "mask: expected batch times photo to fit into one launch; compute it in parts";
    return launch;
  }
  const int64_t axes = (kMaskColumns + rows) * (1 + picture::kMostGridTaps);  // a first cell and its weights each
  launch.shared_bytes = static_cast<int>((axes + cells * kMaskColumns) * 4);
  arguments = {problem.logits,
               problem.mask,
               problem.probability,
               problem.totals,
               warp,
               static_cast<int>(problem.grid_width),
               static_cast<int>(problem.grid_height),
               static_cast<int>(problem.size),
               static_cast<int>(problem.width),
               static_cast<int>(problem.height),
               rows,
               static_cast<int>(cells),
               static_cast<uint32_t>(blocks_across),
               static_cast<uint32_t>(blocks_per_mask),
               problem.threshold,
               problem.inside};
  return launch;
}

}  // namespace talent
