// The two kernels between photo and network, as code of one thread: see picture_kernel.h; letters as in picture_math.h.
//
//   PictureInputKernel  a thread a pixel of the canvas
//   PictureMaskKernel   a block a tile of the photo: first the grid rows that the tile depends on, spread over its
//                       columns (in shared memory), then the tile's rows out of them
//
// All sums are FP32. Both enlargements of a mask are one linear map, rows and columns apart: see composed_taps.
#pragma once

#include <cstdint>

#include "device.h"
#include "number_formats.h"
#include "picture_launch.h"

namespace talent {

template <typename Number, int kBytes>
struct PictureInputKernel {
  static TALENT_DEVICE void run(const PictureInputArguments& arguments) {
    const int size = arguments.size;
    const auto pixels = static_cast<uint32_t>(size) * static_cast<uint32_t>(size);
    const auto pixel = static_cast<uint32_t>(device::block_index() * device::threads() + device::thread());
    if (pixel >= pixels) {
      return;
    }
    const auto y = static_cast<int>(pixel / static_cast<uint32_t>(size));
    const auto x = static_cast<int>(pixel - static_cast<uint32_t>(y * size));
    float across[picture::kCubicTaps];
    float down[picture::kCubicTaps];
    const int left = picture::cubic_taps(arguments.warp.columns, x, across);
    const int top = picture::cubic_taps(arguments.warp.rows, y, down);
    float levels[3];
    if (left + picture::kCubicTaps <= 0 || left >= arguments.width || top + picture::kCubicTaps <= 0 ||
        top >= arguments.height) {
      TALENT_UNROLL
      for (int c = 0; c < 3; ++c) {
        levels[c] = arguments.channels.rgb[c].border;
      }
    } else {
      sum_taps(arguments, left, top, across, down, levels);
    }
    auto* output = static_cast<Number*>(arguments.output);
    TALENT_UNROLL
    for (int c = 0; c < 3; ++c) {
      const float value = picture::normalised(levels[c], arguments.channels.rgb[c]);
      output[int64_t{c} * pixels + pixel] = from_float<Number>(value);
    }
  }

 private:
  static TALENT_DEVICE void sum_taps(const PictureInputArguments& arguments, int left, int top,
                                     const float (&across)[picture::kCubicTaps],
                                     const float (&down)[picture::kCubicTaps], float (&levels)[3]) {
    float columns[picture::kCubicTaps][3] = {};
    TALENT_UNROLL
    for (int j = 0; j < picture::kCubicTaps; ++j) {
      const int row = top + j;
      const bool row_inside = row >= 0 && row < arguments.height;
      const uint8_t* line = arguments.pixels + (row_inside ? row : 0) * arguments.stride;
      TALENT_UNROLL
      for (int i = 0; i < picture::kCubicTaps; ++i) {
        const int column = left + i;
        const bool inside = row_inside && column >= 0 && column < arguments.width;
        const uint8_t* from = line + (inside ? column : 0) * kBytes;
        TALENT_UNROLL
        for (int c = 0; c < 3; ++c) {
          const picture::Channel& channel = arguments.channels.rgb[c];
          columns[i][c] += down[j] * (inside ? static_cast<float>(from[channel.byte]) : channel.border);
        }
      }
    }
    TALENT_UNROLL
    for (int c = 0; c < 3; ++c) {
      levels[c] = 0.0f;
      TALENT_UNROLL
      for (int i = 0; i < picture::kCubicTaps; ++i) {
        levels[c] += across[i] * columns[i][c];
      }
    }
  }
};

template <typename Number>
struct PictureMaskKernel {
  static TALENT_DEVICE void run(const PictureMaskArguments& arguments) {
    const auto block = static_cast<uint32_t>(device::block_index());
    const uint32_t mask = block / arguments.blocks_per_mask;
    const uint32_t part = block - mask * arguments.blocks_per_mask;
    const auto first_row = static_cast<int>(part / arguments.blocks_across) * arguments.rows;
    const auto first_column = static_cast<int>(part % arguments.blocks_across) * kMaskColumns;
    const int left = arguments.height - first_row;
    const int rows = left < arguments.rows ? left : arguments.rows;
    const auto* logits = static_cast<const Number*>(arguments.logits) +
                         int64_t{mask} * arguments.grid_width * arguments.grid_height;
    const int taps_across = picture::grid_taps(arguments.size, arguments.grid_width);
    const int taps_down = picture::grid_taps(arguments.size, arguments.grid_height);

    auto* column_first = reinterpret_cast<int*>(device::shared_memory());         // [kMaskColumns]
    int* row_first = column_first + kMaskColumns;                                 // [rows]
    auto* column_weights = reinterpret_cast<float*>(row_first + arguments.rows);  // [kMaskColumns, kMostGridTaps]
    float* row_weights = column_weights + kMaskColumns * picture::kMostGridTaps;  // [rows, kMostGridTaps]
    float* spread = row_weights + arguments.rows * picture::kMostGridTaps;        // [cells, kMaskColumns]
    for (int i = device::thread(); i < kMaskColumns + rows; i += device::threads()) {
      if (i < kMaskColumns) {  // those beyond the photo repeat its last one, and are not written
        column_first[i] = picture::composed_taps(arguments.warp.columns, within(first_column + i, arguments.width),
                                                 arguments.size, arguments.grid_width,
                                                 column_weights + i * picture::kMostGridTaps);
      } else {
        const int row = i - kMaskColumns;
        row_first[row] = picture::composed_taps(arguments.warp.rows, first_row + row, arguments.size,
                                                arguments.grid_height, row_weights + row * picture::kMostGridTaps);
      }
    }
    device::synchronize_block();

    const int first_cell = row_first[0];
    const int cells = row_first[rows - 1] - first_cell + taps_down;
    for (int i = device::thread(); i < cells * kMaskColumns; i += device::threads()) {
      const int column = i % kMaskColumns;
      const Number* row = logits + int64_t{within(first_cell + i / kMaskColumns, arguments.grid_height)} *
                                       arguments.grid_width;
      float sum = 0.0f;
      for (int k = 0; k < taps_across; ++k) {
        const int cell = within(column_first[column] + k, arguments.grid_width);
        sum += column_weights[column * picture::kMostGridTaps + k] * picture::probability_of(to_float(row[cell]));
      }
      spread[i] = sum;
    }
    device::synchronize_block();

    Tally tally = {};
    const int column = device::thread() % kMaskColumns;
    const int x = first_column + column;
    for (int row = device::thread() / kMaskColumns; row < rows; row += device::threads() / kMaskColumns) {
      const float* from = spread + (row_first[row] - first_cell) * kMaskColumns + column;
      float sum = 0.0f;
      for (int k = 0; k < taps_down; ++k) {
        sum += row_weights[row * picture::kMostGridTaps + k] * from[k * kMaskColumns];
      }
      if (x < arguments.width) {
        const int y = first_row + row;
        const float probability = picture::clipped(sum);
        const bool inside = probability > arguments.threshold;
        const int64_t pixel = (int64_t{mask} * arguments.height + y) * arguments.width + x;
        arguments.mask[pixel] = inside ? arguments.inside : 0;
        if (arguments.probability != nullptr) {
          arguments.probability[pixel] = probability;
        }
        if (inside) {
          tally.add(arguments, x, y, probability);
        }
      }
    }
    if (arguments.totals != nullptr) {
      tally.add_to(arguments.totals[mask]);
      count_not_finite(arguments, logits, part, arguments.totals[mask]);
    }
  }

