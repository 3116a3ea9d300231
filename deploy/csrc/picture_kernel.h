// From a photo to the network's input and from its logits to the mask on the photo, each in one kernel, so that a frame
// need not leave the GPU in between.
//
// What they have to compute is `preprocess` and `probability_on_photo` of talent/image.py; letters and formulas are
// those of picture_math.h.
//
// This header knows pointers, sizes and a stream, and neither TensorRT nor OpenCV.
#pragma once

#include <cstddef>
#include <cstdint>

struct CUstream_st;  // a cudaStream_t points to one, so that this header compiles where no CUDA toolkit is

namespace talent {

enum class PictureType : int32_t { kFloat = 0, kHalf = 1 };

// The bytes of a pixel in their order; A is not looked at, and grey stands for all three colours.
enum class PictureFormat : int32_t { kRgb = 0, kBgr = 1, kRgba = 2, kBgra = 3, kGrey = 4 };

// pixels -> output: letterboxed with a border of CLIP's mean, and normalised.
struct PictureInput {
  const void* pixels;  // uint8 [H, W, bytes of a pixel], rows `stride` bytes apart
  int64_t width;
  int64_t height;
  int64_t stride;
  PictureFormat format;
  void* output;  // [3, S, S], RGB
  int64_t size;  // S
  PictureType type;  // of output
};

// What a mask adds up to. All zero before, and independent of the order in which threads come.
struct PictureTotals {
  uint64_t probability;  // of the pixels inside, summed in units of 2^-20
  uint32_t pixels;       // inside
  uint32_t not_finite;   // logits that are infinite or NaN: an overflow, and the mask means nothing
  uint32_t before[2];    // W - x0 and H - y0, so that the largest counts; x0, y0, x1, y1 is the box, ends excluded
  uint32_t behind[2];    // x1 and y1
};

// logits -> mask: logistic function -> bicubic, corners aligned, to S -> cubic to the photo -> clip -> > threshold.
struct PictureMask {
  const void* logits;  // [B, h, w]
  PictureType type;    // of logits
  int64_t batch;       // expressions of one photo
  int64_t grid_width;
  int64_t grid_height;
  int64_t size;  // S, at least h and w
  int64_t width;
  int64_t height;
  float threshold;
  uint8_t inside;  // what a pixel of the object is set to, the others are 0
  uint8_t* mask;          // [B, H, W]
  float* probability;     // [B, H, W], or nullptr
  PictureTotals* totals;  // [B], or nullptr
};

// The totals in words. The box is 0, 0, 0, 0 where the mask is empty.
struct PictureSummary {
  bool finite;
  int64_t pixels;
  double score;  // mean probability inside the mask, 0 where it is empty; each probability is rounded to 2^-20
  int32_t x0, y0, x1, y1;
};

// Compute it on the device that is current, on `stream`: one launch (after a memset of the totals), no workspace, no
// synchronisation, safe under graph capture, and with the same bits every time. Returns nullptr, or what is wrong (text
// with static storage): a size or pointer that cannot be, or CUDA's own words.
const char* picture_to_input(const PictureInput& problem, CUstream_st* stream);
const char* logits_to_mask(const PictureMask& problem, CUstream_st* stream);

// What is wrong with the sizes, numbers or pointers; nullptr where nothing is.
const char* picture_input_error(const PictureInput& problem);
const char* picture_mask_error(const PictureMask& problem);

// Of totals that have been copied to the host.
PictureSummary picture_summary(const PictureTotals& totals, int64_t width, int64_t height);

}  // namespace talent
