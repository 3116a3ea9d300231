// The picture kernels on the emulated device against the same sums in double precision, pixel by pixel: with buffers
// that end where they end (under AddressSanitizer), poisoned outputs, and threads in three orders, which must give the
// same bits.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "check.h"
#include "emulated_picture.h"
#include "number_formats.h"
#include "picture_math.h"

using namespace talent;
using emulated::Order;

namespace {

constexpr Order kOrders[] = {Order::kForward, Order::kBackward, Order::kShuffled};
constexpr double kMean[3] = {0.48145466, 0.4578275, 0.40821073};
constexpr double kDeviation[3] = {0.26862954, 0.26130258, 0.27577711};

struct Photo {
  int width, height;
  PictureFormat format;
  int bytes;
  int order[3];  // bytes of red, green, blue
};

double cubic(double distance) {
  const double d = std::fabs(distance);
  return d <= 1 ? (1.25 * d - 2.25) * d * d + 1 : d < 2 ? ((-0.75 * d + 3.75) * d - 6) * d + 3 : 0;
}

// The sum over `value(row, column)` around a position, weighted.
template <typename Value>
double sampled(double x, double y, Value value) {
  double sum = 0.0;
  const int left = static_cast<int>(std::floor(x)) - 1;
  const int top = static_cast<int>(std::floor(y)) - 1;
  for (int row = top; row < top + 4; ++row) {
    for (int column = left; column < left + 4; ++column) {
      sum += cubic(x - column) * cubic(y - row) * value(row, column);
    }
  }
  return sum;
}

struct Place {
  double scale, left, top;

  Place(int width, int height, int size)
      : scale(std::fmin(static_cast<double>(size) / width, static_cast<double>(size) / height)),
        left((size - width * scale) / 2),
        top((size - height * scale) / 2) {}
};

template <typename Number>
void check_input(const Photo& photo, int size, PictureType type, double tolerance) {
  std::mt19937 random(1);
  const int stride = photo.width * photo.bytes + 5;
  std::vector<uint8_t> pixels(static_cast<size_t>(stride * (photo.height - 1) + photo.width * photo.bytes));
  for (uint8_t& pixel : pixels) {
    pixel = static_cast<uint8_t>(random());
  }
  std::vector<Number> first;
  for (const Order order : kOrders) {
    std::vector<Number> output(static_cast<size_t>(3 * size * size), from_float<Number>(std::nanf("")));
    const char* wrong = emulated::picture_to_input(
        {pixels.data(), photo.width, photo.height, stride, photo.format, output.data(), size, type}, order);
    check::that(wrong == nullptr, "no error, received %s", wrong);
    first = first.empty() ? output : first;
    check::that(memcmp(output.data(), first.data(), output.size() * sizeof(Number)) == 0,
                "the same bits in every order");
  }
  const Place place(photo.width, photo.height, size);
  int differ = 0;
  for (int i = 0; i < 3 * size * size; ++i) {
    const int c = i / (size * size);
    const double x = (i % size - place.left) / place.scale;
    const double y = (i / size % size - place.top) / place.scale;
    const double level = sampled(x, y, [&](int row, int column) -> double {
      const bool inside = row >= 0 && row < photo.height && column >= 0 && column < photo.width;
      return inside ? pixels[static_cast<size_t>(row * stride + column * photo.bytes + photo.order[c])]
                    : std::nearbyint(255 * kMean[c]);
    });
    const double received = (to_float(first[static_cast<size_t>(i)]) * kDeviation[c] + kMean[c]) * 255;
    const double clamped = std::fmin(std::fmax(level, 0.0), 255.0);
    differ += std::fabs(received - std::nearbyint(clamped)) > tolerance;
    check::that(std::fabs(received - clamped) <= 0.5 + tolerance + 1e-3, "a level of %g at %d, received %g", level, i,
                received);
  }
  check::that(differ <= 1 + 3 * size * size / 1000, "nearly all levels rounded alike, received %d that are not",
              differ);
}

struct MaskCase {
  int width, height, size, grid_width, grid_height, batch;
  float threshold;
};

template <typename Number>
void check_mask(const MaskCase& one, PictureType type) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  const int cells = one.grid_width * one.grid_height;
  std::vector<Number> logits(static_cast<size_t>(one.batch * cells));
  for (Number& logit : logits) {
    logit = from_float<Number>(normal(random));
  }
  const size_t pixels = static_cast<size_t>(one.width) * static_cast<size_t>(one.height);
  const size_t all = static_cast<size_t>(one.batch) * pixels;
  std::vector<uint8_t> mask;
  std::vector<float> probability;
  std::vector<PictureTotals> totals;
  for (const Order order : kOrders) {
    std::vector<uint8_t> masks(all, 77);
    std::vector<float> probabilities(all, std::nanf(""));
    std::vector<PictureTotals> sums(static_cast<size_t>(one.batch));
    PictureMask problem = {logits.data(), type,          one.batch,        one.grid_width, one.grid_height,
                           one.size,      one.width,     one.height,       one.threshold,  1,
                           masks.data(),  probabilities.data(), sums.data()};
    const char* wrong = emulated::logits_to_mask(problem, order);
    check::that(wrong == nullptr, "no error, received %s", wrong);
    if (mask.empty()) {
      mask = masks;
      probability = probabilities;
      totals = sums;
      problem.probability = nullptr;
      problem.totals = nullptr;
      std::fill(masks.begin(), masks.end(), uint8_t{77});
      wrong = emulated::logits_to_mask(problem, order);
      check::that(wrong == nullptr && masks == mask, "the same mask without totals and probability, received %s",
                  wrong);
    }
    check::that(masks == mask && memcmp(probabilities.data(), probability.data(), all * sizeof(float)) == 0 &&
                    memcmp(sums.data(), totals.data(), sums.size() * sizeof(PictureTotals)) == 0,
                "the same bits in every order");
  }

