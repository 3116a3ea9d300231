// The three kernels of an RCA, as code of one thread: B batch, N image tokens, K words, D channels (see rca_kernel.h).
//
//   RcaRows    some lanes of a warp hold a token's channels, all words after each other, FP32 units
//   RcaTensor  16 tokens a warp, both products on the matrix units
//   RcaAny     any D, K and alignment, a token a warp
//
// The first two read text and weight once a block into shared memory and hold visual in registers from the first
// product to the last; RcaAny leaves both to the cache. All sum in FP32. A cost is never rounded to a half type, so
// that it cannot overflow. What pads a size is set to zero, never multiplied by it: infinity times zero is no zero.
#pragma once

#include <cstdint>
#include <type_traits>

#include "device.h"
#include "number_formats.h"
#include "rca_launch.h"

namespace talent {

// Where a block's tokens lie.
template <typename Number>
struct RcaPlace {
  const Number* visual;  // [N, D] of this block's picture
  const Number* text;    // [K, D] of its expression
  Number* output;        // [N, D]
  int64_t first;         // token

  TALENT_DEVICE RcaPlace(const RcaArguments& arguments, int tokens_per_pass) {
    const auto block = static_cast<uint32_t>(device::block_index());
    const uint32_t picture = block / arguments.blocks_per_picture;
    const uint32_t part = block - picture * arguments.blocks_per_picture;
    visual = static_cast<const Number*>(arguments.visual) + picture * arguments.visual_stride;
    text = static_cast<const Number*>(arguments.text) + int64_t{picture} * arguments.words * arguments.width;
    output = static_cast<Number*>(arguments.output) + picture * arguments.tokens * arguments.width;
    first = int64_t{part} * arguments.passes * tokens_per_pass;
  }
};

TALENT_DEVICE float activate(float gate, bool relu) { return relu && gate < 0.0f ? 0.0f : gate; }  // NaN stays NaN

TALENT_DEVICE void unpack(const Vector& vector, float (&values)[4], float) {
  TALENT_UNROLL
  for (int i = 0; i < 4; ++i) {
    values[i] = formats::float_of(vector.words[i]);
  }
}

template <typename Number>
TALENT_DEVICE void unpack(const Vector& vector, float (&values)[8], Number) {
  TALENT_UNROLL
  for (int i = 0; i < 4; ++i) {
    values[2 * i] = to_float(Number{static_cast<uint16_t>(vector.words[i])});
    values[2 * i + 1] = to_float(Number{static_cast<uint16_t>(vector.words[i] >> 16)});
  }
}

TALENT_DEVICE Vector pack(const float (&values)[4], float) {
  return {{formats::bits_of(values[0]), formats::bits_of(values[1]), formats::bits_of(values[2]),
           formats::bits_of(values[3])}};
}

template <typename Number>
TALENT_DEVICE Vector pack(const float (&values)[8], Number) {
  Vector result;
  TALENT_UNROLL
  for (int i = 0; i < 4; ++i) {
    result.words[i] = uint32_t{from_float<Number>(values[2 * i]).bits} |
                      uint32_t{from_float<Number>(values[2 * i + 1]).bits} << 16;
  }
  return result;
}

TALENT_DEVICE Vector load(const void* from) { return *static_cast<const Vector*>(from); }

TALENT_DEVICE void store(void* to, const Vector& vector) { *static_cast<Vector*>(to) = vector; }

// Calls put(channel, word, value) for all of weight [D, K], which is read in vectors.
template <typename Number, typename Put>
TALENT_DEVICE void for_each_weight(const void* weight, int width, int words, Put put) {
  constexpr int kPerVector = 16 / sizeof(Number);
  const int vectors = width / kPerVector * words;
  for (int i = device::thread(); i < vectors; i += device::threads()) {
    const Vector vector = load(static_cast<const Number*>(weight) + i * kPerVector);
    Number numbers[kPerVector];
    memcpy(numbers, &vector, sizeof vector);
    int channel = i * kPerVector / words;  // all of it fits into shared memory, and its numbers into an int
    int word = i * kPerVector - channel * words;
    TALENT_UNROLL
    for (int j = 0; j < kPerVector; ++j) {
      put(channel, word, numbers[j]);
      if (++word == words) {
        word = 0;
        ++channel;
      }
    }
  }
}

template <typename Number, int kLanes, int kVectors>
struct RcaRows {
  static constexpr int kPerVector = 16 / sizeof(Number);
  static constexpr int kWidth = kLanes * kVectors * kPerVector;  // D rounded up
  static constexpr int kWeightRow = kWidth + kRowPadding / sizeof(Number);
  static constexpr int kTokens = kRowTokens;

