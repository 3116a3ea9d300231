// A backend that computes: "r", "g" or "b" segments what is red, green or blue, as the toy bundle of the tests in
// Python does.
#pragma once

#include <atomic>
#include <cstring>
#include <functional>
#include <limits>
#include <mutex>
#include <string>
#include <vector>

#include "host_backend.h"
#include "toy_bundle.h"

// What a test may watch and change. It outlives the backend.
struct ToyControls {
  int64_t most_expressions = 64;
  std::atomic<bool> overflows{false};              // FP16, say: the logits are not finite
  std::atomic<int> texts{0};                       // sentences that were encoded
  std::atomic<bool> gone{false};                   // the backend was freed
  std::function<void(size_t expressions)> before;  // called at each frame; several threads may
};

class ToyBackend : public talent::HostBackend {
 public:
  ToyBackend(const talent::Bundle& bundle, ToyControls& controls)
      : HostBackend(bundle), controls_(controls) {}
  ~ToyBackend() override { controls_.gone = true; }

  std::string name() const override { return "onnxruntime"; }
  int64_t most_expressions() const override { return controls_.most_expressions; }

  // A tensor "colour" [1, 3]: which of the three are among the words.
  talent::PromptTensors text(const std::vector<int64_t>& tokens) override {
    ++controls_.texts;
    float colour[3] = {};
    for (const int64_t token : tokens) {
      for (int c = 0; c < 3; ++c) {
        colour[c] += token == 256 + "rgb"[c] ? 1.0f : 0.0f;
      }
    }
    talent::PromptTensor tensor = {"colour", talent::ElementType::kFloat, {1, 3}, {}};
    tensor.bytes.resize(sizeof colour);
    std::memcpy(tensor.bytes.data(), colour, sizeof colour);
    return {{tensor}};
  }

 protected:
  // Logits [B, 1, S/2, S/2]: 20 * (<colour, pixel in 0..1> - a half), averaged over 2 x 2 pixels.
  void vision(const float* input, int64_t size, const std::vector<const talent::PromptTensors*>& prompts,
              talent::Logits& logits) override {
    if (controls_.before) {
      controls_.before(prompts.size());
    }
    constexpr float kMean[] = {0.48145466f, 0.4578275f, 0.40821073f};
    constexpr float kStd[] = {0.26862954f, 0.26130258f, 0.27577711f};
    const int64_t side = size / 2;
    logits.count = static_cast<int64_t>(prompts.size());
    logits.height = logits.width = static_cast<int>(side);
    logits.values.assign(prompts.size() * static_cast<size_t>(side * side), -10.0f);
    for (int64_t index = 0; index < logits.count; ++index) {
      float colour[3];
      std::memcpy(colour, prompts[static_cast<size_t>(index)]->tensors.at(0).bytes.data(), sizeof colour);
      for (int64_t cell = 0; cell < side * side; ++cell) {
        const int64_t first = cell / side * 2 * size + cell % side * 2;
        float& logit = logits.values[static_cast<size_t>(index * side * side + cell)];
        for (int c = 0; c < 3; ++c) {
          const float* plane = input + c * size * size + first;
          const float mean = (plane[0] + plane[1] + plane[size] + plane[size + 1]) / 4;
          logit += 20 * colour[c] * (mean * kStd[c] + kMean[c]);
        }
      }
    }
    if (controls_.overflows) {
      logits.values.back() = std::numeric_limits<float>::quiet_NaN();
    }
  }

 private:
  ToyControls& controls_;
};

// A black picture [90, 150, 3] with a red, a green and a blue rectangle.
struct ToyPicture {
  static constexpr int kWidth = 150;
  static constexpr int kHeight = 90;

  ToyPicture() : pixels(size_t{kWidth} * kHeight * 3) {
    for (int c = 0; c < 3; ++c) {
      const talent::Box box = rectangle(c);
      for (int y = box.y0; y < box.y1; ++y) {
        for (int x = box.x0; x < box.x1; ++x) {
          pixels[static_cast<size_t>((y * kWidth + x) * 3 + c)] = 255;
        }
      }
    }
  }

  // Of the red, the green and the blue one.
  static talent::Box rectangle(int colour) {
    constexpr talent::Box kBoxes[] = {{10, 20, 50, 60}, {60, 30, 90, 80}, {100, 10, 145, 40}};
    return kBoxes[colour];
  }

  talent::PhotoView view() const {
    return {pixels.data(), kWidth, kHeight, int64_t{3} * kWidth, talent::PixelFormat::kRgb};
  }

  std::vector<uint8_t> pixels;
};
