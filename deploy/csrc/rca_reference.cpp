#include <cstdint>
#include <vector>

#include "number_formats.h"
#include "rca_kernel.h"

namespace talent {
namespace {

template <typename Number>
void compute(const RcaProblem& problem) {
  const auto* visual = static_cast<const Number*>(problem.visual);
  const auto* text = static_cast<const Number*>(problem.text);
  const auto* weight = static_cast<const Number*>(problem.weight);
  const auto* bias = static_cast<const Number*>(problem.bias);
  auto* output = static_cast<Number*>(problem.output);
  const int64_t words = problem.words;
  const int64_t width = problem.width;
  const int64_t picture = problem.tokens * width;
  std::vector<float> cost(static_cast<size_t>(words));
  for (int64_t b = 0; b < problem.batch; ++b) {
    for (int64_t n = 0; n < problem.tokens; ++n) {
      const Number* token = visual + (problem.visual_batch == 1 ? 0 : b * picture) + n * width;
      for (int64_t k = 0; k < words; ++k) {
        float sum = 0.0f;
        for (int64_t d = 0; d < width; ++d) {
          sum += to_float(token[d]) * to_float(text[(b * words + k) * width + d]);
        }
        cost[static_cast<size_t>(k)] = sum;
      }
      for (int64_t d = 0; d < width; ++d) {
        float gate = to_float(bias[d]);
        for (int64_t k = 0; k < words; ++k) {
          gate += cost[static_cast<size_t>(k)] * to_float(weight[d * words + k]);
        }
        if (problem.activation == RcaActivation::kRelu && gate < 0.0f) {
          gate = 0.0f;
        }
        output[b * picture + n * width + d] = from_float<Number>(gate * to_float(token[d]));
      }
    }
  }
}

}  // namespace

const char* rca_reference(const RcaProblem& problem) {
  if (const char* wrong = rca_problem_error(problem)) {
    return wrong;
  }
  if (problem.type == RcaType::kFloat) {
    compute<float>(problem);
  } else if (problem.type == RcaType::kHalf) {
    compute<Half>(problem);
  } else {
    compute<Bfloat16>(problem);
  }
  return nullptr;
}

}  // namespace talent
