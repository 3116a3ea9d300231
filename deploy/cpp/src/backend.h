// What runs the two graphs of a bundle, under a Segmenter.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "talent/image.h"
#include "talent/segmenter.h"

namespace talent {

enum class ElementType : int32_t { kFloat = 0, kHalf = 1, kInt64 = 2 };

// One prompt tensor of one expression, on the host; shape[0] is 1.
struct PromptTensor {
  std::string name;
  ElementType type;
  std::vector<int64_t> shape;
  std::vector<std::byte> bytes;
};

// What text makes of one expression. A backend passes it through by name and does not know what it means. Never changed
// once it is made. id: by which the backend that made it recognises it (an address would not do: the next one may get
// the same); 0 where it does not. Copies have the same.
struct PromptTensors {
  std::vector<PromptTensor> tensors;
  uint64_t id = 0;
};

// Where the answer about one expression goes: what mask_on_photo of talent/image.h fills.
struct MaskTarget {
  uint8_t* mask;       // [H, W] without gaps between rows
  float* probability;  // [H, W], or nullptr
};

// Several threads may call it at once.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string name() const = 0;              // "tensorrt", "tensorrt_rtx" or "onnxruntime"
  virtual int64_t most_expressions() const = 0;      // that `segment` takes at once

  // int64 [1, L] -> the prompt tensors.
  virtual PromptTensors text(const std::vector<int64_t>& tokens) = 0;

  // One photo and `prompts` (1 to most_expressions) -> targets[i] and a summary for each of them. Throws Error as
  // preprocess and mask_on_photo do.
  virtual std::vector<MaskSummary> segment(const PhotoView& photo, const std::vector<const PromptTensors*>& prompts,
                                           float threshold, const std::vector<MaskTarget>& targets) = 0;

  // The same for a photo in the memory of the GPU; targets are on the host. Throws Error where it cannot.
  virtual std::vector<MaskSummary> segment(const DevicePhotoView& photo,
                                           const std::vector<const PromptTensors*>& prompts, float threshold,
                                           const std::vector<MaskTarget>& targets) = 0;

  // What goes another way than was asked for, without an error: that CUDA graphs are off, say. Empty for nothing.
  virtual std::string notes() const { return {}; }
};

// Throws Error for logits that are not finite: what Segmenter of deploy/runtime/segmenter.py says of them.
[[noreturn]] void refuse_logits(const std::string& precision);

}  // namespace talent
