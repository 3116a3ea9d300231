#include "tensorrt_lane.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "letterbox_check.h"
#include "picture_kernel.h"
#include "picture_math.h"

namespace talent {
namespace {

constexpr uint8_t kInside = 255;

PictureType picture_type(ElementType type) {
  return type == ElementType::kHalf ? PictureType::kHalf : PictureType::kFloat;
}

template <typename Photo>
void check(const Photo& photo, float threshold) {
  check_letterbox({photo.width, photo.height, 1});
  if (photo.pixels == nullptr) {
    refuse("a picture", "no pixels");
  }
  if (photo.format < PixelFormat::kRgb || photo.format > PixelFormat::kGrey) {
    refuse("a pixel format of RGB, BGR, RGBA, BGRA or grey", std::to_string(static_cast<int32_t>(photo.format)));
  }
  const int64_t row = int64_t{photo.width} * picture::bytes_per_pixel(photo.format);
  if (photo.stride < row) {
    refuse("a stride of at least " + std::to_string(row) + " bytes", std::to_string(photo.stride));
  }
  if (!(threshold >= 0.0f && threshold < 1.0f)) {
    refuse("a threshold from 0 to below 1", std::to_string(threshold));
  }
}

MaskSummary summary_of(const PictureSummary& summary) {
  const Box box = {summary.x0, summary.y0, summary.x1, summary.y1};
  return {summary.pixels > 0 ? std::optional(box) : std::nullopt, summary.pixels, summary.score};
}

}  // namespace

void check_photo(const PhotoView& photo, float threshold) { check(photo, threshold); }
void check_photo(const DevicePhotoView& photo, float threshold) { check(photo, threshold); }

TensorRtLane::TensorRtLane(TensorRtModel& model) : model_(model), stream_(make_stream()), photo_there_(make_event()) {
  activations_.reserve(std::max(model_.text->memory(), model_.vision->memory()), "what an engine works in");
}

TensorRtLane::~TensorRtLane() {
  cudaStreamSynchronize(stream_.get());  // where that fails, nothing of it runs any more
}

PromptTensors TensorRtLane::text(const std::vector<int64_t>& tokens) {
  if (!text_) {
    text_.emplace(*model_.text, activations_);
  }
  return text_->run(tokens, stream_.get());
}

std::optional<std::vector<MaskSummary>> TensorRtLane::segment(const PhotoView& photo,
                                                              const std::vector<const PromptTensors*>& prompts,
                                                              float threshold, const std::vector<MaskTarget>& targets) {
  return answer(upload(photo), prompts, threshold, targets);
}

std::optional<std::vector<MaskSummary>> TensorRtLane::segment(const DevicePhotoView& photo,
                                                              const std::vector<const PromptTensors*>& prompts,
                                                              float threshold, const std::vector<MaskTarget>& targets) {
  wait_for(photo);
  return answer(photo, prompts, threshold, targets);
}

// The photo on the GPU, its rows without gaps.
DevicePhotoView TensorRtLane::upload(const PhotoView& photo) {
  const size_t row = static_cast<size_t>(photo.width) * static_cast<size_t>(picture::bytes_per_pixel(photo.format));
  const size_t bytes = row * static_cast<size_t>(photo.height);
  std::byte* on_host = photo_on_host_.reserve(bytes, "a photo on the host");
  std::byte* on_gpu = photo_.reserve(bytes, "a photo");
  for (int y = 0; y < photo.height; ++y) {
    std::memcpy(on_host + static_cast<size_t>(y) * row, photo.pixels + y * photo.stride, row);
  }
  check_cuda(cudaMemcpyAsync(on_gpu, on_host, bytes, cudaMemcpyHostToDevice, stream_.get()), "copy a photo to the GPU");
  return {reinterpret_cast<const uint8_t*>(on_gpu), photo.width, photo.height, static_cast<int64_t>(row), photo.format,
          stream_.get()};
}

// Has this lane's stream wait for what the caller put into theirs.
void TensorRtLane::wait_for(const DevicePhotoView& photo) {
  check_cuda(cudaEventRecord(photo_there_.get(), static_cast<cudaStream_t>(photo.stream)),
             "record an event in the stream of a photo");
  check_cuda(cudaStreamWaitEvent(stream_.get(), photo_there_.get(), 0), "wait for the stream of a photo");
}

std::optional<std::vector<MaskSummary>> TensorRtLane::answer(const DevicePhotoView& photo,
                                                             const std::vector<const PromptTensors*>& prompts,
                                                             float threshold, const std::vector<MaskTarget>& targets) {
  if (!vision_) {
    vision_.emplace(*model_.vision, activations_, model_.most_expressions);
  }
  const cudaStream_t stream = stream_.get();
  vision_->upload(prompts, stream);
  check_kernel(picture_to_input({photo.pixels, photo.width, photo.height, photo.stride,
                                 static_cast<PictureFormat>(photo.format), vision_->image_on_gpu(), model_.image_size,
                                 picture_type(vision_->image().type)},
                                stream),
               "letterbox a photo");
  const auto count = static_cast<int64_t>(prompts.size());
  vision_->run(count, model_.graphs, stream);

  // One block of memory and one copy: the totals of all expressions, then their masks.
  const size_t area = static_cast<size_t>(photo.width) * static_cast<size_t>(photo.height);
  const size_t totals_bytes = prompts.size() * sizeof(PictureTotals);
  const size_t bytes = totals_bytes + prompts.size() * area;
  const bool probable = std::any_of(targets.begin(), targets.end(), [](const auto& target) {
    return target.probability != nullptr;
  });
  std::byte* masks = masks_.reserve(bytes, "masks");
  std::byte* masks_on_host = masks_on_host_.reserve(bytes, "masks on the host");
  const size_t probability_bytes = probable ? prompts.size() * area * sizeof(float) : 0;
  std::byte* probability = probable ? probability_.reserve(probability_bytes, "probabilities") : nullptr;
  const std::vector<int64_t>& grid = vision_->logits().shape;  // [B, 1, h, w]
  check_kernel(logits_to_mask({vision_->logits_on_gpu(), picture_type(vision_->logits().type), count, grid[3], grid[2],
                               model_.image_size, photo.width, photo.height, threshold, kInside,
                               reinterpret_cast<uint8_t*>(masks + totals_bytes), reinterpret_cast<float*>(probability),
                               reinterpret_cast<PictureTotals*>(masks)},
                              stream),
               "compute masks");
  check_cuda(cudaMemcpyAsync(masks_on_host, masks, bytes, cudaMemcpyDeviceToHost, stream), "copy masks to the host");
  std::byte* probability_on_host = nullptr;
  if (probable) {
    probability_on_host = probability_on_host_.reserve(probability_bytes, "probabilities on the host");
    check_cuda(cudaMemcpyAsync(probability_on_host, probability, probability_bytes, cudaMemcpyDeviceToHost, stream),
               "copy probabilities to the host");
  }
  check_cuda(cudaStreamSynchronize(stream), "run a frame");

  std::vector<MaskSummary> summaries;
  summaries.reserve(targets.size());
  for (size_t index = 0; index < targets.size(); ++index) {
    PictureTotals totals;
    std::memcpy(&totals, masks_on_host + index * sizeof totals, sizeof totals);
    const PictureSummary summary = picture_summary(totals, photo.width, photo.height);
    if (!summary.finite) {
      return std::nullopt;
    }
    summaries.push_back(summary_of(summary));
    std::memcpy(targets[index].mask, masks_on_host + totals_bytes + index * area, area);
    if (targets[index].probability != nullptr) {
      std::memcpy(targets[index].probability, probability_on_host + index * area * sizeof(float), area * sizeof(float));
    }
  }
  return summaries;
}

}  // namespace talent
