// Pictures and masks on the CPU: buffers that end where they end (under AddressSanitizer), what must not depend on how
// it is asked for, and what is refused. tests/deploy/test_picture_host.py holds them against Python.
#include "talent/image.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "check.h"

using namespace talent;

namespace {

constexpr int kBytes[] = {3, 3, 4, 4, 1};
constexpr int kOrder[][3] = {{0, 1, 2}, {2, 1, 0}, {0, 1, 2}, {2, 1, 0}, {0, 0, 0}};

// The same picture in every format, its rows further apart or not, makes the same input.
void check_formats(int width, int height, int size) {
  std::mt19937 random(4);
  std::vector<uint8_t> colours(static_cast<size_t>(width * height * 3));
  for (int format = 0; format < 5; ++format) {
    std::vector<float> first;
    for (const int spare : {0, 7}) {
      const int bytes = kBytes[format];
      const int stride = width * bytes + spare;
      for (size_t i = 0; i < colours.size(); ++i) {
        colours[i] = static_cast<uint8_t>(format < 4 || i % 3 == 0 ? random() : colours[i - 1]);
      }
      std::vector<uint8_t> pixels(static_cast<size_t>(stride * (height - 1) + width * bytes), 99);
      std::vector<uint8_t> plain = colours;
      for (int i = 0; i < width * height; ++i) {
        for (int c = 0; c < 3; ++c) {
          pixels[static_cast<size_t>(i / width * stride + i % width * bytes + kOrder[format][c])] =
              plain[static_cast<size_t>(i * 3 + c)];
        }
      }
      std::vector<float> expected(static_cast<size_t>(3 * size * size), std::nanf(""));
      std::vector<float> received = expected;
      preprocess({plain.data(), width, height, width * 3, PixelFormat::kRgb}, size, expected.data());
      const Letterbox letterbox =
          preprocess({pixels.data(), width, height, stride, PixelFormat{format}}, size, received.data());
      check::that(letterbox.width == width && letterbox.height == height && letterbox.size == size,
                  "the letterbox of the photo");
      check::that(memcmp(received.data(), expected.data(), expected.size() * sizeof(float)) == 0,
                  "%d x %d in format %d to make the same input as RGB", width, height, format);
      for (const float value : received) {
        check::that(value > -2.0f && value < 2.3f, "an input between black and white, received %g", value);
      }
    }
  }
}

void check_border() {
  const uint8_t white[3] = {255, 255, 255};
  std::vector<float> input(3 * 12 * 12);
  const std::vector<uint8_t> row(3 * 12, 255);
  preprocess({row.data(), 12, 1, 36, PixelFormat::kRgb}, 12, input.data());
  check::that(std::fabs(input[0] - (123 / 255.0f - 0.48145466f) / 0.26862954f) < 1e-6f,
              "CLIP's mean above a flat photo");
  preprocess({white, 1, 1, 3, PixelFormat::kRgb}, 12, input.data());
  check::that(std::fabs(input[0] - (1.0f - 0.48145466f) / 0.26862954f) < 1e-6f, "one white pixel to begin white");
}

// Asked for the probability or not, a mask is the same, although blocks are left out of one of them.
void check_masks(int width, int height, int size, int grid_height, int grid_width, float threshold) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal(-2.0f, 4.0f);
  std::vector<float> logits(static_cast<size_t>(grid_height * grid_width));
  for (float& logit : logits) {
    logit = normal(random);
  }
  const Letterbox letterbox = {width, height, size};
  std::vector<uint8_t> mask(static_cast<size_t>(width) * static_cast<size_t>(height), 77);
  std::vector<uint8_t> alone = mask;
  std::vector<float> probability(mask.size(), std::nanf(""));
  const MaskSummary summary =
      mask_on_photo(logits.data(), grid_height, grid_width, letterbox, threshold, mask.data(), probability.data());
  const MaskSummary same = mask_on_photo(logits.data(), grid_height, grid_width, letterbox, threshold, alone.data());
  check::that(mask == alone && summary.pixels == same.pixels && summary.score == same.score,
              "%d x %d from %d x %d: the same mask without its probability", width, height, grid_width, grid_height);
  int64_t pixels = 0;
  double sum = 0.0;
  Box box = {width, height, 0, 0};
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      const size_t at = static_cast<size_t>(y) * static_cast<size_t>(width) + static_cast<size_t>(x);
      const int wanted = probability[at] > threshold ? 255 : 0;
      check::that(probability[at] >= 0.0f && probability[at] <= 1.0f && mask[at] == wanted,
                  "the mask at %d %d to follow its probability %g", x, y, probability[at]);
      if (mask[at] != 0) {
        ++pixels;
        sum += probability[at];
        box = {std::min(box.x0, x), std::min(box.y0, y), std::max(box.x1, x + 1), std::max(box.y1, y + 1)};
      }
    }
  }
  check::that(pixels == summary.pixels && (pixels > 0) == summary.box.has_value(), "%lld pixels, received %lld",
              static_cast<long long>(pixels), static_cast<long long>(summary.pixels));
  if (pixels > 0) {
    const Box& found = *summary.box;
    check::that(found.x0 == box.x0 && found.y0 == box.y0 && found.x1 == box.x1 && found.y1 == box.y1,
                "a box of %d %d %d %d, received %d %d %d %d", box.x0, box.y0, box.x1, box.y1, found.x0, found.y0,
                found.x1, found.y1);
  }
  const double score = pixels > 0 ? sum / static_cast<double>(pixels) : 0.0;
  check::that(std::fabs(summary.score - score) < 1e-6, "a score of %g, received %g", score, summary.score);
}

