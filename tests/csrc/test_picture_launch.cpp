// How a photo lies on the canvas, with what grid a picture kernel runs, and what is refused.
#include "picture_launch.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <vector>

#include "check.h"

using namespace talent;

namespace {

constexpr int kSides[] = {1, 2, 3, 37, 53, 333, 500, 720, 1280, 4000, 32766};
constexpr int kSizes[] = {1, 2, 28, 224, 252, 448, 518};

alignas(16) char memory[64];

PictureInput input() { return {memory, 4, 2, 12, PictureFormat::kRgb, memory, 28, PictureType::kFloat}; }

PictureMask mask() {
  auto* bytes = reinterpret_cast<uint8_t*>(memory);
  return {memory, PictureType::kFloat, 1, 8, 8, 28, 4, 2, 0.35f, 255, bytes, nullptr, nullptr};
}

// In fixed point as in double precision, and back from the canvas to where it came from.
void check_positions() {
  for (const int side : kSides) {
    for (const int other : kSides) {
      for (const int size : kSizes) {
        const double scale = std::fmin(static_cast<double>(size) / side, static_cast<double>(size) / other);
        const picture::Axis there = picture::to_canvas(side, other, size).columns;
        const picture::Axis back = picture::to_photo(side, other, size).columns;
        for (const int i : {0, side / 3, side - 1}) {
          const double exact = scale * i + (size - side * scale) / 2;
          const double canvas = static_cast<double>(there.first + there.step * i) * 0x1p-32;
          check::that(std::fabs(canvas - exact) <= 0x1p-18, "pixel %d of %d at %.9g of %d, received %.9g", i, side,
                      exact, size, canvas);
        }
        for (const int i : {0, size / 3, size - 1}) {
          const double exact = (i - (size - side * scale) / 2) / scale;
          const double photo = static_cast<double>(back.first + back.step * i) * 0x1p-32;
          check::that(std::fabs(photo - exact) <= 0x1p-18, "canvas %d of %d at %.9g of %d, received %.9g", i, size,
                      exact, side, photo);
        }
      }
    }
  }
}

// A composed map of a constant is the constant, but for what lies beyond the canvas; it never writes more than its
// taps.
void check_composed() {
  for (const int side : kSides) {
    for (const int other : {1, 500, 4000}) {
      for (const int size : kSizes) {
        for (const int cells : {1, 2, 7, 64, 128, size}) {
          if (cells > size) {
            continue;
          }
          const picture::Axis axis = picture::to_canvas(side, other, size).columns;
          // No longer than it must be, so that AddressSanitizer sees its end.
          std::vector<float> weights(static_cast<size_t>(picture::grid_taps(size, cells)));
          check::that(weights.size() <= picture::kMostGridTaps, "at most %d taps, received %zu", picture::kMostGridTaps,
                      weights.size());
          for (int i = 0; i < side; i += side < 100 ? 1 : 97) {
            const int first = picture::composed_taps(axis, i, size, cells, weights.data());
            float beyond[picture::kCubicTaps];
            const int canvas = picture::cubic_taps(axis, i, beyond);
            float expected = 0.0f;
            for (int k = 0; k < picture::kCubicTaps; ++k) {
              expected += canvas + k >= 0 && canvas + k < size ? beyond[k] : 0.0f;
            }
            float sum = 0.0f;
            for (const float weight : weights) {
              sum += weight;
            }
            check::that(std::fabs(sum - expected) < 2e-6f, "weights of pixel %d of %d to sum up to %g, received %g", i,
                        side, expected, sum);
            check::that(first >= -1 && first < cells, "pixel %d of %d to begin in the grid of %d, received %d", i, side,
                        cells, first);
          }
        }
      }
    }
  }
}

// Every pixel is some block's, and the rows of the grid that a block holds are enough for each of its rows.
void check_grids() {
  for (const int width : kSides) {
    for (const int height : kSides) {
      for (const int size : kSizes) {
        PictureMask problem = mask();
        problem.width = width;
        problem.height = height;
        problem.size = size;
        problem.grid_width = problem.grid_height = (size + 3) / 4;
        problem.batch = 2;
        PictureMaskArguments given = {};
        const PictureLaunch launch = plan_picture_mask(problem, given);
        const int64_t down = given.blocks_per_mask / given.blocks_across;
        check::that(launch.error == nullptr && int64_t{given.blocks_across} * kMaskColumns >= width &&
                        down * given.rows >= height && launch.blocks == 2 * int64_t{given.blocks_per_mask},
                    "all of %d x %d to be computed, received %u blocks across and %lld down (%s)", width, height,
                    given.blocks_across, static_cast<long long>(down), launch.error);
        check::that(launch.shared_bytes <= 48 * 1024, "no more shared memory than any device has, received %d",
                    launch.shared_bytes);
        float weights[picture::kMostGridTaps];
        const int taps = picture::grid_taps(size, given.grid_height);
        for (int block = 0; block < down; block += 1 + static_cast<int>(down) / 50) {
          const int begin = block * given.rows;
          const int end = std::min(begin + given.rows, height);
          const int first = picture::composed_taps(given.warp.rows, begin, size, given.grid_height, weights);
          const int last = picture::composed_taps(given.warp.rows, end - 1, size, given.grid_height, weights);
          check::that(last - first + taps <= given.cells && first <= last,
                      "%d rows of the grid to be enough for rows %d to %d of %d, received a need of %d", given.cells,
                      begin, end, height, last - first + taps);
        }
      }
    }
  }
  PictureInputArguments given = {};
  const PictureLaunch launch = plan_picture_input(input(), given);
  check::that(launch.error == nullptr && launch.blocks * launch.threads >= 28 * 28 && launch.blocks == 4,
              "4 blocks for 28 x 28, received %lld (%s)", static_cast<long long>(launch.blocks), launch.error);
}

void check_input_refused(const char* words, void (*change)(PictureInput&)) {
  PictureInput problem = input();
  change(problem);
  const char* error = picture_input_error(problem);
  check::that(error != nullptr && strstr(error, words) != nullptr, "an error about \"%s\", received %s", words, error);
}

void check_mask_refused(const char* words, void (*change)(PictureMask&)) {
  PictureMask problem = mask();
  change(problem);
  const char* error = picture_mask_error(problem);
  check::that(error != nullptr && strstr(error, words) != nullptr, "an error about \"%s\", received %s", words, error);
}

void check_refused() {
  check::that(picture_input_error(input()) == nullptr, "no error, received %s", picture_input_error(input()));
  check_input_refused("format", [](PictureInput& it) { it.format = PictureFormat{5}; });
  check_input_refused("type", [](PictureInput& it) { it.type = PictureType{2}; });
  check_input_refused("from 1 to 32766", [](PictureInput& it) { it.width = 0; });
  check_input_refused("from 1 to 32766", [](PictureInput& it) { it.height = 32767; });
  check_input_refused("from 1 to 32766", [](PictureInput& it) { it.size = -1; });
  check_input_refused("stride", [](PictureInput& it) { it.stride = 11; });
  check_input_refused("stride", [](PictureInput& it) { it.format = PictureFormat::kBgra; });
  check_input_refused("pointers", [](PictureInput& it) { it.pixels = nullptr; });
  check_input_refused("aligned", [](PictureInput& it) { it.output = memory + 2; });

  check::that(picture_mask_error(mask()) == nullptr, "no error, received %s", picture_mask_error(mask()));
  check_mask_refused("type", [](PictureMask& it) { it.type = PictureType{-1}; });
  check_mask_refused("from 1 to 32766", [](PictureMask& it) { it.height = 0; });
  check_mask_refused("at most the size of the canvas", [](PictureMask& it) { it.grid_width = 29; });
  check_mask_refused("at least one cell", [](PictureMask& it) { it.grid_height = 0; });
  check_mask_refused("threshold", [](PictureMask& it) { it.threshold = 1.0f; });
  check_mask_refused("threshold", [](PictureMask& it) { it.threshold = std::nanf(""); });
  check_mask_refused("inside", [](PictureMask& it) { it.inside = 0; });
  check_mask_refused("batch", [](PictureMask& it) { it.batch = -1; });
  check_mask_refused("pointers", [](PictureMask& it) { it.mask = nullptr; });
  check_mask_refused("aligned", [](PictureMask& it) { it.totals = reinterpret_cast<PictureTotals*>(memory + 4); });

  PictureMask problem = mask();
  PictureMaskArguments given = {};
  problem.batch = 2000000000;
  check::that(plan_picture_mask(problem, given).error == nullptr, "one block a mask to fit into a launch");
  problem.height = 33;
  check::that(plan_picture_mask(problem, given).error != nullptr, "more blocks than a launch has to be an error");
  problem = mask();
  problem.batch = 0;
  problem.logits = problem.mask = nullptr;
  const PictureLaunch nothing = plan_picture_mask(problem, given);
  check::that(nothing.error == nullptr && nothing.blocks == 0, "no expression to be no error, received %s",
              nothing.error);
}

void check_summary() {
  const PictureTotals totals = {3 << 19, 2, 0, {40, 30}, {14, 25}};
  const PictureSummary some = picture_summary(totals, 50, 48);
  check::that(some.finite && some.pixels == 2 && some.score == 0.75, "a score of 0.75, received %g", some.score);
  check::that(some.x0 == 10 && some.y0 == 18 && some.x1 == 14 && some.y1 == 25, "10 18 14 25, received %d %d %d %d",
              some.x0, some.y0, some.x1, some.y1);
  const PictureSummary none = picture_summary({0, 0, 1, {0, 0}, {0, 0}}, 50, 48);
  check::that(!none.finite && none.score == 0.0 && none.x0 == 0 && none.x1 == 0, "an empty mask to have no box");
}

}  // namespace

int main() {
  check_positions();
  check_composed();
  check_grids();
  check_refused();
  check_summary();
  return check::result();
}
