// Logits -> the mask on the photo: a row of the photo is a sum of a few rows of the grid, each spread over the photo's
// columns when it is first needed.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "letterbox_check.h"
#include "picture_math.h"
#include "talent/image.h"

namespace talent {
namespace {

using picture::kMostGridTaps;

constexpr int kBlock = 128;  // columns that are computed, or left out, together
constexpr int kHeld = 8;     // rows of the grid, at least as many as a row of the photo depends on
static_assert(kHeld >= kMostGridTaps, "a row of the photo must find all the rows that it depends on");

// Relative, for what FP32 rounds in a bound and in the values below it.
constexpr float kSlack = 1e-4f;

// What one side of the photo takes from the grid: pixel i depends on `taps` cells from first[i] on.
struct PhotoAxis {
  int taps;
  std::vector<int> first;
  std::vector<float> weights;  // [pixels, kMostGridTaps]

  PhotoAxis(const picture::Axis& axis, int pixels, int size, int cells)
      : taps(picture::grid_taps(size, cells)),
        first(static_cast<size_t>(pixels)),
        weights(static_cast<size_t>(pixels) * kMostGridTaps) {
    for (int i = 0; i < pixels; ++i) {
      first[static_cast<size_t>(i)] = picture::composed_taps(axis, i, size, cells, row_weights(i));
    }
  }

  float* row_weights(int pixel) { return weights.data() + int64_t{pixel} * kMostGridTaps; }
  const float* row_weights(int pixel) const { return weights.data() + int64_t{pixel} * kMostGridTaps; }
};

// Calls `visit` with the number of taps as a constant, which unrolls the loops over them.
template <typename Visit>
void visit_taps(int taps, Visit visit) {
  if (taps == 4) {
    visit(std::integral_constant<int, 4>());
  } else if (taps == 5) {
    visit(std::integral_constant<int, 5>());
  } else if (taps == 6) {
    visit(std::integral_constant<int, 6>());
  } else {
    visit(std::integral_constant<int, kMostGridTaps>());
  }
}

// The few rows of the grid, as probabilities spread over the photo's columns, that a row of the photo depends on.
class SpreadRows {
 public:
  SpreadRows(const float* logits, int grid_height, int grid_width, const PhotoAxis& columns)
      : logits_(logits),
        grid_height_(grid_height),
        grid_width_(grid_width),
        columns_(columns),
        width_(static_cast<int>(columns.first.size())),
        blocks_((width_ + kBlock - 1) / kBlock),
        cells_(static_cast<size_t>(grid_width + kBefore + kBehind)),
        held_(static_cast<size_t>(kHeld) * static_cast<size_t>(blocks_) * kBlock),
        largest_(static_cast<size_t>(kHeld) * static_cast<size_t>(blocks_)),
        next_(-kBefore) {}

  // Makes sure that `taps` rows from `first` on are held. `first` must not go back.
  void hold(int first, int taps) {
    for (next_ = std::max(next_, first); next_ < first + taps; ++next_) {
      visit_taps(columns_.taps, [&](auto count) { spread<count>(next_); });
    }
  }

  int blocks() const { return blocks_; }
  const float* row(int cell) const { return held_.data() + slot(cell) * blocks_ * kBlock; }  // [blocks, kBlock]
  const float* largest(int cell) const { return largest_.data() + slot(cell) * blocks_; }    // [blocks], magnitude

 private:
  static constexpr int kBefore = 1;  // cells beyond the edges that a pixel may name: they repeat the edge
  static constexpr int kBehind = kMostGridTaps - 1;

  static int64_t slot(int cell) { return (cell + kBefore) % kHeld; }

  template <int kTaps>
  void spread(int cell) {
    const float* logits = logits_ + int64_t{std::clamp(cell, 0, grid_height_ - 1)} * grid_width_;
    float* cells = cells_.data() + kBefore;
    std::transform(logits, logits + grid_width_, cells, picture::probability_of);
    std::fill_n(cells_.data(), kBefore, cells[0]);
    std::fill_n(cells + grid_width_, kBehind, cells[grid_width_ - 1]);

    float* to = held_.data() + slot(cell) * blocks_ * kBlock;
    for (int x = 0; x < width_; ++x) {
      const float* weights = columns_.row_weights(x);
      const float* from = cells + columns_.first[static_cast<size_t>(x)];
      float sum = 0.0f;
      for (int k = 0; k < kTaps; ++k) {
        sum += weights[k] * from[k];
      }
      to[x] = sum;
    }
    for (int block = 0; block < blocks_; ++block) {
      largest_[static_cast<size_t>(slot(cell) * blocks_ + block)] = largest_magnitude(to + int64_t{block} * kBlock);
    }
  }

  // Of kBlock values, in lanes of their own, which a compiler turns into vectors.
  static float largest_magnitude(const float* values) {
    constexpr int kLanes = 8;
    float most[kLanes] = {};
    for (int i = 0; i < kBlock; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const float magnitude = std::fabs(values[i + lane]);
        most[lane] = magnitude > most[lane] ? magnitude : most[lane];
      }
    }
    return *std::max_element(most, most + kLanes);
  }

  const float* logits_;
  const int grid_height_;
  const int grid_width_;
  const PhotoAxis& columns_;
  const int width_;
  const int blocks_;
  std::vector<float> cells_;    // a row of the grid with its edges repeated
  std::vector<float> held_;     // [kHeld, blocks, kBlock], the last block filled up with zeros
  std::vector<float> largest_;  // [kHeld, blocks]
  int next_;  // the first row that has not been spread
};

// Rows of the photo, block by block.
class MaskRows {
 public:
  MaskRows(SpreadRows& spread, const PhotoAxis& rows, int width, float threshold)
      : spread_(spread), rows_(rows), width_(width), threshold_(threshold), seen_(width) {}