  static TALENT_DEVICE void run(const RcaArguments& arguments) {
    const int width = arguments.width;
    const int words = arguments.words;
    auto* text = reinterpret_cast<Number*>(device::shared_memory());  // [K, kWidth]
    Number* weight = text + words * kWidth;                           // [K, kWeightRow], transposed
    const int groups = device::threads() / kLanes;
    const RcaPlace<Number> place(arguments, groups * kTokens);
    const int lane = device::thread() % kLanes;
    int64_t first = place.first + device::thread() / kLanes;  // token, the next one is `groups` further
    float visual[kTokens][kVectors][kPerVector];
    load_tokens(place.visual, first, groups, lane, arguments, visual);  // under way while text and weight are staged
    stage(arguments, place.text, text, weight);
    device::synchronize_block();

    for (int pass = 0; pass < arguments.passes; ++pass) {
      float gate[kTokens][kVectors][kPerVector];
      load_bias(static_cast<const Number*>(arguments.bias), lane, width, gate);
      for (int k = 0; k < words; ++k) {
        add_word(text + k * kWidth, weight + k * kWeightRow, lane, visual, gate);
      }
      TALENT_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        const int channel = (v * kLanes + lane) * kPerVector;
        TALENT_UNROLL
        for (int r = 0; r < kTokens; ++r) {
          TALENT_UNROLL
          for (int e = 0; e < kPerVector; ++e) {
            gate[r][v][e] = activate(gate[r][v][e], arguments.relu) * visual[r][v][e];
          }
          const int64_t token = first + r * groups;
          if (token < arguments.tokens && channel < width) {
            device::write(place.output + token * width + channel, pack(gate[r][v], Number()));
          }
        }
      }
      if (pass + 1 < arguments.passes) {
        first += groups * kTokens;
        load_tokens(place.visual, first, groups, lane, arguments, visual);
      }
    }
  }

