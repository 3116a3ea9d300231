#include "rca_launch.h"

#include <algorithm>
#include <initializer_list>
#include <limits>

#include "device.h"

namespace talent {
namespace {

constexpr int kVectorBytes = 16;
constexpr int64_t kMostBlocks = std::numeric_limits<int32_t>::max();

// Judged, not measured: few warps a block while the multiprocessors are not all busy, and a second pass over the tokens
// only where every multiprocessor has several blocks anyway.
constexpr int kFewestWarps = 2;
constexpr int kMostWarps = kRcaMostThreads / kWarp;
constexpr int kBusyBlocks = 8;
constexpr int kMostPasses = 8;

int bytes_of(RcaType type) { return type == RcaType::kFloat ? 4 : 2; }

int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % kVectorBytes == 0; }

// Whether rows and tensors begin where a vector may, so that they can be read and written in vectors.
bool in_vectors(const RcaProblem& problem) {
  return problem.width * bytes_of(problem.type) % kVectorBytes == 0 && is_aligned(problem.visual) &&
         is_aligned(problem.text) && is_aligned(problem.weight) && is_aligned(problem.bias) &&
         is_aligned(problem.output);
}

bool multiplies_up_to(std::initializer_list<int64_t> sizes, int64_t most) {
  int64_t product = 1;
  for (const int64_t size : sizes) {
    if (size != 0 && product > most / size) {
      return false;
    }
    product *= size;
  }
  return true;
}

// Index of the smallest kernel of kTensor for a problem, or kTensorVariants.
int tensor_variant(const RcaProblem& problem) {
  const auto* found = std::find_if(kTensorShapes, kTensorShapes + kTensorVariants, [&](const RcaTensorShape& shape) {
    return shape.width == problem.width && shape.tiles * 8 >= problem.words;
  });
  return static_cast<int>(found - kTensorShapes);
}

// Threads, passes and blocks for a kernel whose warps take `tokens` at once.
void set_grid(RcaLaunch& launch, const RcaProblem& problem, int tokens, const DeviceLimits& device) {
  int warps = kMostWarps;
  const auto blocks_per_picture = [&](int passes) {
    return divide_up(problem.tokens, int64_t{tokens} * warps * passes);
  };
  while (warps > kFewestWarps && problem.batch * blocks_per_picture(1) < device.multiprocessors) {
    warps /= 2;
  }
  launch.threads = warps * kWarp;
  launch.passes = 1;
  while (launch.passes < kMostPasses &&
         problem.batch * blocks_per_picture(launch.passes * 2) >= int64_t{kBusyBlocks} * device.multiprocessors) {
    launch.passes *= 2;
  }
  while (problem.batch * blocks_per_picture(launch.passes) > kMostBlocks && launch.passes < (1 << 20)) {
    launch.passes *= 2;
  }
  launch.blocks_per_picture = blocks_per_picture(launch.passes);
  launch.blocks = problem.batch * launch.blocks_per_picture;
  if (launch.blocks > kMostBlocks) {
    launch.error = "rca: expected batch times tokens to fit into one launch; compute it in parts";
  }
}

bool plan_tensor(RcaLaunch& launch, const RcaProblem& problem, const DeviceLimits& device) {
  if (!rca_takes_tensor_cores(problem, device.capability) || !in_vectors(problem)) {
    return false;
  }
  const int tiles = static_cast<int>(divide_up(problem.words, 8));
  const int width = static_cast<int>(problem.width);
  launch.variant = tensor_variant(problem);
  launch.shared_bytes = tiles * 8 * (width * 2 + kTensorPadding) + tiles * 8 * width * 2;
  if (launch.shared_bytes > device.shared_bytes) {
    return false;
  }
  launch.kind = RcaKernelKind::kTensor;
  set_grid(launch, problem, kTensorTokens, device);
  return true;
}

bool plan_rows(RcaLaunch& launch, const RcaProblem& problem, const DeviceLimits& device) {
  const int bytes = bytes_of(problem.type);
  const RcaRowShape* shapes = problem.type == RcaType::kFloat ? kFloatRows : kHalfRows;
  const auto* shape = std::find_if(shapes, shapes + kRowShapes, [&](const RcaRowShape& candidate) {
    return problem.width * bytes <= int64_t{candidate.lanes} * candidate.vectors * kVectorBytes;
  });
  if (shape == shapes + kRowShapes || !in_vectors(problem)) {
    return false;
  }
  const int64_t row = int64_t{shape->lanes} * shape->vectors * kVectorBytes;
  const int64_t shared = problem.words * (row + row + kRowPadding);
  if (shared > device.shared_bytes) {
    return false;
  }
  launch.kind = RcaKernelKind::kRows;
  launch.variant = static_cast<int>(shape - shapes);
  launch.shared_bytes = static_cast<int>(shared);
  set_grid(launch, problem, kWarp / shape->lanes * kRowTokens, device);
  return true;
}

void plan_any(RcaLaunch& launch, const RcaProblem& problem, const DeviceLimits& device) {
  launch.kind = RcaKernelKind::kAny;
  launch.variant = 0;
  set_grid(launch, problem, 1, device);
  launch.shared_bytes = launch.threads / kWarp * kAnyWords * 4;
}

}  // namespace