template <typename Call>
void check_refused(const char* expected, Call call) {
  try {
    call();
    check::that(false, "an error about \"%s\"", expected);
  } catch (const Error& error) {
    check::that(std::string(error.what()).find(expected) != std::string::npos, "an error about \"%s\", received %s",
                expected, error.what());
  }
}

void check_errors() {
  const uint8_t pixels[12] = {};
  float input[3];
  const auto photo = [&](int width, int height, int64_t stride, int format, int size) {
    return [=, &pixels, &input] { preprocess({pixels, width, height, stride, PixelFormat{format}}, size, input); };
  };
  check_refused("sides from 1 to 32766 pixels, received 0 x 2", photo(0, 2, 12, 0, 1));
  check_refused("received 1 x 40000", photo(1, 40000, 12, 0, 1));
  check_refused("an image size from 1 to 32766, received 0", photo(2, 2, 6, 0, 0));
  check_refused("a stride of at least 8 bytes, received 6", photo(2, 2, 6, 2, 1));
  check_refused("RGB, BGR, RGBA, BGRA or grey, received 5", photo(2, 2, 6, 5, 1));
  check_refused("a picture, received no pixels", [&] { preprocess({nullptr, 2, 2, 6, PixelFormat::kRgb}, 1, input); });

  float logits[4] = {1.0f, 2.0f, 3.0f, 4.0f};
  uint8_t mask[6];
  const auto result = [&](int cells, int size, float threshold) {
    return [=, &logits, &mask] { mask_on_photo(logits, cells, 2, {3, 2, size}, threshold, mask); };
  };
  check_refused("logits of 1 x 1 to 14 x 14, received 0 x 2", result(0, 14, 0.5f));
  check_refused("logits of 1 x 1 to 1 x 1, received 2 x 2", result(2, 1, 0.5f));
  check_refused("a threshold from 0 to below 1, received 1", result(2, 14, 1.0f));
  check_refused("a threshold", result(2, 14, std::nanf("")));
  for (const float value : {std::nanf(""), HUGE_VALF, -HUGE_VALF}) {
    logits[3] = value;
    check_refused("not finite, which FP16 overflow does; export the bundle again", result(2, 14, 0.5f));
  }
}

}  // namespace

int main() {
  for (const auto& [width, height] : {std::pair(1, 1), {37, 53}, {300, 2}, {1, 500}, {64, 48}}) {
    check_formats(width, height, 28);
    check_formats(width, height, 1);
  }
  check_border();
  for (const float threshold : {0.0f, 0.35f, 0.999f}) {
    check_masks(37, 53, 28, 8, 8, threshold);
    check_masks(300, 129, 64, 16, 9, threshold);
    check_masks(128, 3, 28, 28, 28, threshold);
    check_masks(1, 500, 28, 7, 8, threshold);
    check_masks(2, 2, 448, 112, 112, threshold);
    check_masks(1, 1, 1, 1, 1, threshold);
  }
  check_errors();
  return check::result();
}