 private:
  // Tokens and channels beyond the last are zero.
  static TALENT_DEVICE void load_tokens(const Number* visual, int64_t first, int groups, int lane,
                                        const RcaArguments& arguments, float (&loaded)[kTokens][kVectors][kPerVector]) {
    TALENT_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const int channel = (v * kLanes + lane) * kPerVector;
      TALENT_UNROLL
      for (int r = 0; r < kTokens; ++r) {
        const int64_t token = first + r * groups;
        const bool inside = token < arguments.tokens && channel < arguments.width;
        const Vector zero = {};
        unpack(inside ? load(visual + token * arguments.width + channel) : zero, loaded[r][v], Number());
      }
    }
  }

  static TALENT_DEVICE void load_bias(const Number* bias, int lane, int width,
                                      float (&gate)[kTokens][kVectors][kPerVector]) {
    TALENT_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const int channel = (v * kLanes + lane) * kPerVector;
      const Vector zero = {};
      TALENT_UNROLL
      for (int r = 0; r < kTokens; ++r) {
        unpack(channel < width ? load(bias + channel) : zero, gate[r][v], Number());
      }
    }
  }

  static TALENT_DEVICE void stage(const RcaArguments& arguments, const Number* from, Number* text, Number* weight) {
    constexpr int kRowVectors = kLanes * kVectors;
    for (int i = device::thread(); i < arguments.words * kRowVectors; i += device::threads()) {
      const int word = i / kRowVectors;
      const int channel = i % kRowVectors * kPerVector;
      const Vector zero = {};
      store(text + i * kPerVector, channel < arguments.width ? load(from + word * arguments.width + channel) : zero);
    }
    for_each_weight<Number>(
        arguments.weight, arguments.width, arguments.words,
        [&](int channel, int word, Number value) { weight[word * kWeightRow + channel] = value; });
    const int padding = kWidth - arguments.width;
    for (int i = device::thread(); i < padding * arguments.words; i += device::threads()) {
      weight[i / padding * kWeightRow + arguments.width + i % padding] = Number{};
    }
  }

  // gate += <visual, text of a word> * weight of the word
  static TALENT_DEVICE void add_word(const Number* text, const Number* weight, int lane,
                                     const float (&visual)[kTokens][kVectors][kPerVector],
                                     float (&gate)[kTokens][kVectors][kPerVector]) {
    float cost[kTokens] = {};
    TALENT_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      float values[kPerVector];
      unpack(load(text + (v * kLanes + lane) * kPerVector), values, Number());
      TALENT_UNROLL
      for (int r = 0; r < kTokens; ++r) {
        TALENT_UNROLL
        for (int e = 0; e < kPerVector; ++e) {
          cost[r] += visual[r][v][e] * values[e];
        }
      }
    }
    TALENT_UNROLL
    for (int mask = kLanes / 2; mask > 0; mask /= 2) {
      TALENT_UNROLL
      for (int r = 0; r < kTokens; ++r) {
        cost[r] += device::exchange(cost[r], mask);
      }
    }
    TALENT_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      float values[kPerVector];
      unpack(load(weight + (v * kLanes + lane) * kPerVector), values, Number());
      TALENT_UNROLL
      for (int r = 0; r < kTokens; ++r) {
        TALENT_UNROLL
        for (int e = 0; e < kPerVector; ++e) {
          gate[r][v][e] += cost[r] * values[e];
        }
      }
    }
  }
};

// The order in which a product runs over its inner size is free, and so is the order of its columns. Both are chosen so
// that a lane 4 g + t holds the channels 32 j + 8 t to 8 t + 7 of the tokens g and g + 8 from the first load to the
// last store, 16 bytes at a time, and so that the costs leave the first product where the second one reads them:
//
//   visual @ text^T   inner pairs (2t, 2t+1), (2t+8, 2t+9) are the channels 8t to 8t+3, in a second step 8t+4 to 8t+7
//   cost @ weight^T   inner t, t+4 are the words 2t, 2t+1; column c of four products i is channel 8 (c/2) + 2i + c%2
//
// Costs go into the second product as TF32: FP16's precision with FP32's range.
template <typename Number, int kWidth, int kTiles>
struct RcaTensor {
  static constexpr int kChunks = kWidth / 32;
  static constexpr int kTextRow = kWidth + kTensorPadding / sizeof(Number);

