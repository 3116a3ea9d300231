// Pictures in, masks out, on the CPU: what talent/image.py does between a photo and the network's tensors, without
// OpenCV.
//
// Letters: H, W photo; S square input of the network, the canvas; h, w grid of the logits. The network's input differs
// from talent/image.py's by at most one grey level in few pixels where OpenCV 5 makes it (which rounds positions to
// FP32), and by more beside sharp edges where OpenCV 4 does (which rounds them to 1/32 pixel).
#pragma once

#include <cstdint>
#include <optional>

#include "talent/errors.h"
#include "talent/export.h"

namespace talent {

// The bytes of a pixel in their order. A is not looked at, and grey stands for all three colours.
enum class PixelFormat : int32_t { kRgb = 0, kBgr = 1, kRgba = 2, kBgra = 3, kGrey = 4 };

// A photo that somebody else holds: uint8 [H, W, bytes of a pixel], rows `stride` bytes apart.
struct PhotoView {
  const uint8_t* pixels;
  int width;
  int height;
  int64_t stride;
  PixelFormat format;
};

// How a photo of `height` x `width` lies in a square of `size`: scaled to fit, centred, the rest is border.
struct Letterbox {
  int width;
  int height;
  int size;
};

// In pixels of the photo, ends excluded.
struct Box {
  int x0;
  int y0;
  int x1;
  int y1;
};

// What a mask adds up to.
struct MaskSummary {
  std::optional<Box> box;  // the smallest one around the mask; none where it is empty
  int64_t pixels;          // inside
  double score;            // mean probability inside, 0 where the mask is empty; each is rounded to 2^-20
};

// A photo -> the network's input: input receives float32 [3, S, S], RGB, letterboxed with a border of CLIP's mean and
// normalised. Returns where the photo lies in it. Throws Error for a side, stride, format or size that cannot be.
TALENT_API Letterbox preprocess(const PhotoView& photo, int size, float* input);

// The network's logits (float32 [h, w]) -> mask receives uint8 [H, W], 255 where the probability is above the
// threshold, else 0. probability, where it is not null, receives the probability of each pixel, float32 [H, W].
//
// Throws Error for logits that are not finite (an FP16 overflow must not pass for "nothing found"), for a grid finer
// than the canvas, and for a threshold outside 0 to below 1.
TALENT_API MaskSummary mask_on_photo(const float* logits, int grid_height, int grid_width, const Letterbox& letterbox,
                                     float threshold, uint8_t* mask, float* probability = nullptr);

}  // namespace talent
