// What one caller at a time runs a bundle in: execution contexts, a stream, and memory on both sides.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "backend.h"
#include "cuda_memory.h"
#include "tensorrt_model.h"
#include "tensorrt_text.h"
#include "tensorrt_vision.h"

namespace talent {

// One thread at a time, with the GPU of the model current. After an Error it must not be used again, since nobody knows
// what its stream still holds.
class TensorRtLane {
 public:
  explicit TensorRtLane(TensorRtModel& model);
  ~TensorRtLane();  // waits for what is under way
  TensorRtLane(const TensorRtLane&) = delete;
  TensorRtLane& operator=(const TensorRtLane&) = delete;

  bool has_text() const noexcept { return text_.has_value(); }
  bool holds(const std::vector<const PromptTensors*>& prompts) const { return vision_ && vision_->holds(prompts); }

  PromptTensors text(const std::vector<int64_t>& tokens);

  // As Backend has it, for what check_photo has let through; none where the logits are not finite.
  std::optional<std::vector<MaskSummary>> segment(const PhotoView& photo,
                                                  const std::vector<const PromptTensors*>& prompts, float threshold,
                                                  const std::vector<MaskTarget>& targets);
  std::optional<std::vector<MaskSummary>> segment(const DevicePhotoView& photo,
                                                  const std::vector<const PromptTensors*>& prompts, float threshold,
                                                  const std::vector<MaskTarget>& targets);

 private:
  DevicePhotoView upload(const PhotoView& photo);
  void wait_for(const DevicePhotoView& photo);
  std::optional<std::vector<MaskSummary>> answer(const DevicePhotoView& photo,
                                                 const std::vector<const PromptTensors*>& prompts, float threshold,
                                                 const std::vector<MaskTarget>& targets);

  TensorRtModel& model_;
  CudaStream stream_;
  CudaEvent photo_there_;
  DeviceMemory activations_;  // both engines run in it, one after the other
  DeviceMemory photo_, masks_, probability_;
  PinnedMemory photo_on_host_, masks_on_host_, probability_on_host_;
  std::optional<TensorRtText> text_;  // made when they are first needed
  std::optional<TensorRtVision> vision_;
};

// Throws Error for a photo or threshold that cannot be, as preprocess and mask_on_photo do.
void check_photo(const PhotoView& photo, float threshold);
void check_photo(const DevicePhotoView& photo, float threshold);

}  // namespace talent
