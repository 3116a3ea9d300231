#include "rca_plugin.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <new>
#include <optional>
#include <utility>

#include "plugin_log.h"
#include "rca_fields.h"

namespace talent {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

enum Input : int32_t { kVisual, kText, kWeight, kBias, kInputs };
constexpr int32_t kOutputs = 1;
constexpr int32_t kTensors = kInputs + kOutputs;
constexpr int32_t kDone = 0;
constexpr int32_t kFailed = -1;
constexpr int64_t kDynamic = -1;

std::optional<RcaType> type_of(DataType type) {
  switch (type) {
    case DataType::kFLOAT:
      return RcaType::kFloat;
    case DataType::kHALF:
      return RcaType::kHalf;
    case DataType::kBF16:
      return RcaType::kBfloat16;
    default:
      return std::nullopt;
  }
}

// A shape for a message: "[1, -1, 256]".
struct ShapeText {
  char text[8 + nvinfer1::Dims::MAX_DIMS * 22];

  explicit ShapeText(const Dims& shape) noexcept {
    const int rank = std::clamp(static_cast<int>(shape.nbDims), 0, static_cast<int>(Dims::MAX_DIMS));
    size_t length = 0;
    text[length++] = '[';
    for (int axis = 0; axis < rank; ++axis) {
      length += static_cast<size_t>(std::snprintf(text + length, sizeof text - length, axis == 0 ? "%lld" : ", %lld",
                                                  static_cast<long long>(shape.d[axis])));
    }
    text[length++] = ']';
    text[length] = '\0';
  }
};

bool check_counts(int32_t inputs, int32_t outputs) {
  if (inputs == kInputs && outputs == kOutputs) {
    return true;
  }
  report(Severity::kERROR,
         "RcaCostAggregation: expected 4 inputs (visual, text, weight, bias) and 1 output, received %d and %d",
         static_cast<int>(inputs), static_cast<int>(outputs));
  return false;
}

bool are_equal(int64_t left, int64_t right) { return left == right || left == kDynamic || right == kDynamic; }

// Whether the shapes fit each other; a size that is not known yet fits every other.
bool check_shapes(const Dims& visual, const Dims& text, const Dims& weight, const Dims& bias, const Dims& output) {
  if (visual.nbDims == 3 && text.nbDims == 3 && weight.nbDims == 2 && bias.nbDims == 1 && output.nbDims == 3) {
    const int64_t batch = text.d[0];
    const int64_t width = weight.d[0];
    const int64_t words = weight.d[1];
    if (width > 0 && words > 0 && are_equal(visual.d[2], width) && are_equal(text.d[2], width) &&
        are_equal(bias.d[0], width) && are_equal(output.d[2], width) && are_equal(text.d[1], words) &&
        are_equal(output.d[1], visual.d[1]) && are_equal(output.d[0], batch) &&
        (are_equal(visual.d[0], batch) || visual.d[0] == 1)) {
      return true;
    }
  }
  report(Severity::kERROR,
         "RcaCostAggregation: expected visual [B or 1, N, D], text [B, K, D], weight [D, K], bias [D] and output "
         "[B, N, D] with K and D known, received visual %s, text %s, weight %s, bias %s and output %s",
         ShapeText(visual).text, ShapeText(text).text, ShapeText(weight).text, ShapeText(bias).text,
         ShapeText(output).text);
  return false;
}

// The call for these inputs, without its pointers. Its sizes are only as well known as theirs.
RcaProblem make_problem(const PluginTensorDesc* inputs, RcaType type, RcaActivation activation) {
  RcaProblem problem = {};
  problem.visual_batch = inputs[kVisual].dims.d[0];
  problem.batch = inputs[kText].dims.d[0];
  problem.tokens = inputs[kVisual].dims.d[1];
  problem.words = inputs[kWeight].dims.d[1];
  problem.width = inputs[kWeight].dims.d[0];
  problem.type = type;
  problem.activation = activation;
  return problem;
}

}  // namespace

RcaPlugin::RcaPlugin(RcaActivation activation) noexcept : activation_(activation) {}

nvinfer1::IPluginCapability* RcaPlugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  report(Severity::kERROR, "RcaCostAggregation: expected a capability of core, build or runtime, received number %d",
         static_cast<int>(type));
  return nullptr;
}