  static TALENT_DEVICE void run(const RcaArguments& arguments) {
    const int tiles = (arguments.words + 7) / 8;
    auto* text = reinterpret_cast<Number*>(device::shared_memory());     // [8 tiles, kTextRow]
    Number* weight = text + tiles * 8 * kTextRow;                        // [tiles, kChunks, lane, 4 products, 2 words]
    const int warps = device::threads() / kWarp;
    const RcaPlace<Number> place(arguments, warps * kTensorTokens);
    const int lane = device::thread() % kWarp;
    const int g = lane / 4;
    const int t = lane % 4;
    int64_t low = place.first + device::thread() / kWarp * kTensorTokens + g;  // token, and low + 8
    Vector visual[kChunks][2];
    load_tokens(place.visual, low, arguments.tokens, t, visual);  // under way while text and weight are staged
    stage(arguments, place.text, text, weight, tiles);
    device::synchronize_block();

    for (int pass = 0; pass < arguments.passes; ++pass) {
      uint32_t cost[kTiles][4];  // as TF32
      compute_costs(visual, text, tiles, arguments.words, g, t, cost);
      TALENT_UNROLL
      for (int j = 0; j < kChunks; ++j) {
        const int channel = 32 * j + 8 * t;
        float bias[8];
        unpack(load(static_cast<const Number*>(arguments.bias) + channel), bias, Number());
        float gate[4][4];
        TALENT_UNROLL
        for (int i = 0; i < 4; ++i) {
          gate[i][0] = gate[i][2] = bias[2 * i];
          gate[i][1] = gate[i][3] = bias[2 * i + 1];
        }
        TALENT_UNROLL
        for (int s = 0; s < kTiles; ++s) {
          if (s < tiles) {
            const Vector fragment = load(weight + ((s * kChunks + j) * kWarp + lane) * 8);
            TALENT_UNROLL
            for (int i = 0; i < 4; ++i) {
              const uint32_t words[2] = {tf32(fragment.words[i]), tf32(fragment.words[i] >> 16)};
              device::multiply_tf32(gate[i], cost[s], words);
            }
          }
        }
        TALENT_UNROLL
        for (int half = 0; half < 2; ++half) {
          float values[8];
          unpack(visual[j][half], values, Number());
          TALENT_UNROLL
          for (int i = 0; i < 4; ++i) {
            values[2 * i] *= activate(gate[i][2 * half], arguments.relu);
            values[2 * i + 1] *= activate(gate[i][2 * half + 1], arguments.relu);
          }
          const int64_t token = low + 8 * half;
          if (token < arguments.tokens) {
            device::write(place.output + token * kWidth + channel, pack(values, Number()));
          }
        }
      }
      if (pass + 1 < arguments.passes) {
        low += warps * kTensorTokens;
        load_tokens(place.visual, low, arguments.tokens, t, visual);
      }
    }
  }

 private:
  // Tokens beyond the last are zero.
  static TALENT_DEVICE void load_tokens(const Number* visual, int64_t low, int64_t tokens, int t,
                                        Vector (&loaded)[kChunks][2]) {
    TALENT_UNROLL
    for (int j = 0; j < kChunks; ++j) {
      TALENT_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int64_t token = low + 8 * half;
        const Vector zero = {};
        loaded[j][half] = token < tokens ? load(visual + token * kWidth + 32 * j + 8 * t) : zero;
      }
    }
  }

  // A half number is one in TF32, too.
  static TALENT_DEVICE uint32_t tf32(uint32_t half) {
    return formats::bits_of(to_float(Number{static_cast<uint16_t>(half)}));
  }

  static TALENT_DEVICE void stage(const RcaArguments& arguments, const Number* from, Number* text, Number* weight,
                                  int tiles) {
    constexpr int kRowVectors = kWidth / 8;
    for (int i = device::thread(); i < tiles * 8 * kRowVectors; i += device::threads()) {
      const int word = i / kRowVectors;
      const int channel = i % kRowVectors * 8;
      const Vector zero = {};
      store(text + word * kTextRow + channel, word < arguments.words ? load(from + word * kWidth + channel) : zero);
    }
    for_each_weight<Number>(arguments.weight, kWidth, arguments.words, [&](int channel, int word, Number value) {
      weight[place_of(channel, word)] = value;
    });
    const int padding = tiles * 8 - arguments.words;
    for (int i = device::thread(); i < padding * kWidth; i += device::threads()) {
      weight[place_of(i % kWidth, arguments.words + i / kWidth)] = Number{};
    }
  }

  // Where the lane that multiplies by a weight finds it.
  static TALENT_DEVICE int place_of(int channel, int word) {
    const int j = channel / 32;
    const int i = channel % 8 / 2;
    const int g = channel % 32 / 8 * 2 + channel % 2;
    const int lane = g * 4 + word % 8 / 2;
    return (((word / 8 * kChunks + j) * kWarp + lane) * 4 + i) * 2 + word % 2;
  }

  static TALENT_DEVICE void compute_costs(const Vector (&visual)[kChunks][2], const Number* text, int tiles, int words,
                                          int g, int t, uint32_t (&cost)[kTiles][4]) {
    float sums[kTiles][4] = {};
    TALENT_UNROLL
    for (int j = 0; j < kChunks; ++j) {
      const uint32_t(&low)[4] = visual[j][0].words;
      const uint32_t(&high)[4] = visual[j][1].words;
      const uint32_t left[2][4] = {{low[0], high[0], low[1], high[1]}, {low[2], high[2], low[3], high[3]}};
      TALENT_UNROLL
      for (int i = 0; i < kTiles; ++i) {
        if (i < tiles) {
          const Vector words_of = load(text + (8 * i + g) * kTextRow + 32 * j + 8 * t);
          const uint32_t right[2][2] = {{words_of.words[0], words_of.words[1]}, {words_of.words[2], words_of.words[3]}};
          device::multiply_halves<std::is_same_v<Number, Bfloat16>>(sums[i], left[0], right[0]);
          device::multiply_halves<std::is_same_v<Number, Bfloat16>>(sums[i], left[1], right[1]);
        }
      }
    }
    TALENT_UNROLL
    for (int i = 0; i < kTiles; ++i) {
      const bool first = 8 * i + 2 * t < words;
      const bool second = 8 * i + 2 * t + 1 < words;
      cost[i][0] = device::to_tf32(first ? sums[i][0] : 0.0f);
      cost[i][1] = device::to_tf32(first ? sums[i][2] : 0.0f);
      cost[i][2] = device::to_tf32(second ? sums[i][1] : 0.0f);
      cost[i][3] = device::to_tf32(second ? sums[i][3] : 0.0f);
    }
  }
};