const char* rca_problem_error(const RcaProblem& problem) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max() / 8;
  constexpr int64_t kMostInt = std::numeric_limits<int32_t>::max();
  if (problem.type != RcaType::kFloat && problem.type != RcaType::kHalf && problem.type != RcaType::kBfloat16) {
    return "rca: expected the type to be float, half or bfloat16";
  }
  if (problem.activation != RcaActivation::kNone && problem.activation != RcaActivation::kRelu) {
    return "rca: expected the activation to be none or relu";
  }
  if (problem.batch < 0 || problem.tokens < 0 || problem.words < 1 || problem.width < 1) {
    return "rca: expected batch and tokens of at least 0, and at least one word and one channel";
  }
  if (problem.visual_batch != problem.batch && problem.visual_batch != 1) {
    return "rca: expected the batch of visual to be that of text, or 1";
  }
  if (problem.words > kMostInt || problem.width > kMostInt ||
      !multiplies_up_to({problem.batch, problem.tokens, problem.width}, kMost) ||
      !multiplies_up_to({problem.batch, problem.words, problem.width}, kMost)) {
    return "rca: expected sizes whose products fit into 63 bits";
  }
  if (problem.batch == 0 || problem.tokens == 0) {
    return nullptr;
  }
  const void* pointers[] = {problem.visual, problem.text, problem.weight, problem.bias, problem.output};
  for (const void* pointer : pointers) {
    if (pointer == nullptr || reinterpret_cast<uintptr_t>(pointer) % static_cast<size_t>(bytes_of(problem.type)) != 0) {
      return "rca: expected pointers to visual, text, weight, bias and output that are aligned to their type";
    }
  }
  return nullptr;
}

bool rca_takes_tensor_cores(const RcaProblem& problem, int capability) {
  return problem.type != RcaType::kFloat && tensor_variant(problem) < kTensorVariants &&
         capability >= kRcaTensorCapability;
}

RcaLaunch plan_rca(const RcaProblem& problem, RcaMethod method, const DeviceLimits& device) {
  RcaLaunch launch = {rca_problem_error(problem), RcaKernelKind::kNone, 0, 0, 0, 0, 0, 0};
  if (launch.error != nullptr || problem.batch == 0 || problem.tokens == 0) {
    return launch;
  }
  if (method != RcaMethod::kAuto && method != RcaMethod::kSimt && method != RcaMethod::kTensorCore) {
    launch.error = "rca: expected the method to be auto, SIMT or tensor core";
    return launch;
  }
  const bool wants_tensor =
      method == RcaMethod::kTensorCore || (method == RcaMethod::kAuto && problem.words >= kRcaTensorWords);
  if (!(wants_tensor && plan_tensor(launch, problem, device)) && !plan_rows(launch, problem, device)) {
    plan_any(launch, problem, device);
  }
  return launch;
}

RcaArguments rca_arguments(const RcaProblem& problem, const RcaLaunch& launch) {
  return {problem.visual,
          problem.text,
          problem.weight,
          problem.bias,
          problem.output,
          problem.visual_batch == 1 ? 0 : problem.tokens * problem.width,
          problem.tokens,
          static_cast<int>(problem.words),
          static_cast<int>(problem.width),
          launch.passes,
          static_cast<uint32_t>(launch.blocks_per_picture),
          problem.activation == RcaActivation::kRelu};
}

}  // namespace talent
