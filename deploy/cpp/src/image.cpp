#include "talent/image.h"

#include <algorithm>
#include <string>
#include <vector>

#include "letterbox_check.h"
#include "picture_math.h"

namespace talent {
namespace {

using picture::kCubicTaps;

// What one side of the canvas takes from the photo: index i depends on four pixels from first[i] on. Those beyond the
// photo weigh nothing, so that covered[i] of the weights remain: exactly 1 where all are inside, nothing outside begin
// and end.
struct CanvasAxis {
  std::vector<int> first;
  std::vector<float> weights;  // [S, 4]
  std::vector<float> covered;
  int begin;
  int end;

  CanvasAxis(const picture::Axis& axis, int size, int side)
      : first(static_cast<size_t>(size)),
        weights(static_cast<size_t>(size) * kCubicTaps),
        covered(static_cast<size_t>(size)),
        begin(size),
        end(0) {
    for (int i = 0; i < size; ++i) {
      float taps[kCubicTaps];
      const int left = picture::cubic_taps(axis, i, taps);
      float inside = 0.0f;
      for (int k = 0; k < kCubicTaps; ++k) {
        taps[k] = left + k >= 0 && left + k < side ? taps[k] : 0.0f;
        inside += taps[k];
      }
      const bool whole = left >= 0 && left + kCubicTaps <= side;
      const auto at = static_cast<size_t>(i);
      first[at] = left;
      covered[at] = whole ? 1.0f : inside;
      std::copy_n(taps, kCubicTaps, weights.data() + at * kCubicTaps);
      if (left + kCubicTaps > 0 && left < side) {
        begin = std::min(begin, i);
        end = i + 1;
      }
    }
  }
};

// Four pixels of four numbers by their weights -> four sums. Three of them are looked at where a pixel has three bytes.
template <int kBytes>
void sum_pixels(const float* pixels, const float* weights, float* sums) {
  constexpr int kStep = kBytes;
  for (int c = 0; c < 4; ++c) {
    sums[c] = weights[0] * pixels[c] + weights[1] * pixels[kStep + c] + weights[2] * pixels[2 * kStep + c] +
              weights[3] * pixels[3 * kStep + c];
  }
}

// Letterbox and normalise, row by row: four rows of the photo into one, that one into a row of the canvas.
template <int kBytes>
class CanvasRows {
 public:
  CanvasRows(const PhotoView& photo, int size, const picture::Warp& warp)
      : photo_(photo),
        size_(size),
        channels_(picture::channels_of(photo.format)),
        columns_(warp.columns, size, photo.width),
        rows_(warp.rows, size, photo.height),
        blend_(static_cast<size_t>(photo.width + 2 * kPadding) * kBytes + 4),
        sums_(static_cast<size_t>(size) * 4) {}

  void write(float* input) {
    const int64_t plane = int64_t{size_} * size_;
    for (int c = 0; c < 3; ++c) {
      const picture::Channel& channel = channels_.rgb[c];
      const float border = picture::normalised(channel.border, channel);
      float* to = input + c * plane;
      std::fill(to, to + int64_t{rows_.begin} * size_, border);
      std::fill(to + int64_t{rows_.end} * size_, to + plane, border);
      for (int y = rows_.begin; y < rows_.end; ++y) {
        std::fill_n(to + int64_t{y} * size_, columns_.begin, border);
        std::fill_n(to + int64_t{y} * size_ + columns_.end, size_ - columns_.end, border);
      }
    }
    for (int y = rows_.begin; y < rows_.end; ++y) {
      blend_rows(y);
      blend_columns();
      const float row_covered = rows_.covered[static_cast<size_t>(y)];
      for (int c = 0; c < 3; ++c) {
        const picture::Channel channel = channels_.rgb[c];
        const float* from = sums_.data() + channel.byte;
        float* to = input + c * plane + int64_t{y} * size_;
        for (int x = columns_.begin; x < columns_.end; ++x) {
          const float border = channel.border * (1.0f - row_covered * columns_.covered[static_cast<size_t>(x)]);
          to[x] = picture::normalised(from[x * 4] + border, channel);
        }
      }
    }
  }

 private:
  static constexpr int kPadding = kCubicTaps - 1;  // pixels beside a row that are read and weigh nothing

  void blend_rows(int y) {
    const uint8_t* lines[kCubicTaps];
    for (int tap = 0; tap < kCubicTaps; ++tap) {
      const int row = std::clamp(rows_.first[static_cast<size_t>(y)] + tap, 0, photo_.height - 1);
      lines[tap] = photo_.pixels + row * photo_.stride;
    }
    const float* weights = rows_.weights.data() + int64_t{y} * kCubicTaps;
    float* to = blend_.data() + kPadding * kBytes;
    for (int i = 0; i < photo_.width * kBytes; ++i) {
      to[i] = weights[0] * lines[0][i] + weights[1] * lines[1][i] + weights[2] * lines[2][i] + weights[3] * lines[3][i];
    }
  }

  void blend_columns() {
    for (int x = columns_.begin; x < columns_.end; ++x) {
      const int64_t first = columns_.first[static_cast<size_t>(x)] + kPadding;
      sum_pixels<kBytes>(blend_.data() + first * kBytes, columns_.weights.data() + int64_t{x} * kCubicTaps,
                         sums_.data() + int64_t{x} * 4);
    }
  }

  const PhotoView photo_;
  const int size_;
  const picture::Channels channels_;
  const CanvasAxis columns_;
  const CanvasAxis rows_;
  std::vector<float> blend_;  // a row of the photo between paddings of zeros
  std::vector<float> sums_;   // [S, 4]
};

}  // namespace

void refuse(const std::string& expected, const std::string& received) {
  throw Error("expected " + expected + ", received " + received);
}

void check_letterbox(const Letterbox& letterbox) {
  constexpr int kMost = static_cast<int>(picture::kMostSide);
  const std::string most = std::to_string(kMost);
  if (std::min(letterbox.width, letterbox.height) < 1 || std::max(letterbox.width, letterbox.height) > kMost) {
    refuse("a picture with sides from 1 to " + most + " pixels",
           std::to_string(letterbox.width) + " x " + std::to_string(letterbox.height));
  }
  if (letterbox.size < 1 || letterbox.size > kMost) {
    refuse("an image size from 1 to " + most, std::to_string(letterbox.size));
  }
}

Letterbox preprocess(const PhotoView& photo, int size, float* input) {
  const Letterbox letterbox = {photo.width, photo.height, size};
  check_letterbox(letterbox);
  if (photo.pixels == nullptr) {
    refuse("a picture", "no pixels");
  }
  if (photo.format < PixelFormat::kRgb || photo.format > PixelFormat::kGrey) {
    refuse("a pixel format of RGB, BGR, RGBA, BGRA or grey", std::to_string(static_cast<int32_t>(photo.format)));
  }
  const int bytes = picture::bytes_per_pixel(photo.format);
  if (photo.stride < int64_t{photo.width} * bytes) {
    refuse("a stride of at least " + std::to_string(int64_t{photo.width} * bytes) + " bytes",
           std::to_string(photo.stride));
  }
  const picture::Warp warp = picture::to_photo(photo.width, photo.height, size);
  if (bytes == 1) {
    CanvasRows<1>(photo, size, warp).write(input);
  } else if (bytes == 3) {
    CanvasRows<3>(photo, size, warp).write(input);
  } else {
    CanvasRows<4>(photo, size, warp).write(input);
  }
  return letterbox;
}

}  // namespace talent
