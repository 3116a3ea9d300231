// The two graphs in ONNX Runtime, on the CPU: deploy/runtime/onnxruntime.py.
#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "backends.h"
#include "files.h"
#include "host_backend.h"
#include "interface.h"
#include "number_formats.h"
#include "onnxruntime_api.h"
#include "talent/errors.h"

namespace talent {
namespace {

using onnxruntime::Session;
using onnxruntime::TensorView;
using onnxruntime::Value;

struct Type {
  ElementType ours;
  ONNXTensorElementDataType theirs;
  size_t bytes;
};
constexpr Type kTypes[] = {{ElementType::kFloat, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 4},
                           {ElementType::kHalf, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, 2},
                           {ElementType::kInt64, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, 8}};

ONNXTensorElementDataType type_of(ElementType ours) {
  const auto is_it = [ours](const Type& type) { return type.ours == ours; };
  return std::find_if(std::begin(kTypes), std::end(kTypes), is_it)->theirs;
}

onnxruntime::Environment environment() {
  OrtEnv* made = nullptr;
  onnxruntime::check(onnxruntime::api().CreateEnv(ORT_LOGGING_LEVEL_ERROR, "talent", &made),
                     "ONNX Runtime does not start");
  return onnxruntime::Environment(made);
}

int checked_threads(int threads) {
  if (threads < 0) {
    throw Error("expected at least one thread, or 0 for one per core, received " + std::to_string(threads));
  }
  return threads;
}

// A prompt tensor of several expressions, or of one.
class Joined {
 public:
  Joined(const std::vector<const PromptTensors*>& prompts, size_t index) {
    const PromptTensor& first = prompts.front()->tensors[index];
    std::vector<int64_t> shape = first.shape;
    shape.at(0) = static_cast<int64_t>(prompts.size());
    if (prompts.size() > 1) {
      for (const PromptTensors* prompt : prompts) {
        const std::vector<std::byte>& own = prompt->tensors[index].bytes;
        bytes_.insert(bytes_.end(), own.begin(), own.end());
      }
    }
    const std::vector<std::byte>& bytes = prompts.size() > 1 ? bytes_ : first.bytes;
    value_ = onnxruntime::tensor_over(bytes.data(), bytes.size(), shape, type_of(first.type));
  }

  const OrtValue* value() const { return value_.get(); }

 private:
  std::vector<std::byte> bytes_;
  Value value_;
};

class OnnxRuntimeBackend : public HostBackend {
 public:
  OnnxRuntimeBackend(const Bundle& bundle, int threads)
      : HostBackend(bundle),
        environment_(environment()),
        text_(environment_, bundle.text_onnx(), checked_threads(threads)),
        vision_(environment_, bundle.vision_onnx(), threads),
        where_(shown(bundle.directory())) {
    check_graphs(where_, text_.graph(), vision_.graph());
    for (const auto& [name, type] : text_.graph().outputs) {
      prompt_names_.push_back(name.c_str());
    }
  }

  std::string name() const override { return "onnxruntime"; }
  int64_t most_expressions() const override { return kMostExpressions; }

  PromptTensors text(const std::vector<int64_t>& tokens) override {
    const Value input = onnxruntime::tensor_over(tokens.data(), tokens.size() * sizeof tokens[0],
                                                 {1, static_cast<int64_t>(tokens.size())},
                                                 ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
    const std::vector<Value> outputs = text_.run({kTokens}, {input.get()}, prompt_names_);
    PromptTensors prompt;
    for (size_t index = 0; index < outputs.size(); ++index) {
      prompt.tensors.push_back(prompt_tensor(prompt_names_[index], onnxruntime::view_of(outputs[index].get())));
    }
    return prompt;
  }

 protected:
  void vision(const float* input, int64_t size, const std::vector<const PromptTensors*>& prompts,
              Logits& logits) override {
    const Value image = onnxruntime::tensor_over(input, static_cast<size_t>(3 * size * size) * sizeof(float),
                                                 {1, 3, size, size}, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
    std::vector<const char*> names = {kImage};
    std::vector<const OrtValue*> values = {image.get()};
    std::vector<Joined> tensors;
    tensors.reserve(prompt_names_.size());
    for (size_t index = 0; index < prompt_names_.size(); ++index) {
      names.push_back(prompt_names_[index]);
      values.push_back(tensors.emplace_back(prompts, index).value());
    }
    const std::vector<Value> outputs = vision_.run(names, values, {kLogits});
    take(onnxruntime::view_of(outputs.front().get()), prompts.size(), logits);
  }

 private:
  PromptTensor prompt_tensor(const char* name, const TensorView& view) const {
    const Type* type = std::find_if(std::begin(kTypes), std::end(kTypes), [&](const Type& one) {
      return one.theirs == view.type;
    });
    if (type == std::end(kTypes) || view.shape.empty() || view.shape[0] != 1) {
      throw Error(where_ + ": expected the prompt tensor " + name + " as FP32, FP16 or INT64 of one expression, "
                  "received another; export the bundle again with talent-export");
    }
    const auto* bytes = static_cast<const std::byte*>(view.data);
    return {name, type->ours, view.shape, {bytes, bytes + view.elements * type->bytes}};
  }

  // Logits float32 or float16 [B, 1, h, w] -> ours.
  void take(const TensorView& view, size_t expressions, Logits& logits) const {
    const bool is_half = view.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    const std::vector<int64_t>& shape = view.shape;
    if ((!is_half && view.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) || shape.size() != 4 || shape[1] != 1 ||
        shape[0] != static_cast<int64_t>(expressions) ||
        std::max(shape[2], shape[3]) > std::numeric_limits<int>::max()) {
      throw Error(where_ + ": expected logits [" + std::to_string(expressions) + ", 1, h, w] as FP32 or FP16, received "
                  "others; export the bundle again with talent-export");
    }
    logits.count = shape[0];
    logits.height = static_cast<int>(shape[2]);
    logits.width = static_cast<int>(shape[3]);
    logits.values.resize(view.elements);
    if (is_half) {
      const auto* from = static_cast<const uint16_t*>(view.data);
      std::transform(from, from + view.elements, logits.values.begin(), [](uint16_t bits) {
        return to_float(Half{bits});
      });
    } else {
      std::memcpy(logits.values.data(), view.data, view.elements * sizeof(float));
    }
  }

  const onnxruntime::Environment environment_;
  const Session text_;
  const Session vision_;
  const std::string where_;
  std::vector<const char*> prompt_names_;  // of text_'s graph
};

}  // namespace

std::unique_ptr<Backend> open_onnxruntime(const Bundle& bundle, const Options& options) {
  return std::make_unique<OnnxRuntimeBackend>(bundle, options.threads);
}

}  // namespace talent
