// How a photo lies in the network's square input and how logits lie on the photo: the formulas of talent/image.py, the
// same on the host and on every device.
//
// Letters: H, W photo; S square input, the canvas; h, w grid of the logits. The photo is scaled to fit the canvas and
// centred; canvas x = x * scale + shift, with indices scaled as they are (no half-pixel shift of centres).
//
// Positions are exact to 2^-18 pixel and are never rounded to 1/32 pixel, which OpenCV 4 does and OpenCV 5 does not.
#pragma once

#include <cmath>
#include <cstdint>

#include "device.h"

namespace talent::picture {

constexpr int64_t kMostSide = 32766;  // of a photo and of the canvas, as in talent/image.py
constexpr int kCubicTaps = 4;
constexpr int kMostGridTaps = 7;  // cells that a row or a column of the photo depends on, while h, w <= S

// One colour of a pixel and what becomes of it: level * scale + shift, with CLIP's mean 0 and standard deviation 1.
struct Channel {
  int byte;      // of the pixel
  float border;  // grey level around the photo: CLIP's mean, rounded as the canvas is
  float scale;
  float shift;
};

struct Channels {
  Channel rgb[3];
};

// A probability inside the mask counts as a multiple of 2^-20, so that a sum does not depend on its order.
constexpr float kProbabilityUnits = 1048576.0f;

// Index i lies at `first + step * i`, in units of 2^-32 pixel.
struct Axis {
  int64_t first;
  int64_t step;
};

struct Warp {
  Axis columns;
  Axis rows;
};

// Format: PictureFormat of the kernels or PixelFormat of the C++ runtime, which have the same names.
template <typename Format>
int bytes_per_pixel(Format format) {
  if (format == Format::kGrey) {
    return 1;
  }
  return format == Format::kRgba || format == Format::kBgra ? 4 : 3;
}

template <typename Format>
Channels channels_of(Format format) {
  const bool blue_first = format == Format::kBgr || format == Format::kBgra;
  const int last = format == Format::kGrey ? 0 : 2;
  const auto channel = [](int byte, float mean, float deviation) -> Channel {
    return {byte, std::nearbyint(255.0f * mean), 1.0f / (255.0f * deviation), -mean / deviation};
  };
  return {{channel(blue_first ? last : 0, 0.48145466f, 0.26862954f), channel(last / 2, 0.4578275f, 0.26130258f),
           channel(blue_first ? 0 : last, 0.40821073f, 0.27577711f)}};
}

inline Axis fixed_axis(double first, double step) {
  return {std::llrint(first * 0x1p32), std::llrint(step * 0x1p32)};
}

inline double letterbox_scale(int64_t width, int64_t height, int64_t size) {
  return std::fmin(static_cast<double>(size) / static_cast<double>(height),
                   static_cast<double>(size) / static_cast<double>(width));
}

// From indices of the photo to positions on the canvas.
inline Warp to_canvas(int64_t width, int64_t height, int64_t size) {
  const double scale = letterbox_scale(width, height, size);
  const auto axis = [&](int64_t side) {
    return fixed_axis((static_cast<double>(size) - static_cast<double>(side) * scale) / 2, scale);
  };
  return {axis(width), axis(height)};
}

// From indices of the canvas to positions on the photo.
inline Warp to_photo(int64_t width, int64_t height, int64_t size) {
  const double scale = letterbox_scale(width, height, size);
  const auto axis = [&](int64_t side) {
    return fixed_axis((static_cast<double>(side) - static_cast<double>(size) / scale) / 2, 1 / scale);
  };
  return {axis(width), axis(height)};
}

// The weights of the pixels at floor(position) - 1 to + 2 by Keys' cubic of -0.75, as PyTorch and OpenCV have it.
TALENT_BOTH void cubic_weights(float fraction, float (&weights)[kCubicTaps]) {
  constexpr float kA = -0.75f;
  const float before = fraction + 1.0f;
  const float after = 1.0f - fraction;
  weights[0] = ((kA * before - 5.0f * kA) * before + 8.0f * kA) * before - 4.0f * kA;
  weights[1] = ((kA + 2.0f) * fraction - (kA + 3.0f)) * fraction * fraction + 1.0f;
  weights[2] = ((kA + 2.0f) * after - (kA + 3.0f)) * after * after + 1.0f;
  weights[3] = 1.0f - weights[0] - weights[1] - weights[2];
}

// The first of the four pixels that index `i` depends on, and their weights.
TALENT_BOTH int cubic_taps(const Axis& axis, int i, float (&weights)[kCubicTaps]) {
  const int64_t position = axis.first + axis.step * i;
  cubic_weights(static_cast<float>((position & 0xffffffff) >> 8) * 0x1p-24f, weights);
  return static_cast<int>(position >> 32) - 1;
}

// Of how many cells in a row a pixel of the photo depends at most, for `cells` of a side spread over the canvas.
TALENT_BOTH int grid_taps(int size, int cells) {
  const int steps = size > 1 ? size - 1 : 1;
  return kCubicTaps + (3 * (cells - 1) + steps - 1) / steps;
}

// Both enlargements of one axis as one: cells -> canvas (bicubic, corners aligned, the edge repeated) -> photo (cubic,
// zero beyond the canvas). Returns the first cell that photo index `i` depends on; it and those after it may lie beyond
// the edge, which stands for the cell at the edge. `weights` receives `grid_taps` of them.
TALENT_BOTH int composed_taps(const Axis& axis, int i, int size, int cells, float* weights) {
  float outer[kCubicTaps];
  const int canvas = cubic_taps(axis, i, outer);
  const int steps = size > 1 ? size - 1 : 1;
  const int lowest = canvas > 0 ? canvas : 0;
  const int first = lowest * (cells - 1) / steps - 1;  // a product of two sides fits into 31 bits
  const int taps = grid_taps(size, cells);
  for (int k = 0; k < taps; ++k) {
    weights[k] = 0.0f;
  }
  for (int tap = 0; tap < kCubicTaps; ++tap) {
    const int at = canvas + tap;
    if (at >= 0 && at < size) {
      const int cell = at * (cells - 1) / steps;
      float inner[kCubicTaps];
      cubic_weights(static_cast<float>(at * (cells - 1) - cell * steps) / static_cast<float>(steps), inner);
      for (int k = 0; k < kCubicTaps; ++k) {
        weights[cell - 1 - first + k] += outer[tap] * inner[k];
      }
    }
  }
  return first;
}

// To a whole number, ties to even, for |value| < 2^22.
TALENT_BOTH float rounded(float value) { return (value + 12582912.0f) - 12582912.0f; }

// A sum of weighted grey levels -> a grey level of the canvas -> what the network reads.
TALENT_BOTH float normalised(float level, const Channel& channel) {
  return rounded(level < 0.0f ? 0.0f : level > 255.0f ? 255.0f : level) * channel.scale + channel.shift;
}

// The logistic function by tanh, which does not overflow for very negative logits.
TALENT_BOTH float probability_of(float logit) { return 0.5f + 0.5f * tanhf(0.5f * logit); }

// Cubic interpolation overshoots. NaN stays NaN.
TALENT_BOTH float clipped(float probability) {
  return probability < 0.0f ? 0.0f : probability > 1.0f ? 1.0f : probability;
}

TALENT_BOTH uint32_t probability_units(float probability) {
  return static_cast<uint32_t>(static_cast<int32_t>(probability * kProbabilityUnits + 0.5f));
}

TALENT_BOTH bool is_finite(float value) { return value - value == 0.0f; }

}  // namespace talent::picture