  const Place place(one.width, one.height, one.size);
  for (int b = 0; b < one.batch; ++b) {
    const Number* own = logits.data() + b * cells;
    std::vector<double> canvas(static_cast<size_t>(one.size * one.size));
    const double steps = one.size > 1 ? one.size - 1 : 1;
    for (int i = 0; i < one.size * one.size; ++i) {
      canvas[static_cast<size_t>(i)] =
          sampled(i % one.size * (one.grid_width - 1) / steps, i / one.size * (one.grid_height - 1) / steps,
                  [&](int row, int column) {
                    row = std::min(std::max(row, 0), one.grid_height - 1);
                    column = std::min(std::max(column, 0), one.grid_width - 1);
                    return 1 / (1 + std::exp(-double{to_float(own[row * one.grid_width + column])}));
                  });
    }
    PictureSummary expected = {true, 0, 0.0, one.width, one.height, 0, 0};
    for (int i = 0; i < static_cast<int>(pixels); ++i) {
      const int x = i % one.width;
      const int y = i / one.width;
      const double exact = sampled(x * place.scale + place.left, y * place.scale + place.top, [&](int row, int column) {
        const bool inside = row >= 0 && row < one.size && column >= 0 && column < one.size;
        return inside ? canvas[static_cast<size_t>(row * one.size + column)] : 0.0;
      });
      const double clipped = std::fmin(std::fmax(exact, 0.0), 1.0);
      const size_t at = static_cast<size_t>(b) * pixels + static_cast<size_t>(i);
      check::that(std::fabs(probability[at] - clipped) < 5e-5, "a probability of %g at %d %d, received %g", clipped, x,
                  y, probability[at]);
      check::that(mask[at] == (probability[at] > one.threshold ? 1 : 0),
                  "the mask at %d %d to follow its probability", x, y);
      if (mask[at] == 1) {
        expected.pixels += 1;
        expected.score += probability[at];
        expected.x0 = std::min(expected.x0, x);
        expected.y0 = std::min(expected.y0, y);
        expected.x1 = std::max(expected.x1, x + 1);
        expected.y1 = std::max(expected.y1, y + 1);
      }
    }
    const PictureSummary received = picture_summary(totals[static_cast<size_t>(b)], one.width, one.height);
    check::that(received.finite && received.pixels == expected.pixels && expected.pixels > 0,
                "%lld pixels, received %lld", static_cast<long long>(expected.pixels),
                static_cast<long long>(received.pixels));
    check::that(received.x0 == expected.x0 && received.y0 == expected.y0 && received.x1 == expected.x1 &&
                    received.y1 == expected.y1,
                "a box of %d %d %d %d, received %d %d %d %d", expected.x0, expected.y0, expected.x1, expected.y1,
                received.x0, received.y0, received.x1, received.y1);
    const double score = expected.score / static_cast<double>(expected.pixels);
    check::that(std::fabs(received.score - score) < 1e-6, "a score of %g, received %g", score, received.score);
  }
}

// Wherever it is, also where no pixel of the photo depends on it; counted once, although blocks share the looking.
void check_not_finite() {
  constexpr int kCells = 28 * 28;
  const std::pair<int, float> wrongs[] = {
      {0, HUGE_VALF}, {256, -HUGE_VALF}, {600, std::nanf("")}, {kCells - 1, HUGE_VALF}};
  for (const auto& [at, value] : wrongs) {
    std::vector<float> logits(2 * kCells, -9.0f);
    logits[static_cast<size_t>(kCells + at)] = value;
    std::vector<uint8_t> mask(2 * 70);
    PictureTotals totals[2];
    const char* wrong = emulated::logits_to_mask(
        {logits.data(), PictureType::kFloat, 2, 28, 28, 28, 70, 1, 0.35f, 255, mask.data(), nullptr, totals},
        Order::kForward);
    check::that(wrong == nullptr && totals[0].not_finite == 0 && totals[1].not_finite == 1,
                "one logit of the second expression, number %d, to be reported, received %u and %u", at,
                totals[0].not_finite, totals[1].not_finite);
  }
}

}  // namespace

int main() {
  const Photo photos[] = {
      {37, 53, PictureFormat::kRgb, 3, {0, 1, 2}},  {53, 37, PictureFormat::kBgr, 3, {2, 1, 0}},
      {60, 3, PictureFormat::kRgba, 4, {0, 1, 2}},  {1, 90, PictureFormat::kBgra, 4, {2, 1, 0}},
      {40, 30, PictureFormat::kGrey, 1, {0, 0, 0}}, {1, 1, PictureFormat::kRgb, 3, {0, 1, 2}},
  };
  for (const Photo& photo : photos) {
    check_input<float>(photo, 20, PictureType::kFloat, 1e-3);
    check_input<Half>(photo, 13, PictureType::kHalf, 0.1);
  }
  const MaskCase cases[] = {
      {37, 53, 28, 8, 8, 1, 0.35f}, {66, 20, 28, 7, 9, 1, 0.6f}, {1, 1, 28, 8, 8, 1, 0.01f},
      {9, 3, 28, 28, 28, 1, 0.35f}, {5, 40, 64, 16, 16, 1, 0.9f},
  };
  for (const MaskCase& one : cases) {
    check_mask<float>(one, PictureType::kFloat);
  }
  check_mask<Half>({66, 9, 14, 1, 3, 3, 0.0f}, PictureType::kHalf);
  check_not_finite();
  return check::result();
}
