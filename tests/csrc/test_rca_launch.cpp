// Which kernel is launched, with what grid, and what is refused.
#include "rca_launch.h"

#include <cstring>
#include <initializer_list>

#include "check.h"

using namespace talent;

namespace {

constexpr DeviceLimits kOrin = {87, 16, 163 * 1024};
constexpr DeviceLimits kTuring = {75, 40, 64 * 1024};
constexpr DeviceLimits kServer = {90, 132, 227 * 1024};

alignas(16) char memory[64];

RcaProblem problem(int64_t batch, int64_t tokens, int64_t words, int64_t width, RcaType type) {
  return {memory, memory, memory, memory, memory, batch, batch, tokens, words, width, type, RcaActivation::kNone};
}

void check_kind(const char* what, const RcaLaunch& launch, RcaKernelKind kind) {
  check::that(launch.error == nullptr && launch.kind == kind, "%s to take kernel %d, received %d and %s", what,
              static_cast<int>(kind), static_cast<int>(launch.kind), launch.error);
}

void check_kinds() {
  const RcaProblem block = problem(1, 1024, 22, 128, RcaType::kHalf);
  check_kind("a block adapter", plan_rca(block, RcaMethod::kAuto, kOrin), RcaKernelKind::kTensor);
  check_kind("a block adapter, SIMT", plan_rca(block, RcaMethod::kSimt, kOrin), RcaKernelKind::kRows);
  check_kind("Turing", plan_rca(block, RcaMethod::kTensorCore, kTuring), RcaKernelKind::kRows);
  const RcaProblem neck = problem(1, 1024, 1, 512, RcaType::kHalf);
  check_kind("the neck", plan_rca(neck, RcaMethod::kAuto, kOrin), RcaKernelKind::kRows);
  check_kind("the neck, tensor core", plan_rca(neck, RcaMethod::kTensorCore, kOrin), RcaKernelKind::kTensor);
  const RcaProblem single = problem(1, 1024, 22, 128, RcaType::kFloat);
  check_kind("FP32", plan_rca(single, RcaMethod::kTensorCore, kOrin), RcaKernelKind::kRows);
  check_kind("an odd width", plan_rca(problem(1, 9, 3, 33, RcaType::kHalf), RcaMethod::kAuto, kOrin),
             RcaKernelKind::kAny);
  check_kind("a large width", plan_rca(problem(1, 9, 3, 1024, RcaType::kFloat), RcaMethod::kAuto, kOrin),
             RcaKernelKind::kAny);
  check_kind("many words", plan_rca(problem(1, 9, 1000, 128, RcaType::kFloat), RcaMethod::kAuto, kOrin),
             RcaKernelKind::kAny);
  RcaProblem shifted = block;
  shifted.text = memory + 2;
  check_kind("an odd address", plan_rca(shifted, RcaMethod::kAuto, kOrin), RcaKernelKind::kAny);
  check_kind("no token", plan_rca(problem(1, 0, 3, 64, RcaType::kHalf), RcaMethod::kAuto, kOrin), RcaKernelKind::kNone);
}

// Every token is some block's, no launch asks for more than a device has, and one that is small fills its device.
void check_grids() {
  for (const DeviceLimits& device : {kOrin, kTuring, kServer}) {
    for (const RcaType type : {RcaType::kFloat, RcaType::kHalf}) {
      for (const int64_t batch : {1, 3, 4096}) {
        for (const int64_t tokens : {1, 31, 1024, 1369, 100000}) {
          for (const int64_t words : {1, 17, 40}) {
            for (const int64_t width : {33, 64, 96, 128, 256, 512}) {
              const RcaLaunch launch = plan_rca(problem(batch, tokens, words, width, type), RcaMethod::kAuto, device);
              const int warps = launch.threads / 32;
              int per_warp = 1;
              if (launch.kind == RcaKernelKind::kTensor) {
                per_warp = kTensorTokens;
              } else if (launch.kind == RcaKernelKind::kRows) {
                const RcaRowShape* shapes = type == RcaType::kFloat ? kFloatRows : kHalfRows;
                per_warp = 32 / shapes[launch.variant].lanes * kRowTokens;
              }
              const int64_t covered = launch.blocks_per_picture * launch.passes * warps * per_warp;
              const bool holds_all = covered >= tokens && launch.blocks == batch * launch.blocks_per_picture;
              check::that(launch.error == nullptr && holds_all,
                          "all %lld tokens to be computed, received %lld (%s)", static_cast<long long>(tokens),
                          static_cast<long long>(covered), launch.error);
              check::that(launch.shared_bytes <= device.shared_bytes && launch.threads >= 32 && launch.threads <= 256,
                          "a block that the device can hold, received %d threads and %d bytes", launch.threads,
                          launch.shared_bytes);
              check::that(launch.passes == 1 || launch.blocks >= 8 * device.multiprocessors,
                          "passes only where all multiprocessors are busy, received %d for %lld blocks", launch.passes,
                          static_cast<long long>(launch.blocks));
            }
          }
        }
      }
    }
  }
  const RcaLaunch large = plan_rca(problem(4096, 1 << 24, 1, 64, RcaType::kHalf), RcaMethod::kAuto, kOrin);
  check::that(large.error == nullptr && large.blocks <= 0x7fffffff, "2^36 tokens to fit into a grid, received %s",
              large.error);
}

void check_refused(const char* word, const RcaProblem& wrong, RcaMethod method = RcaMethod::kAuto) {
  const RcaLaunch launch = plan_rca(wrong, method, kOrin);
  check::that(launch.error != nullptr && strstr(launch.error, word) != nullptr && launch.kind == RcaKernelKind::kNone,
              "an error about %s, received %s", word, launch.error ? launch.error : "none");
}

void check_errors() {
  const RcaProblem right = problem(2, 8, 3, 64, RcaType::kHalf);
  check_refused("method", right, RcaMethod{7});
  RcaProblem wrong = right;
  wrong.type = RcaType{9};
  check_refused("type", wrong);
  wrong = right;
  wrong.activation = RcaActivation{9};
  check_refused("activation", wrong);
  wrong = right;
  wrong.visual_batch = 3;
  check_refused("visual", wrong);
  wrong = right;
  wrong.words = 0;
  check_refused("word", wrong);
  wrong = right;
  wrong.tokens = -1;
  check_refused("tokens", wrong);
  wrong = right;
  wrong.bias = nullptr;
  check_refused("pointers", wrong);
  wrong = right;
  wrong.output = memory + 1;
  check_refused("aligned", wrong);
  wrong = right;
  wrong.visual_batch = wrong.batch = int64_t{1} << 40;
  wrong.tokens = int64_t{1} << 40;
  check_refused("63 bits", wrong);
  RcaProblem empty = right;
  empty.visual_batch = empty.batch = 0;
  empty.visual = empty.output = nullptr;
  check::that(plan_rca(empty, RcaMethod::kAuto, kOrin).error == nullptr, "an empty batch to be no error");
}

}  // namespace

int main() {
  check_kinds();
  check_grids();
  check_errors();
  return check::result();
}
