// The kernels on the emulated device against the reference: with buffers that end where they end (under
// AddressSanitizer), poisoned outputs, and the threads of a block in three orders, which must give the same bits.
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "emulated_rca.h"
#include "number_formats.h"

using namespace talent;
using emulated::Order;

namespace {

struct Case {
  int64_t visual_batch, batch, tokens, words, width;
  RcaActivation activation;
  RcaMethod method;
  int multiprocessors;
  RcaKernelKind kind;
};

template <typename Number>
std::vector<Number> numbers(size_t count, float scale, std::mt19937& random) {
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<Number> result(count);
  for (Number& number : result) {
    number = from_float<Number>(normal(random));
  }
  return result;
}

template <typename Number>
double distance(const std::vector<Number>& one, const std::vector<Number>& other) {
  double difference = 0.0;
  double total = 0.0;
  for (size_t i = 0; i < one.size(); ++i) {
    difference += std::pow(double{to_float(one[i])} - to_float(other[i]), 2);
    total += std::pow(double{to_float(other[i])}, 2);
  }
  return std::sqrt(difference / total);
}

template <typename Number>
void check_case(const Case& one, RcaType type, double tolerance) {
  std::mt19937 random(2);
  const auto size = [](int64_t a, int64_t b, int64_t c) { return static_cast<size_t>(a * b * c); };
  const auto visual = numbers<Number>(size(one.visual_batch, one.tokens, one.width), 1.0f, random);
  const float scale = 1.0f / std::sqrt(static_cast<float>(one.width));
  const auto text = numbers<Number>(size(one.batch, one.words, one.width), scale, random);
  const auto weight = numbers<Number>(size(1, one.width, one.words), 1.0f, random);
  const auto bias = numbers<Number>(size(1, 1, one.width), 1.0f, random);
  const Number poison = from_float<Number>(std::nanf(""));
  std::vector<Number> expected(size(one.batch, one.tokens, one.width), poison);
  RcaProblem problem = {visual.data(), text.data(),  weight.data(), bias.data(), expected.data(), one.visual_batch,
                        one.batch,     one.tokens,   one.words,     one.width,   type,            one.activation};
  const char* wrong = rca_reference(problem);
  check::that(wrong == nullptr, "no error of the reference, received %s", wrong);

  const DeviceLimits device = {86, one.multiprocessors, 99 * 1024};
  const RcaLaunch plan = plan_rca(problem, one.method, device);
  check::that(plan.kind == one.kind, "kernel %d for %lld words of %lld, received %d", static_cast<int>(one.kind),
              static_cast<long long>(one.words), static_cast<long long>(one.width), static_cast<int>(plan.kind));
  std::vector<Number> first;
  for (const Order order : {Order::kForward, Order::kBackward, Order::kShuffled}) {
    std::vector<Number> output(expected.size(), poison);
    problem.output = output.data();
    wrong = emulated::rca_cost_aggregation(problem, one.method, device, order);
    check::that(wrong == nullptr, "no error, received %s", wrong);
    if (first.empty()) {
      first = output;
      const double error = distance(output, expected);
      check::that(error <= tolerance, "an error of %g at most (%lld words of %lld, %d passes), received %g", tolerance,
                  static_cast<long long>(one.words), static_cast<long long>(one.width), plan.passes, error);
    }
    check::that(memcmp(output.data(), first.data(), output.size() * sizeof(Number)) == 0,
                "the same bits in every order of threads (%lld words of %lld)", static_cast<long long>(one.words),
                static_cast<long long>(one.width));
  }
}

}  // namespace

int main() {
  constexpr auto kNone = RcaActivation::kNone;
  constexpr auto kRelu = RcaActivation::kRelu;
  constexpr auto kAuto = RcaMethod::kAuto;
  constexpr auto kSimt = RcaMethod::kSimt;
  using Kind = RcaKernelKind;
  const Case cases[] = {
      {2, 2, 37, 17, 128, kNone, kAuto, 4, Kind::kTensor},   {1, 2, 70, 22, 64, kRelu, kAuto, 1, Kind::kTensor},
      {1, 1, 33, 40, 64, kNone, kAuto, 4, Kind::kTensor},    {1, 2, 18, 9, 256, kNone, kAuto, 4, Kind::kTensor},
      {1, 1, 17, 40, 128, kRelu, kAuto, 4, Kind::kTensor},   {1, 1, 16, 33, 256, kNone, kAuto, 4, Kind::kTensor},
      {1, 1, 9, 17, 512, kNone, kAuto, 4, Kind::kTensor},
      {2, 2, 37, 17, 128, kRelu, kSimt, 4, Kind::kRows},     {1, 1, 300, 3, 32, kNone, kSimt, 1, Kind::kRows},
      {1, 3, 9, 1, 512, kRelu, kAuto, 4, Kind::kRows},       {2, 2, 11, 5, 96, kNone, kSimt, 4, Kind::kRows},
      {1, 2, 5, 7, 33, kRelu, kAuto, 4, Kind::kAny},         {2, 2, 3, 300, 260, kNone, kSimt, 1, Kind::kAny},
  };
  for (const Case& one : cases) {
    check_case<Half>(one, RcaType::kHalf, 5e-4);
    check_case<Bfloat16>(one, RcaType::kBfloat16, 4e-3);
    if (one.kind != Kind::kTensor) {
      check_case<float>(one, RcaType::kFloat, 5e-7);
    }
  }
  return check::result();
}
