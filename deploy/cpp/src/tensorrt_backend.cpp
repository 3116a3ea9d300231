// The two engines of a bundle in TensorRT or TensorRT-RTX: deploy/runtime/tensorrt.py.
#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "backends.h"
#include "cuda_device.h"
#include "files.h"
#include "letterbox_check.h"
#include "manifest.h"
#include "quote.h"
#include "talent/errors.h"
#include "targets.h"
#include "tensorrt_choice.h"
#include "tensorrt_lanes.h"
#include "tensorrt_library.h"
#include "tensorrt_model.h"

namespace talent {
namespace {

// Whether a tensor is of one of the types and, behind the batch, of the shape.
bool is(const EngineTensor& tensor, const std::vector<ElementType>& types, const std::vector<int64_t>& shape) {
  return std::find(types.begin(), types.end(), tensor.type) != types.end() &&
         std::equal(tensor.shape.begin() + 1, tensor.shape.end(), shape.begin(), shape.end());
}

void check_shapes(const Bundle& bundle, const std::string& where, const TensorRtEngine& text,
                  const TensorRtEngine& vision) {
  const std::vector<ElementType> numbers = {ElementType::kFloat, ElementType::kHalf};
  const int64_t size = bundle.image_size();
  const EngineTensor& logits = tensor_of(vision.outputs(), kLogits);
  const int64_t height = logits.shape.size() == 4 ? logits.shape[2] : 0;
  const int64_t width = logits.shape.size() == 4 ? logits.shape[3] : 0;
  if (!is(text.inputs().front(), {ElementType::kInt64}, {bundle.context_length()}) ||
      !is(tensor_of(vision.inputs(), kImage), numbers, {3, size, size}) || vision.outputs().size() != 1 ||
      !is(logits, numbers, {1, height, width}) || std::max(height, width) > size) {
    throw Error(where + ": expected tokens INT64 [B, " + std::to_string(bundle.context_length()) +
                "], image FLOAT or HALF [B, 3, " + std::to_string(size) + ", " + std::to_string(size) +
                "] and nothing but logits FLOAT or HALF [B, 1, h, w] that are no finer, received engines with "
                "others; " + kAgain);
  }
}

void load_plugin(const Bundle& bundle, const EngineRecord& engine, const TensorRtTarget& target,
                 const std::string& path) {
  try {
    target.library.load_plugin(path);
  } catch (const Error& error) {
    throw Error(shown(bundle.directory() / engine.path) + " needs the TensorRT plugin for RCA: " + error.what() +
                "; or build the engines without it: " +
                build_command(bundle.directory(), target.runtime, target.arch) + " --plugin off");
  }
}

std::unique_ptr<TensorRtModel> load_model(const Bundle& bundle, const TensorRtTarget& target, const Options& options) {
  const EngineRecord& text = choose_engine(bundle, "text", target);
  const EngineRecord& vision = choose_engine(bundle, "vision", target);
  for (const EngineRecord* engine : {&text, &vision}) {
    if (engine->plugin) {
      load_plugin(bundle, *engine, target, options.plugin);
    }
  }
  std::unique_ptr<TensorRtModel> model(new TensorRtModel{
      target.library.make_runtime(), nullptr, nullptr, bundle.image_size(),
      std::max<int64_t>(std::min(text.batch, vision.batch), 1), CudaGraphs(options.cuda_graphs)});
  const auto load = [&](const EngineRecord& engine) {
    return std::make_unique<const TensorRtEngine>(*model->runtime, bundle.directory() / engine.path, target.runtime,
                                                  build_advice(bundle.directory(), target.runtime, target.arch, true));
  };
  model->text = load(text);
  model->vision = load(vision);
  const std::string where = shown((bundle.directory() / text.path).parent_path());
  check_graphs(where, model->text->interface(), model->vision->interface());
  check_shapes(bundle, where, *model->text, *model->vision);
  return model;
}

class TensorRtBackend final : public Backend {
 public:
  // The GPU `device` is current.
  TensorRtBackend(std::string name, std::string precision, int device, std::unique_ptr<TensorRtModel> model)
      : name_(std::move(name)),
        precision_(std::move(precision)),
        device_(device),
        model_(std::move(model)),
        lanes_(std::make_unique<TensorRtLanes>(*model_)) {}

  ~TensorRtBackend() override {
    const OnDevice here(device_);  // where that fails, CUDA has freed it all already
    lanes_.reset();
    model_.reset();
  }

  std::string name() const override { return name_; }
  int64_t most_expressions() const override { return model_->most_expressions; }
  std::string notes() const override { return model_->graphs.notes(); }

  PromptTensors text(const std::vector<int64_t>& tokens) override {
    const OnDevice here(device_);
    here.check();
    return lanes_->in_one([](const TensorRtLane& lane) { return lane.has_text(); },
                          [&](TensorRtLane& lane) { return lane.text(tokens); });
  }

  std::vector<MaskSummary> segment(const PhotoView& photo, const std::vector<const PromptTensors*>& prompts,
                                   float threshold, const std::vector<MaskTarget>& targets) override {
    return segment_any(photo, prompts, threshold, targets);
  }

  std::vector<MaskSummary> segment(const DevicePhotoView& photo, const std::vector<const PromptTensors*>& prompts,
                                   float threshold, const std::vector<MaskTarget>& targets) override {
    return segment_any(photo, prompts, threshold, targets);
  }

 private:
  template <typename Photo>
  std::vector<MaskSummary> segment_any(const Photo& photo, const std::vector<const PromptTensors*>& prompts,
                                       float threshold, const std::vector<MaskTarget>& targets) {
    check_photo(photo, threshold);
    const auto count = static_cast<int64_t>(prompts.size());
    if (count < 1 || count > most_expressions() || targets.size() != prompts.size()) {
      refuse("1 to " + std::to_string(most_expressions()) + " prompts with a target each",
             std::to_string(count) + " with " + std::to_string(targets.size()));
    }
    const OnDevice here(device_);
    here.check();
    auto summaries = lanes_->in_one(
        [&](const TensorRtLane& lane) { return lane.holds(prompts); },
        [&](TensorRtLane& lane) { return lane.segment(photo, prompts, threshold, targets); });
    if (!summaries) {
      refuse_logits(precision_);
    }
    return *std::move(summaries);
  }

  const std::string name_;
  const std::string precision_;
  const int device_;
  std::unique_ptr<TensorRtModel> model_;
  std::unique_ptr<TensorRtLanes> lanes_;
};

}  // namespace

std::unique_ptr<Backend> open_tensorrt(const Bundle& bundle, const std::string& runtime, const Options& options) {
  const std::string arch = gpu_architecture(options.device, runtime);
  const OnDevice here(options.device);
  here.check();
  const TensorRtLibrary library(runtime);
  return std::make_unique<TensorRtBackend>(runtime, bundle.precision(), options.device,
                                           load_model(bundle, {library, runtime, arch}, options));
}

}  // namespace talent
