#include "tensorrt_text.h"

#include <atomic>
#include <cstring>

#include "letterbox_check.h"

namespace talent {
namespace {

constexpr size_t kAlignment = 256;  // of what TensorRT is handed

std::atomic<uint64_t> prompts = 0;  // made by this process

std::vector<int64_t> shape_of_one(const EngineTensor& tensor) {
  std::vector<int64_t> shape = tensor.shape;
  shape[0] = 1;
  return shape;
}

}  // namespace

TensorRtText::TensorRtText(const TensorRtEngine& engine, const DeviceMemory& activations) : engine_(engine) {
  size_t bytes = 0;
  for (const EngineTensor& output : engine_.outputs()) {
    offsets_.push_back(bytes);
    bytes += (bytes_of_one(output) + kAlignment - 1) / kAlignment * kAlignment;
  }
  const EngineTensor& input = engine_.inputs().front();
  tokens_.reserve(bytes_of_one(input), "a sentence");
  tokens_on_host_.reserve(bytes_of_one(input), "a sentence on the host");
  outputs_.reserve(bytes, "prompt tensors");
  outputs_on_host_.reserve(bytes, "prompt tensors on the host");
  context_ = engine_.make_context(activations);
  bool done = context_->setInputShape(input.name.c_str(), dims_of(input, 1)) &&
              context_->setTensorAddress(input.name.c_str(), tokens_.get());
  for (size_t index = 0; index < offsets_.size(); ++index) {
    done = done && context_->setTensorAddress(engine_.outputs()[index].name.c_str(), outputs_.get() + offsets_[index]);
  }
  engine_.check(done, "take one sentence in");
}

PromptTensors TensorRtText::run(const std::vector<int64_t>& tokens, cudaStream_t stream) {
  const size_t bytes = tokens.size() * sizeof(int64_t);
  if (bytes != tokens_.size()) {
    refuse("a sentence of " + std::to_string(tokens_.size() / sizeof(int64_t)) + " tokens",
           std::to_string(tokens.size()));
  }
  std::memcpy(tokens_on_host_.get(), tokens.data(), bytes);
  check_cuda(cudaMemcpyAsync(tokens_.get(), tokens_on_host_.get(), bytes, cudaMemcpyHostToDevice, stream),
             "copy a sentence to the GPU");
  engine_.check(context_->enqueueV3(stream), "run");
  check_cuda(cudaMemcpyAsync(outputs_on_host_.get(), outputs_.get(), outputs_.size(), cudaMemcpyDeviceToHost, stream),
             "copy prompt tensors to the host");
  check_cuda(cudaStreamSynchronize(stream), "run the text engine");
  PromptTensors made;
  made.id = ++prompts;
  for (size_t index = 0; index < offsets_.size(); ++index) {
    const EngineTensor& output = engine_.outputs()[index];
    const std::byte* from = outputs_on_host_.get() + offsets_[index];
    made.tensors.push_back({output.name, output.type, shape_of_one(output), {from, from + bytes_of_one(output)}});
  }
  return made;
}

}  // namespace talent