nvinfer1::IPluginV3* RcaPlugin::clone() noexcept {
  auto* copy = new (std::nothrow) RcaPlugin(*this);
  if (copy == nullptr) {
    report(Severity::kERROR, "RcaCostAggregation: no memory for a copy of the plugin");
  }
  return copy;
}

int32_t RcaPlugin::getNbOutputs() const noexcept { return kOutputs; }

int32_t RcaPlugin::getOutputDataTypes(DataType* outputs, int32_t output_count, const DataType* inputs,
                                      int32_t input_count) const noexcept {
  if (!check_counts(input_count, output_count)) {
    return kFailed;
  }
  if (!type_of(inputs[0]) || !std::all_of(inputs, inputs + kInputs, [&](DataType type) { return type == inputs[0]; })) {
    report(Severity::kERROR,
           "RcaCostAggregation: expected visual, text, weight and bias of one type, FP32 (0), FP16 (1) or BF16 (7), "
           "received the types %d, %d, %d and %d",
           static_cast<int>(inputs[kVisual]), static_cast<int>(inputs[kText]), static_cast<int>(inputs[kWeight]),
           static_cast<int>(inputs[kBias]));
    return kFailed;
  }
  outputs[0] = inputs[0];
  return kDone;
}

int32_t RcaPlugin::getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t input_count, const nvinfer1::DimsExprs*,
                                   int32_t, nvinfer1::DimsExprs* outputs, int32_t output_count,
                                   nvinfer1::IExprBuilder& expressions) noexcept {
  if (!check_counts(input_count, output_count)) {
    return kFailed;
  }
  if (inputs[kVisual].nbDims != 3 || inputs[kText].nbDims != 3) {
    report(Severity::kERROR,
           "RcaCostAggregation: expected visual [B or 1, N, D] and text [B, K, D], received tensors of rank %d and %d",
           static_cast<int>(inputs[kVisual].nbDims), static_cast<int>(inputs[kText].nbDims));
    return kFailed;
  }
  outputs[0].nbDims = 3;
  outputs[0].d[0] =
      expressions.operation(nvinfer1::DimensionOperation::kMAX, *inputs[kVisual].d[0], *inputs[kText].d[0]);
  outputs[0].d[1] = inputs[kVisual].d[1];
  outputs[0].d[2] = inputs[kVisual].d[2];
  return outputs[0].d[0] == nullptr ? kFailed : kDone;
}

bool RcaPlugin::supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors, int32_t input_count,
                                          int32_t output_count) noexcept {
  if (!check_counts(input_count, output_count) || position < 0 || position >= kTensors) {
    return false;
  }
  const PluginTensorDesc& tensor = tensors[position].desc;
  return tensor.format == TensorFormat::kLINEAR && type_of(tensor.type) && tensor.type == tensors[0].desc.type;
}

int32_t RcaPlugin::configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                                   const DynamicPluginTensorDesc* outputs, int32_t output_count) noexcept {
  if (!check_counts(input_count, output_count) ||
      !check_shapes(inputs[kVisual].desc.dims, inputs[kText].desc.dims, inputs[kWeight].desc.dims,
                    inputs[kBias].desc.dims, outputs[0].desc.dims)) {
    return kFailed;
  }
  const std::optional<RcaType> type = type_of(inputs[kVisual].desc.type);
  const PluginTensorDesc descriptions[] = {inputs[kVisual].desc, inputs[kText].desc, inputs[kWeight].desc};
  const RcaProblem problem = make_problem(descriptions, type.value_or(RcaType::kFloat), activation_);
  tactics_[0] = RcaMethod::kSimt;
  tactic_count_ = 1;
  if (rca_takes_tensor_cores(problem, kRcaTensorCapability)) {
    tactics_[1] = RcaMethod::kTensorCore;
    tactic_count_ = 2;
    if (problem.words >= kRcaTensorWords) {  // the first one is taken where nothing is timed
      std::swap(tactics_[0], tactics_[1]);
    }
  }
  return kDone;
}

int32_t RcaPlugin::getNbTactics() noexcept { return tactic_count_; }