template <typename Number>
struct RcaAny {
  static TALENT_DEVICE void run(const RcaArguments& arguments) {
    const int width = arguments.width;
    const int words = arguments.words;
    const auto* weight = static_cast<const Number*>(arguments.weight);
    const auto* bias = static_cast<const Number*>(arguments.bias);
    const int warps = device::threads() / kWarp;
    const int lane = device::thread() % kWarp;
    const int warp = device::thread() / kWarp;
    float* cost = reinterpret_cast<float*>(device::shared_memory()) + warp * kAnyWords;
    const RcaPlace<Number> place(arguments, warps);
    for (int pass = 0; pass < arguments.passes; ++pass) {
      const int64_t token = place.first + int64_t{pass} * warps + warp;
      if (token >= arguments.tokens) {
        return;  // the whole warp
      }
      const Number* visual = place.visual + token * width;
      for (int64_t start = 0; start < width; start += kWarp * kAnyChannels) {
        float gate[kAnyChannels];
        TALENT_UNROLL
        for (int i = 0; i < kAnyChannels; ++i) {
          const int64_t channel = start + i * kWarp + lane;
          gate[i] = channel < width ? to_float(bias[channel]) : 0.0f;
        }
        for (int64_t base = 0; base < words; base += kAnyWords) {
          const int count = words - base < kAnyWords ? static_cast<int>(words - base) : kAnyWords;
          if (start == 0 || words > kAnyWords) {  // else they are still there
            device::synchronize_warp();
            for (int k = 0; k < count; ++k) {
              const float sum = cost_of(visual, place.text + (base + k) * width, width, lane);
              if (lane == 0) {
                cost[k] = sum;
              }
            }
            device::synchronize_warp();
          }
          TALENT_UNROLL
          for (int i = 0; i < kAnyChannels; ++i) {
            const int64_t channel = start + i * kWarp + lane;
            if (channel < width) {
              for (int k = 0; k < count; ++k) {
                gate[i] += cost[k] * to_float(weight[channel * words + base + k]);
              }
            }
          }
        }
        TALENT_UNROLL
        for (int i = 0; i < kAnyChannels; ++i) {
          const int64_t channel = start + i * kWarp + lane;
          if (channel < width) {
            place.output[token * width + channel] =
                from_float<Number>(activate(gate[i], arguments.relu) * to_float(visual[channel]));
          }
        }
      }
    }
  }

 private:
  static TALENT_DEVICE float cost_of(const Number* visual, const Number* text, int width, int lane) {
    float sum = 0.0f;
    for (int64_t channel = lane; channel < width; channel += kWarp) {
      sum += to_float(visual[channel]) * to_float(text[channel]);
    }
    TALENT_UNROLL
    for (int mask = kWarp / 2; mask > 0; mask /= 2) {
      sum += device::exchange(sum, mask);
    }
    return sum;
  }
};

}  // namespace talent
