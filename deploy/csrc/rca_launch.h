// Which kernel computes an RCA, and with what grid: decided on the host, without asking a device anything; and what the
// kernels and this decision have to agree on.
#pragma once

#include <cstdint>

#include "rca_kernel.h"

namespace talent {

// What of a device decides. The numbers of a launch that are not measured but judged are in rca_launch.cpp.
struct DeviceLimits {
  int capability;       // 86 for 8.6
  int multiprocessors;
  int shared_bytes;     // the most that one block can be given
};

constexpr int kRcaMostThreads = 256;

enum class RcaKernelKind { kNone, kRows, kTensor, kAny };

// Channels as the kernel of kRows splits them: `lanes` of a warp share a token, each with `vectors` of 16 bytes.
struct RcaRowShape {
  int lanes;
  int vectors;
};

constexpr RcaRowShape kFloatRows[] = {{8, 1}, {8, 2}, {8, 4}, {16, 4}, {32, 4}};
constexpr RcaRowShape kHalfRows[] = {{4, 1}, {8, 1}, {8, 2}, {16, 2}, {32, 2}};
constexpr int kRowShapes = 5;
constexpr int kRowTokens = 2;    // that a group of lanes computes at once
constexpr int kRowPadding = 16;  // bytes behind a word's weights, so that the next word's lie in other banks

// A kernel of kTensor: D, and the most words in tiles of 8. D = 512 with more words would not fit into registers.
struct RcaTensorShape {
  int width;
  int tiles;
};

constexpr RcaTensorShape kTensorShapes[] = {{64, 3}, {64, 8}, {128, 3}, {128, 8}, {256, 3}, {256, 8}, {512, 3}};
constexpr int kTensorVariants = 7;
constexpr int kTensorTokens = 16;   // of a warp at once
constexpr int kTensorPadding = 64;  // bytes behind a word's text: two rows side by side fill all banks

constexpr int kAnyWords = 256;    // costs that a warp of kAny holds in shared memory
constexpr int kAnyChannels = 8;   // of a lane at once

struct RcaLaunch {
  const char* error;  // nullptr, or why there is no such launch
  RcaKernelKind kind;  // kNone where there is nothing to compute
  int variant;         // index of the shape of kRows or kTensor
  int threads;
  int shared_bytes;
  int passes;  // that a block makes over the tokens, so that text and weight are staged less often
  int64_t blocks_per_picture;
  int64_t blocks;
};

RcaLaunch plan_rca(const RcaProblem& problem, RcaMethod method, const DeviceLimits& device);

// What every kernel is given.
struct RcaArguments {
  const void* visual;
  const void* text;
  const void* weight;
  const void* bias;
  void* output;
  int64_t visual_stride;  // elements from one picture to the next, 0 where there is one
  int64_t tokens;
  int words;
  int width;
  int passes;
  uint32_t blocks_per_picture;
  bool relu;
};

RcaArguments rca_arguments(const RcaProblem& problem, const RcaLaunch& launch);

}  // namespace talent
