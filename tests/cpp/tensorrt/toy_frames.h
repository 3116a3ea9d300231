// Frames for the toy graphs, and what is to come of them: by the CPU's way of talent/image.h around the same graphs.
#pragma once

#include <cmath>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "backends.h"
#include "check.h"
#include "stand_in_cuda.h"
#include "talent/image.h"
#include "temporary_folder.h"
#include "toy_engines.h"

using Tokens = std::vector<int64_t>;

constexpr float kThreshold = 0.35f;

// Sentences of colours.
inline Tokens sentence(int64_t red, int64_t green, int64_t blue) { return {1, red, green, blue, 2, 0, 0, 0}; }

// A picture of coloured patches, with bytes between its rows.
class Picture {
 public:
  Picture(int width, int height, talent::PixelFormat format, unsigned seed)
      : view_{nullptr, width, height, 0, format} {
    const int bytes = format == talent::PixelFormat::kGrey ? 1 : format >= talent::PixelFormat::kRgba ? 4 : 3;
    view_.stride = int64_t{width} * bytes + 5;
    pixels_.resize(static_cast<size_t>(view_.stride * height));
    std::mt19937 random(seed);
    std::vector<uint8_t> patches(100 * 100 * 4);
    for (uint8_t& level : patches) {
      level = random() % 2 == 0 ? 0 : 255;
    }
    for (int y = 0; y < height; ++y) {
      for (int64_t x = 0; x < view_.stride; ++x) {
        const int64_t patch = (y / 6 * 100 + x / bytes / 6) * 4 + x % bytes;
        pixels_[static_cast<size_t>(y * view_.stride + x)] = patches[static_cast<size_t>(patch)];
      }
    }
    view_.pixels = pixels_.data();
  }

  const talent::PhotoView& view() const { return view_; }
  size_t bytes() const { return pixels_.size(); }

 private:
  talent::PhotoView view_;
  std::vector<uint8_t> pixels_;
};

struct Answer {
  std::vector<uint8_t> mask;
  std::vector<float> probability;
  talent::MaskSummary summary;
};

inline std::vector<float> rounded(std::vector<float> values, bool half) {
  std::vector<std::byte> memory(values.size() * 4);
  toy::write(memory.data(), half, values);
  return toy::read(memory.data(), half, static_cast<int64_t>(values.size()));
}

inline Answer expected_answer(const talent::PhotoView& photo, const Tokens& tokens, const toy::Plan& plan = {}) {
  const auto area = static_cast<size_t>(plan.size * plan.size);
  std::vector<float> input(3 * area), prompt(4), logits(area / 4);
  const talent::Letterbox letterbox = talent::preprocess(photo, static_cast<int>(plan.size), input.data());
  toy::text(tokens.data(), prompt.data(), prompt.data() + 3);
  prompt = rounded(prompt, plan.prompt_half);
  toy::vision(rounded(input, plan.image_half).data(), plan.size, prompt.data(), prompt[3], logits.data());
  logits = rounded(logits, plan.logits_half);
  const int side = static_cast<int>(plan.size / 2);
  const auto pixels = static_cast<size_t>(photo.width) * static_cast<size_t>(photo.height);
  Answer answer = {std::vector<uint8_t>(pixels), std::vector<float>(pixels), {}};
  answer.summary = talent::mask_on_photo(logits.data(), side, side, letterbox, kThreshold, answer.mask.data(),
                                         answer.probability.data());
  return answer;
}

// At most 0.1 % of the pixels differ.
inline void check_answer(const Answer& received, const Answer& expected, const std::string& what) {
  size_t different = 0;
  for (size_t i = 0; i < expected.mask.size(); ++i) {
    different += received.mask[i] != expected.mask[i];
  }
  check::that(different * 1000 <= expected.mask.size(), "%s: the CPU's mask, received %zu other pixels of %zu",
              what.c_str(), different, expected.mask.size());
  const auto& box = expected.summary.box;
  const auto& other = received.summary.box;
  const bool same_box = box.has_value() == other.has_value() &&
                        (!box || (std::abs(box->x0 - other->x0) <= 1 && std::abs(box->y0 - other->y0) <= 1 &&
                                  std::abs(box->x1 - other->x1) <= 1 && std::abs(box->y1 - other->y1) <= 1));
  check::that(same_box && std::fabs(received.summary.score - expected.summary.score) <= 1e-3,
              "%s: the CPU's box and score %f, received %f", what.c_str(), expected.summary.score,
              received.summary.score);
  for (size_t i = 0; i < received.probability.size(); ++i) {
    if (!(std::fabs(received.probability[i] - expected.probability[i]) <= 1e-3f)) {
      check::that(false, "%s: probability %f at pixel %zu, received %f", what.c_str(), expected.probability[i], i,
                  received.probability[i]);
      return;
    }
  }
}

// A backend over toy engines, in a folder of its own.
struct ToyTensorRt {
  explicit ToyTensorRt(const ToyEngines& engines = {}, const talent::Options& options = {})
      : bundle(toy_engine_bundle(folder.path, engines)), backend(talent::open_tensorrt(bundle, kToyRuntime, options)) {}

  template <typename Photo>
  std::vector<Answer> segment(const Photo& photo, const std::vector<const talent::PromptTensors*>& prompts,
                              bool probability = false) {
    const auto pixels = static_cast<size_t>(photo.width) * static_cast<size_t>(photo.height);
    std::vector<Answer> answers(prompts.size());
    std::vector<talent::MaskTarget> targets;
    for (Answer& answer : answers) {
      answer.mask.resize(pixels);
      answer.probability.resize(probability ? pixels : 0);
      targets.push_back({answer.mask.data(), probability ? answer.probability.data() : nullptr});
    }
    const std::vector<talent::MaskSummary> summaries = backend->segment(photo, prompts, kThreshold, targets);
    for (size_t i = 0; i < answers.size(); ++i) {
      answers[i].summary = summaries.at(i);
    }
    return answers;
  }

  TemporaryFolder folder;
  talent::Bundle bundle;
  std::unique_ptr<talent::Backend> backend;
};

// An error with these words comes of the call.
template <typename Call>
void check_refused(const std::string& words, const Call& call) {
  try {
    call();
  } catch (const talent::Error& error) {
    check::that(std::string(error.what()).find(words) != std::string::npos, "an error about %s, received %s",
                words.c_str(), error.what());
    return;
  }
  check::that(false, "an error about %s, received none", words.c_str());
}

// Everything was freed, and no work was thrown away.
inline void check_nothing_is_left(const char* after) {
  const std::string left = stand_in::all_living();
  check::that(left.empty() && stand_in::abandoned() == 0, "nothing to be left after %s, received %s and %d calls' work",
              after, left.c_str(), stand_in::abandoned());
}
