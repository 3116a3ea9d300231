// The vision engine of one lane: its tensors on the GPU, and for each number of expressions an execution context with
// its CUDA graph, since TensorRT ties a graph to the context that it was captured from.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "backend.h"
#include "cuda_graph.h"
#include "cuda_memory.h"
#include "tensorrt_engine.h"

namespace talent {

// One thread at a time.
class TensorRtVision {
 public:
  // activations: as for TensorRtText. most: expressions. Throws Error.
  TensorRtVision(const TensorRtEngine& engine, const DeviceMemory& activations, int64_t most);

  // The image is [1, 3, S, S], the logits are [B, 1, h, w]; both stay where they are.
  const EngineTensor& image() const noexcept { return image_; }
  const EngineTensor& logits() const noexcept { return logits_; }
  std::byte* image_on_gpu() const noexcept { return image_memory_.get(); }
  std::byte* logits_on_gpu() const noexcept { return logits_memory_.get(); }

  // Whether the tensors of these prompts are on the GPU, in this order.
  bool holds(const std::vector<const PromptTensors*>& prompts) const;

  // Puts those into `stream` that are not there already; they must live until it has done it. Throws Error for prompt
  // tensors that are not those of this engine.
  void upload(const std::vector<const PromptTensors*>& prompts, cudaStream_t stream);

  // Puts the engine, for the image and the first prompts that are there, into `stream`: from the second call on, where
  // `graphs` is on, as one graph. Throws Error.
  void run(int64_t expressions, CudaGraphs& graphs, cudaStream_t stream);

 private:
  struct Run {
    TensorRtContext context;
    CudaGraphExec graph;
    bool warm = false;  // TensorRT must have run once before a graph of it can be captured
  };

  Run make_run(int64_t expressions) const;
  void enqueue(const Run& run, cudaStream_t stream) const;

  const TensorRtEngine& engine_;
  const DeviceMemory& activations_;
  const EngineTensor& image_;
  const EngineTensor& logits_;
  std::vector<const EngineTensor*> prompt_tensors_;
  DeviceMemory image_memory_, logits_memory_;
  std::vector<DeviceMemory> prompt_memory_;  // of each prompt tensor, for the most expressions
  std::vector<uint64_t> uploaded_;           // PromptTensors::id of each expression; 0 for none
  std::map<int64_t, Run> runs_;              // by the number of expressions
};

}  // namespace talent
