// The text engine of one lane.
#pragma once

#include <cstdint>
#include <vector>

#include "backend.h"
#include "cuda_memory.h"
#include "tensorrt_engine.h"

namespace talent {

// One thread at a time.
class TensorRtText {
 public:
  // activations: memory that the engine runs in; nothing else may run in it at the same time. Throws Error.
  TensorRtText(const TensorRtEngine& engine, const DeviceMemory& activations);

  // int64 [1, L] -> the prompt tensors, once `stream` has done it. Throws Error.
  PromptTensors run(const std::vector<int64_t>& tokens, cudaStream_t stream);

 private:
  const TensorRtEngine& engine_;
  std::vector<size_t> offsets_;  // of the outputs, in `outputs_`
  DeviceMemory tokens_, outputs_;
  PinnedMemory tokens_on_host_, outputs_on_host_;
  TensorRtContext context_;
};

}  // namespace talent