int32_t RcaPlugin::getValidTactics(int32_t* tactics, int32_t tactic_count) noexcept {
  if (tactic_count != tactic_count_) {
    report(Severity::kERROR, "RcaCostAggregation: expected to be asked for %d tactics, received %d",
           static_cast<int>(tactic_count_), static_cast<int>(tactic_count));
    return kFailed;
  }
  for (int32_t index = 0; index < tactic_count_; ++index) {
    tactics[index] = static_cast<int32_t>(tactics_[index]);
  }
  return kDone;
}

// The name only: TensorRT adds shapes and formats itself.
const char* RcaPlugin::getTimingCacheID() noexcept { return activation_name(activation_); }

const char* RcaPlugin::getMetadataString() noexcept { return activation_name(activation_); }

int32_t RcaPlugin::setTactic(int32_t tactic) noexcept {
  const auto method = static_cast<RcaMethod>(tactic);
  if (method != RcaMethod::kAuto && method != RcaMethod::kSimt && method != RcaMethod::kTensorCore) {
    report(Severity::kERROR,
           "RcaCostAggregation: expected a tactic of 0 (none), 1 (SIMT) or 2 (tensor core), received %d",
           static_cast<int>(tactic));
    return kFailed;
  }
  method_ = method;
  return kDone;
}

int32_t RcaPlugin::onShapeChange(const PluginTensorDesc* inputs, int32_t input_count, const PluginTensorDesc* outputs,
                                 int32_t output_count) noexcept {
  return check_counts(input_count, output_count) &&
                 check_shapes(inputs[kVisual].dims, inputs[kText].dims, inputs[kWeight].dims, inputs[kBias].dims,
                              outputs[0].dims)
             ? kDone
             : kFailed;
}

int32_t RcaPlugin::enqueue(const PluginTensorDesc* input_descriptions, const PluginTensorDesc*,
                           const void* const* inputs, void* const* outputs, void*, cudaStream_t stream) noexcept {
  const std::optional<RcaType> type = type_of(input_descriptions[kVisual].type);
  if (!type.has_value()) {
    report(Severity::kERROR,
           "RcaCostAggregation: expected visual in FP32 (0), FP16 (1) or BF16 (7), received the type %d",
           static_cast<int>(input_descriptions[kVisual].type));
    return kFailed;
  }
  RcaProblem problem = make_problem(input_descriptions, *type, activation_);
  problem.visual = inputs[kVisual];
  problem.text = inputs[kText];
  problem.weight = inputs[kWeight];
  problem.bias = inputs[kBias];
  problem.output = outputs[0];
  if (const char* error = rca_cost_aggregation(problem, method_, stream)) {
    report(Severity::kERROR, "RcaCostAggregation: %s; received visual %s, text %s and weight %s", error,
           ShapeText(input_descriptions[kVisual].dims).text, ShapeText(input_descriptions[kText].dims).text,
           ShapeText(input_descriptions[kWeight].dims).text);
    return kFailed;
  }
  return kDone;
}

nvinfer1::IPluginV3* RcaPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

const nvinfer1::PluginFieldCollection* RcaPlugin::getFieldsToSerialize() noexcept {
  const char* name = activation_name(activation_);
  serialized_ = PluginField(kActivationField, name, PluginFieldType::kCHAR, static_cast<int32_t>(std::strlen(name)));
  serialized_fields_ = {1, &serialized_};
  return &serialized_fields_;
}

const nvinfer1::PluginFieldCollection* RcaPluginCreator::getFieldNames() noexcept {
  static const PluginField fields[] = {{kActivationField, nullptr, PluginFieldType::kCHAR, 1},
                                       {kSlopeField, nullptr, PluginFieldType::kFLOAT32, 1}};
  static const nvinfer1::PluginFieldCollection collection = {static_cast<int32_t>(std::size(fields)), fields};
  return &collection;
}

nvinfer1::IPluginV3* RcaPluginCreator::createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                                    nvinfer1::TensorRTPhase) noexcept {
  const std::optional<RcaActivation> activation = read_fields(fields, name == nullptr ? "" : name);
  if (!activation.has_value()) {
    return nullptr;
  }
  auto* plugin = new (std::nothrow) RcaPlugin(*activation);
  if (plugin == nullptr) {
    report(Severity::kERROR, "RcaCostAggregation %s: no memory for the plugin", name == nullptr ? "" : name);
  }
  return plugin;
}

}  // namespace talent
