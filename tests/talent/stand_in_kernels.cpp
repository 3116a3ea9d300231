// A library with the interface of deploy/csrc/talent_kernels.h that computes on the host with plain loops and keeps what
// it was called with: test_rca_kernels.py holds Python's side of the interface against it where no GPU is.
#include "talent_kernels.h"

#include <vector>

#include "number_formats.h"

extern "C" {

struct Call {
  const void* pointers[5];
  int64_t sizes[5];
  int32_t numbers[3];
  void* stream;
};

Call last_call;

int32_t talent_kernels_interface(void) { return INTERFACE; }
}

namespace {

template <typename Number>
void compute(const Call& call, void* output) {
  const auto* visual = static_cast<const Number*>(call.pointers[0]);
  const auto* text = static_cast<const Number*>(call.pointers[1]);
  const auto* weight = static_cast<const Number*>(call.pointers[2]);
  const auto* bias = static_cast<const Number*>(call.pointers[3]);
  const auto [visual_batch, batch, tokens, words, width] = call.sizes;
  std::vector<float> cost(words);
  for (int64_t row = 0; row < batch * tokens; ++row) {
    const int64_t sample = row / tokens;
    const Number* pixel = visual + (visual_batch == 1 ? row % tokens : row) * width;
    for (int64_t word = 0; word < words; ++word) {
      cost[word] = 0;
      for (int64_t channel = 0; channel < width; ++channel) {
        cost[word] += talent::to_float(pixel[channel]) * talent::to_float(text[(sample * words + word) * width + channel]);
      }
    }
    for (int64_t channel = 0; channel < width; ++channel) {
      float gate = talent::to_float(bias[channel]);
      for (int64_t word = 0; word < words; ++word) {
        gate += cost[word] * talent::to_float(weight[channel * words + word]);
      }
      if (call.numbers[1] == 1 && gate < 0) gate = 0;
      static_cast<Number*>(output)[row * width + channel] =
          talent::from_float<Number>(gate * talent::to_float(pixel[channel]));
    }
  }
}

}  // namespace

const char* talent_rca_cost_aggregation(const void* visual, const void* text, const void* weight, const void* bias,
                                        void* output, int64_t visual_batch, int64_t batch, int64_t tokens, int64_t words,
                                        int64_t width, int32_t type, int32_t activation, int32_t method, void* stream) {
  last_call = {{visual, text, weight, bias, output}, {visual_batch, batch, tokens, words, width},
               {type, activation, method}, stream};
  if (words == 0) return "expected at least one word";
  if (type == 0) compute<float>(last_call, output);
  if (type == 1) compute<talent::Half>(last_call, output);
  if (type == 2) compute<talent::Bfloat16>(last_call, output);
  return nullptr;
}
