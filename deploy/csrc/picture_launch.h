// With what grid a picture kernel runs, and what it is given: decided on the host, without asking a device anything.
#pragma once

#include <cstdint>

#include "picture_kernel.h"
#include "picture_math.h"

namespace talent {

// Judged, not measured: enough warps in a block to hide loads behind, enough blocks for a small picture to fill a
// device.
constexpr int kPictureThreads = 256;
constexpr int kMaskColumns = 64;    // of the photo that a block computes
constexpr int kMostMaskRows = 32;   // of them; fewer where a photo is so small that its rows lie far apart on the grid
constexpr int kMostMaskCells = 48;  // rows of the grid that a block holds

struct PictureLaunch {
  const char* error;  // nullptr, or why there is no such launch
  int threads;
  int shared_bytes;
  int64_t blocks;
};

struct PictureInputArguments {
  const uint8_t* pixels;
  void* output;
  int64_t stride;
  picture::Warp warp;  // canvas -> photo
  picture::Channels channels;
  int width;
  int height;
  int size;
};

struct PictureMaskArguments {
  const void* logits;
  uint8_t* mask;
  float* probability;
  PictureTotals* totals;
  picture::Warp warp;  // photo -> canvas
  int grid_width;
  int grid_height;
  int size;
  int width;
  int height;
  int rows;   // of the photo that a block computes
  int cells;  // rows of the grid that it holds at most
  uint32_t blocks_across;
  uint32_t blocks_per_mask;
  float threshold;
  uint8_t inside;
};

PictureLaunch plan_picture_input(const PictureInput& problem, PictureInputArguments& arguments);
PictureLaunch plan_picture_mask(const PictureMask& problem, PictureMaskArguments& arguments);

}  // namespace talent
