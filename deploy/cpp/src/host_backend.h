// A backend whose vision graph takes and gives tensors on the host.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backend.h"
#include "talent/bundle.h"

namespace talent {

// What a vision graph gives: float32 [count, 1, height, width].
struct Logits {
  std::vector<float> values;
  int64_t count = 0;
  int height = 0;
  int width = 0;
};

// preprocess and mask_on_photo of talent/image.h around `vision`. Photos on the GPU are refused.
class HostBackend : public Backend {
 public:
  // Throws Error for an image size that cannot be.
  explicit HostBackend(const Bundle& bundle);
  ~HostBackend() override;

  std::vector<MaskSummary> segment(const PhotoView& photo, const std::vector<const PromptTensors*>& prompts,
                                   float threshold, const std::vector<MaskTarget>& targets) final;
  std::vector<MaskSummary> segment(const DevicePhotoView& photo, const std::vector<const PromptTensors*>& prompts,
                                   float threshold, const std::vector<MaskTarget>& targets) final;

 protected:
  // input: float32 [1, 3, S, S]; the prompt tensors of B expressions -> logits of B, in memory that an earlier call may
  // have used. Several threads may call it at once.
  virtual void vision(const float* input, int64_t size, const std::vector<const PromptTensors*>& prompts,
                      Logits& logits) = 0;

 private:
  struct Lane;
  class Borrowed;

  const int size_;
  const std::string precision_;
  std::mutex lock_;
  std::vector<std::unique_ptr<Lane>> idle_;  // what no call uses just now
  int64_t lanes_ = 0;
};

}  // namespace talent
