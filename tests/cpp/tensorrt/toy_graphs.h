// Two graphs so small that the stand-in for TensorRT computes them, as the toy bundle of tests/deploy/conftest.py has
// them: a sentence is a colour, and the logits are high where the picture has it.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "number_formats.h"

namespace toy {

constexpr int64_t kTokens = 8;
constexpr int64_t kOverflow = 99;  // a token whose colour is infinite

// tokens [L] -> colour [3, 1, 1], bias [1, 1, 1].
inline void text(const int64_t* tokens, float* colour, float* bias) {
  *bias = 0.0f;
  for (int channel = 0; channel < 3; ++channel) {
    const int64_t token = tokens[1 + channel];
    colour[channel] = token == kOverflow ? std::numeric_limits<float>::infinity() : static_cast<float>(token);
    *bias -= 0.5f * colour[channel];
  }
}

// image [3, S, S], colour, bias -> logits [1, S / 2, S / 2]: <colour, mean of 2 x 2 pixels> + bias.
inline void vision(const float* image, int64_t size, const float* colour, float bias, float* logits) {
  for (int64_t y = 0; y < size / 2; ++y) {
    for (int64_t x = 0; x < size / 2; ++x) {
      float sum = bias;
      for (int64_t channel = 0; channel < 3; ++channel) {
        const float* at = image + (channel * size + 2 * y) * size + 2 * x;
        sum += colour[channel] * 0.25f * (at[0] + at[1] + at[size] + at[size + 1]);
      }
      logits[y * (size / 2) + x] = sum;
    }
  }
}

// Numbers of a tensor in FP32 or FP16.
inline std::vector<float> read(const void* memory, bool half, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) {
    if (half) {
      talent::Half value;
      std::memcpy(&value, static_cast<const char*>(memory) + i * sizeof value, sizeof value);
      values[i] = talent::to_float(value);
    } else {
      std::memcpy(&values[i], static_cast<const char*>(memory) + i * sizeof values[i], sizeof values[i]);
    }
  }
  return values;
}

inline void write(void* memory, bool half, const std::vector<float>& values) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (half) {
      const auto value = talent::from_float<talent::Half>(values[i]);
      std::memcpy(static_cast<char*>(memory) + i * sizeof value, &value, sizeof value);
    } else {
      std::memcpy(static_cast<char*>(memory) + i * sizeof values[i], &values[i], sizeof values[i]);
    }
  }
}

// What a plan of the stand-in says: "toy vision size=16 image=half ...".
struct Plan {
  bool is_vision = false;
  int64_t size = 16;
  bool image_half = false;
  bool prompt_half = false;
  bool logits_half = false;
  bool other_name = false;  // a prompt tensor that the other graph does not know
};

}  // namespace toy