 private:
  static TALENT_DEVICE int within(int i, int count) { return i < 0 ? 0 : i < count ? i : count - 1; }

  // What a thread has seen inside the mask. At most kMostMaskRows pixels a thread: a warp's sum fits into 32 bits.
  struct Tally {
    uint32_t probability;
    uint32_t pixels;
    uint32_t before[2];
    uint32_t behind[2];

    TALENT_DEVICE void add(const PictureMaskArguments& arguments, int x, int y, float value) {
      probability += picture::probability_units(value);
      pixels += 1;
      before[0] = larger(before[0], static_cast<uint32_t>(arguments.width - x));
      before[1] = larger(before[1], static_cast<uint32_t>(arguments.height - y));
      behind[0] = larger(behind[0], static_cast<uint32_t>(x + 1));
      behind[1] = larger(behind[1], static_cast<uint32_t>(y + 1));
    }

    // Called by whole warps.
    TALENT_DEVICE void add_to(PictureTotals& totals) {
      pixels = sum_of_warp(pixels);
      if (pixels == 0) {
        return;
      }
      probability = sum_of_warp(probability);
      TALENT_UNROLL
      for (int axis = 0; axis < 2; ++axis) {
        before[axis] = largest_of_warp(before[axis]);
        behind[axis] = largest_of_warp(behind[axis]);
      }
      if (device::thread() % kWarp == 0) {
        device::add_to(&totals.probability, uint64_t{probability});
        device::add_to(&totals.pixels, pixels);
        TALENT_UNROLL
        for (int axis = 0; axis < 2; ++axis) {
          device::raise_to(&totals.before[axis], before[axis]);
          device::raise_to(&totals.behind[axis], behind[axis]);
        }
      }
    }
  };

  static TALENT_DEVICE uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

  static TALENT_DEVICE uint32_t sum_of_warp(uint32_t value) {
    TALENT_UNROLL
    for (int mask = kWarp / 2; mask > 0; mask /= 2) {
      value += device::exchange(value, mask);
    }
    return value;
  }

  static TALENT_DEVICE uint32_t largest_of_warp(uint32_t value) {
    TALENT_UNROLL
    for (int mask = kWarp / 2; mask > 0; mask /= 2) {
      value = larger(value, device::exchange(value, mask));
    }
    return value;
  }

  // The blocks of a mask share all of its logits, also those that no pixel of the photo depends on.
  static TALENT_DEVICE void count_not_finite(const PictureMaskArguments& arguments, const Number* logits, uint32_t part,
                                             PictureTotals& totals) {
    const int64_t count = int64_t{arguments.grid_width} * arguments.grid_height;
    const int64_t stride = int64_t{arguments.blocks_per_mask} * device::threads();
    uint32_t wrong = 0;
    for (int64_t i = int64_t{part} * device::threads() + device::thread(); i < count; i += stride) {
      wrong += picture::is_finite(to_float(logits[i])) ? 0 : 1;
    }
    if (wrong > 0) {
      device::add_to(&totals.not_finite, wrong);
    }
  }
};

// Calls `visit` with the kernel of a type and a format.
template <typename Visit>
void visit_input_kernel(PictureType type, PictureFormat format, Visit visit) {
  const auto by_type = [&](auto number) {
    using Number = decltype(number);
    const int bytes = picture::bytes_per_pixel(format);
    if (bytes == 1) {
      visit(PictureInputKernel<Number, 1>());
    } else if (bytes == 3) {
      visit(PictureInputKernel<Number, 3>());
    } else {
      visit(PictureInputKernel<Number, 4>());
    }
  };
  if (type == PictureType::kFloat) {
    by_type(float());
  } else {
    by_type(Half());
  }
}

template <typename Visit>
void visit_mask_kernel(PictureType type, Visit visit) {
  if (type == PictureType::kFloat) {
    visit(PictureMaskKernel<float>());
  } else {
    visit(PictureMaskKernel<Half>());
  }
}

}  // namespace talent