  void write(int y, uint8_t* mask, float* probability) {
    const int first = rows_.first[static_cast<size_t>(y)];
    spread_.hold(first, rows_.taps);
    const int64_t before = pixels_;
    for (int block = 0; block < spread_.blocks(); ++block) {
      const int start = block * kBlock;
      const int count = std::min(kBlock, width_ - start);
      if (probability == nullptr && bound(y, first, block) <= threshold_ * (1.0f - kSlack)) {
        std::fill_n(mask + start, count, uint8_t{0});
        continue;
      }
      std::array<float, kBlock> values;
      visit_taps(rows_.taps, [&](auto taps) { sum<taps>(y, first, start, values); });
      add(values, start, count, mask + start);
      if (probability != nullptr) {
        std::copy_n(values.data(), count, probability + start);
      }
    }
    if (pixels_ > before) {
      top_ = std::min(top_, y);
      bottom_ = y + 1;
    }
  }

  MaskSummary summary() const {
    if (pixels_ == 0) {
      return {std::nullopt, 0, 0.0};
    }
    const auto is_set = [](uint8_t value) { return value != 0; };
    const auto left = std::find_if(seen_.begin(), seen_.end(), is_set) - seen_.begin();
    const auto right = seen_.rend() - std::find_if(seen_.rbegin(), seen_.rend(), is_set);
    const double units = static_cast<double>(units_) / static_cast<double>(picture::kProbabilityUnits);
    return {Box{static_cast<int>(left), top_, static_cast<int>(right), bottom_}, pixels_,
            units / static_cast<double>(pixels_)};
  }

 private:
  // No value of a block is larger than its weights make of the largest of each row.
  float bound(int y, int first, int block) const {
    const float* weights = rows_.row_weights(y);
    float most = 0.0f;
    for (int k = 0; k < rows_.taps; ++k) {
      most += std::fabs(weights[k]) * spread_.largest(first + k)[block];
    }
    return most;
  }

  template <int kTaps>
  void sum(int y, int first, int start, std::array<float, kBlock>& values) const {
    std::array<const float*, kTaps> rows;
    std::array<float, kTaps> weights;
    for (int k = 0; k < kTaps; ++k) {
      rows[static_cast<size_t>(k)] = spread_.row(first + k) + start;
      weights[static_cast<size_t>(k)] = rows_.row_weights(y)[k];
    }
    for (size_t x = 0; x < kBlock; ++x) {
      float value = 0.0f;
      for (size_t k = 0; k < kTaps; ++k) {
        value += weights[k] * rows[k][x];
      }
      values[x] = picture::clipped(value);
    }
  }

  // Loops of their own, each of which a compiler turns into vectors. Values beyond `count` are zero, which is outside.
  void add(const std::array<float, kBlock>& values, int start, int count, uint8_t* mask) {
    const float threshold = threshold_;
    int32_t units = 0;
    int32_t pixels = 0;
    for (const float value : values) {
      const bool inside = value > threshold;
      units += inside ? static_cast<int32_t>(picture::probability_units(value)) : 0;
      pixels += inside ? 1 : 0;
    }
    for (int x = 0; x < count; ++x) {
      mask[x] = values[static_cast<size_t>(x)] > threshold ? 255 : 0;
    }
    if (pixels > 0) {
      uint8_t* seen = seen_.data() + start;
      for (int x = 0; x < count; ++x) {
        seen[x] |= mask[x];
      }
    }
    units_ += units;
    pixels_ += pixels;
  }

  SpreadRows& spread_;
  const PhotoAxis& rows_;
  const int width_;
  const float threshold_;
  std::vector<uint8_t> seen_;  // [W], whether a column has a pixel inside
  int64_t units_ = 0;
  int64_t pixels_ = 0;
  int top_ = std::numeric_limits<int>::max();
  int bottom_ = 0;
};

void check(const float* logits, int grid_height, int grid_width, const Letterbox& letterbox, float threshold) {
  check_letterbox(letterbox);
  if (std::min(grid_height, grid_width) < 1 || std::max(grid_height, grid_width) > letterbox.size) {
    refuse("logits of 1 x 1 to " + std::to_string(letterbox.size) + " x " + std::to_string(letterbox.size),
           std::to_string(grid_height) + " x " + std::to_string(grid_width));
  }
  if (!(threshold >= 0.0f && threshold < 1.0f)) {
    refuse("a threshold from 0 to below 1", std::to_string(threshold));
  }
  if (!std::all_of(logits, logits + int64_t{grid_height} * grid_width, picture::is_finite)) {
    throw Error("the network gave logits that are not finite, which FP16 overflow does; export the bundle again with "
                "talent-export --fp32");
  }
}

}  // namespace

MaskSummary mask_on_photo(const float* logits, int grid_height, int grid_width, const Letterbox& letterbox,
                          float threshold, uint8_t* mask, float* probability) {
  check(logits, grid_height, grid_width, letterbox, threshold);
  const picture::Warp warp = picture::to_canvas(letterbox.width, letterbox.height, letterbox.size);
  const PhotoAxis columns(warp.columns, letterbox.width, letterbox.size, grid_width);
  const PhotoAxis rows(warp.rows, letterbox.height, letterbox.size, grid_height);
  SpreadRows spread(logits, grid_height, grid_width, columns);
  MaskRows photo(spread, rows, letterbox.width, threshold);
  for (int y = 0; y < letterbox.height; ++y) {
    const int64_t begin = int64_t{y} * letterbox.width;
    photo.write(y, mask + begin, probability == nullptr ? nullptr : probability + begin);
  }
  return photo.summary();
}

}  // namespace talent
