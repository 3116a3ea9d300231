#include "tensorrt_vision.h"

#include <algorithm>
#include <string>

#include "letterbox_check.h"
#include "quote.h"
#include "talent/errors.h"

namespace talent {
namespace {

// A prompt tensor by its name. Throws Error where it is none that the engine takes.
const PromptTensor& tensor_in(const PromptTensors& prompt, const EngineTensor& wanted) {
  const size_t bytes = bytes_of_one(wanted);
  for (const PromptTensor& tensor : prompt.tensors) {
    if (tensor.name == wanted.name && tensor.type == wanted.type && tensor.bytes.size() == bytes) {
      return tensor;
    }
  }
  throw Error("expected a prompt with the tensor " + in_quotes(wanted.name) + " of " + std::to_string(bytes) +
              " bytes, received one that another bundle made; encode the sentence again with this segmenter");
}

}  // namespace

TensorRtVision::TensorRtVision(const TensorRtEngine& engine, const DeviceMemory& activations, int64_t most)
    : engine_(engine),
      activations_(activations),
      image_(tensor_of(engine.inputs(), kImage)),
      logits_(tensor_of(engine.outputs(), kLogits)),
      uploaded_(static_cast<size_t>(most)) {
  image_memory_.reserve(bytes_of_one(image_), "the network's input");
  logits_memory_.reserve(bytes_of_one(logits_) * static_cast<size_t>(most), "the network's logits");
  for (const EngineTensor& input : engine.inputs()) {
    if (input.name != kImage) {
      prompt_tensors_.push_back(&input);
      prompt_memory_.emplace_back().reserve(bytes_of_one(input) * static_cast<size_t>(most), "prompt tensors");
    }
  }
}

bool TensorRtVision::holds(const std::vector<const PromptTensors*>& prompts) const {
  return std::equal(prompts.begin(), prompts.end(), uploaded_.begin(),
                    [](const PromptTensors* prompt, uint64_t there) { return prompt->id != 0 && prompt->id == there; });
}

void TensorRtVision::upload(const std::vector<const PromptTensors*>& prompts, cudaStream_t stream) {
  for (size_t slot = 0; slot < prompts.size(); ++slot) {
    const PromptTensors& prompt = *prompts[slot];
    if (prompt.id != 0 && prompt.id == uploaded_[slot]) {
      continue;
    }
    for (size_t index = 0; index < prompt_tensors_.size(); ++index) {
      const PromptTensor& tensor = tensor_in(prompt, *prompt_tensors_[index]);
      const size_t bytes = tensor.bytes.size();
      check_cuda(cudaMemcpyAsync(prompt_memory_[index].get() + slot * bytes, tensor.bytes.data(), bytes,
                                 cudaMemcpyHostToDevice, stream),
                 "copy prompt tensors to the GPU");
    }
    uploaded_[slot] = prompt.id;
  }
}

TensorRtVision::Run TensorRtVision::make_run(int64_t expressions) const {
  Run run;
  run.context = engine_.make_context(activations_);
  nvinfer1::IExecutionContext& context = *run.context;
  bool done = context.setInputShape(kImage, dims_of(image_, 1)) &&
              context.setTensorAddress(kImage, image_memory_.get()) &&
              context.setTensorAddress(kLogits, logits_memory_.get());
  for (size_t index = 0; index < prompt_tensors_.size(); ++index) {
    const EngineTensor& tensor = *prompt_tensors_[index];
    done = done && context.setInputShape(tensor.name.c_str(), dims_of(tensor, expressions)) &&
           context.setTensorAddress(tensor.name.c_str(), prompt_memory_[index].get());
  }
  engine_.check(done, "take one picture and " + std::to_string(expressions) + " expressions in");
  const nvinfer1::Dims logits = context.getTensorShape(kLogits);
  const nvinfer1::Dims wanted = dims_of(logits_, expressions);
  engine_.check(logits.nbDims == wanted.nbDims && std::equal(logits.d, logits.d + logits.nbDims, wanted.d),
                "give logits of " + std::to_string(expressions) + " expressions by");
  return run;
}

void TensorRtVision::enqueue(const Run& run, cudaStream_t stream) const {
  engine_.check(run.context->enqueueV3(stream), "run");
}

void TensorRtVision::run(int64_t expressions, CudaGraphs& graphs, cudaStream_t stream) {
  auto found = runs_.find(expressions);
  if (found == runs_.end()) {
    found = runs_.emplace(expressions, make_run(expressions)).first;
  }
  Run& run = found->second;
  if (run.graph == nullptr && run.warm && graphs.on()) {
    try {
      run.graph = capture(stream, [&] { enqueue(run, stream); });
    } catch (const Error& error) {
      graphs.give_up(error.what());
    }
  }
  if (run.graph != nullptr) {
    check_cuda(cudaGraphLaunch(run.graph.get(), stream), "launch the graph of the vision engine");
  } else {
    enqueue(run, stream);
    run.warm = true;
  }
}

}  // namespace talent
