// The plugin as TensorRT calls it, without TensorRT: its logger and expressions are stood for, and so is the kernel,
// which writes its call down.
#include "rca_plugin.h"

#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "plugin_log.h"
#include "rca_fields.h"

using namespace nvinfer1;
using talent::RcaActivation;
using talent::RcaMethod;
using talent::RcaPlugin;
using talent::RcaProblem;
using talent::RcaType;

namespace {

RcaProblem called_problem;
RcaMethod called_method;
CUstream_st* called_stream;
const char* kernel_error;

}  // namespace

const char* talent::rca_cost_aggregation(const RcaProblem& problem, RcaMethod method, CUstream_st* stream) {
  called_problem = problem;
  called_method = method;
  called_stream = stream;
  return kernel_error;
}

namespace {

class Logger final : public ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    text += message;
    last = severity;
  }
  std::string text;
  Severity last = Severity::kVERBOSE;
} logger;

class LoggerFinder final : public ILoggerFinder {
 public:
  ILogger* findLogger() override { return &logger; }
} logger_finder;

// Whether the logger was told an error with all of these words, since this was asked last.
bool complained(std::initializer_list<const char*> words) {
  bool all = logger.last == ILogger::Severity::kERROR;
  for (const char* word : words) {
    all = all && logger.text.find(word) != std::string::npos;
  }
  logger.text.clear();
  logger.last = ILogger::Severity::kVERBOSE;
  return all;
}

PluginField text_field(const char* name, const char* value, int32_t length) {
  return {name, value, PluginFieldType::kCHAR, length};
}

IPluginV3* create(const std::vector<PluginField>& fields, TensorRTPhase phase = TensorRTPhase::kBUILD) {
  static talent::RcaPluginCreator creator;
  const PluginFieldCollection collection = {static_cast<int32_t>(fields.size()), fields.data()};
  return creator.createPlugin("layer", &collection, phase);
}

void check_refused(const char* what, const std::vector<PluginField>& fields, std::initializer_list<const char*> words) {
  for (const TensorRTPhase phase : {TensorRTPhase::kBUILD, TensorRTPhase::kRUNTIME}) {
    const std::unique_ptr<IPluginV3> plugin(create(fields, phase));
    const std::string said = logger.text;
    check::that(plugin == nullptr && complained(words), "%s to be refused with reason, received \"%s\"", what,
                said.c_str());
  }
}

void check_fields() {
  const float zero = 0.0f;
  const float one = 1.0f;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const double two_numbers[] = {0.0, 0.0};
  const PluginField relu = text_field("activation", "reluGARBAGE", 4);
  const PluginField none = text_field("activation", "none", 5);  // a terminator that was counted
  const PluginField slope_zero = {"negative_slope", &zero, PluginFieldType::kFLOAT32, 1};
  const PluginField slope_one = {"negative_slope", &one, PluginFieldType::kFLOAT32, 1};
  const PluginField version = text_field("plugin_version", "1", 1);
  for (const auto& fields : {std::vector{relu}, {none}, {relu, slope_zero}, {version, slope_one, none}}) {
    const std::unique_ptr<IPluginV3> plugin(create(fields));
    check::that(plugin != nullptr && logger.text.empty(), "good fields to be taken, received \"%s\"",
                logger.text.c_str());
  }
  const std::unique_ptr<IPluginV3> plugin(create({relu, text_field("alpha", "x", 1)}));
  check::that(plugin != nullptr && logger.last == ILogger::Severity::kWARNING &&
                  logger.text.find("ignored the field \"alpha\"") != std::string::npos,
              "a warning for a field that is not known, received \"%s\"", logger.text.c_str());
  complained({});

  check_refused("no field", {}, {"layer", "expected the field activation", "received 0 fields"});
  check_refused("a slope alone", {slope_one}, {"received 1 fields without it"});
  check_refused("another activation", {text_field("activation", "gelu", 4)}, {"\"none\" or \"relu\"", "\"gelu\""});
  check_refused("the beginning of one", {text_field("activation", "relu", 3)}, {"received \"rel\""});
  check_refused("more than one", {text_field("activation", "relux", 5)}, {"received \"relux\""});
  check_refused("an empty one", {text_field("activation", "relu", 0)}, {"received type 6 and length 0"});
  check_refused("a negative length", {text_field("activation", "relu", -1)}, {"length -1"});
  check_refused("no text", {text_field("activation", nullptr, 4)}, {"expected the field activation to be text"});
  check_refused("a number", {{"activation", &one, PluginFieldType::kINT32, 1}}, {"received type 5"});
  check_refused("two activations", {relu, relu}, {"activation once"});
  check_refused("a double", {relu, {"negative_slope", two_numbers, PluginFieldType::kFLOAT64, 1}}, {"received type 2"});
  check_refused("two numbers", {relu, {"negative_slope", two_numbers, PluginFieldType::kFLOAT32, 2}}, {"length 2"});
  check_refused("no number", {relu, {"negative_slope", nullptr, PluginFieldType::kFLOAT32, 1}}, {"negative_slope"});
  check_refused("a contradiction", {relu, slope_one}, {"negative_slope 0 with activation \"relu\", received 1"});
  check_refused("the other one", {slope_zero, none}, {"negative_slope 1 with activation \"none\", received 0"});
  check_refused("a NaN", {relu, {"negative_slope", &nan, PluginFieldType::kFLOAT32, 1}}, {"received nan"});
  talent::RcaPluginCreator creator;
  check::that(creator.createPlugin(nullptr, nullptr, TensorRTPhase::kBUILD) == nullptr && complained({"received none"}),
              "%s to be refused", "no collection");
}

void check_serialized() {
  for (const RcaActivation activation : {RcaActivation::kNone, RcaActivation::kRelu}) {
    RcaPlugin plugin(activation);
    const std::unique_ptr<IPluginV3> copy(plugin.clone());
    auto* runtime = static_cast<IPluginV3OneRuntime*>(copy->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    const auto read = talent::read_fields(runtime->getFieldsToSerialize(), "layer");
    check::that(read.has_value() && *read == activation && logger.text.empty(),
                "what is serialized to be read as activation %d, received \"%s\"", static_cast<int>(activation),
                logger.text.c_str());
  }
  RcaPlugin none(RcaActivation::kNone);
  RcaPlugin relu(RcaActivation::kRelu);
  check::that(std::strcmp(none.getTimingCacheID(), relu.getTimingCacheID()) != 0, "timings %s", "to be told apart");
}

Dims shape(std::initializer_list<int64_t> sizes) {
  Dims result = {};
  for (const int64_t size : sizes) {
    result.d[result.nbDims++] = size;
  }
  return result;
}

struct Tensors {
  PluginTensorDesc inputs[4];
  PluginTensorDesc output;

  Tensors(Dims visual, Dims text, Dims weight, Dims bias, Dims result, DataType type = DataType::kHALF) {
    const Dims shapes[] = {visual, text, weight, bias};
    for (int index = 0; index < 4; ++index) {
      inputs[index] = {shapes[index], type, TensorFormat::kLINEAR, 1.0f};
    }
    output = {result, type, TensorFormat::kLINEAR, 1.0f};
  }
  int32_t change(RcaPlugin& plugin) const { return plugin.onShapeChange(inputs, 4, &output, 1); }
  int32_t configure(RcaPlugin& plugin) const {
    DynamicPluginTensorDesc in[4] = {};
    for (int index = 0; index < 4; ++index) {
      in[index].desc = inputs[index];
    }
    DynamicPluginTensorDesc out = {};
    out.desc = output;
    return plugin.configurePlugin(in, 4, &out, 1);
  }
};

Tensors block(int64_t batch, int64_t words, int64_t width, DataType type = DataType::kHALF) {
  return {shape({batch, 7, width}), shape({batch, words, width}), shape({width, words}), shape({width}),
          shape({batch, 7, width}), type};
}

void check_shapes() {
  RcaPlugin plugin(RcaActivation::kNone);
  const Dims visual = shape({4, 7, 64});
  const Dims text = shape({4, 17, 64});
  const Dims weight = shape({64, 17});
  const Dims bias = shape({64});
  const Dims picture = shape({1, 7, 64});
  for (const Tensors& good : {Tensors(visual, text, weight, bias, visual), Tensors(picture, text, weight, bias, visual),
                              Tensors(shape({4, 0, 64}), text, weight, bias, shape({4, 0, 64}))}) {
    check::that(good.change(plugin) == 0 && logger.text.empty(), "good shapes to be taken, received \"%s\"",
                logger.text.c_str());
  }
  const Tensors dynamic(shape({-1, -1, 64}), shape({-1, 17, -1}), weight, bias, shape({-1, -1, 64}));
  check::that(dynamic.configure(plugin) == 0, "sizes that are not known to be taken, received \"%s\"",
              logger.text.c_str());
  const Tensors bad[] = {
      {shape({2, 7, 64}), text, weight, bias, visual},           // neither 1 nor B
      {visual, shape({1, 17, 64}), weight, bias, visual},        // text has the batch
      {shape({4, 7, 32}), text, weight, bias, visual},           // D of visual
      {visual, shape({4, 17, 32}), weight, bias, visual},        // D of text
      {visual, shape({4, 16, 64}), weight, bias, visual},        // K of text
      {visual, text, shape({17, 64}), bias, visual},             // weight transposed
      {visual, text, weight, shape({17}), visual},               // D of bias
      {visual, text, weight, bias, picture},                     // B of the output
      {visual, text, weight, bias, shape({4, 8, 64})},           // N of the output
      {visual, text, weight, bias, shape({4, 7, 65})},           // D of the output
      {shape({4, 7}), text, weight, bias, visual},               // rank of visual
      {visual, shape({4, 17, 64, 1}), weight, bias, visual},     // rank of text
      {visual, text, shape({64, 17, 1}), bias, visual},          // rank of weight
      {visual, text, weight, shape({1, 64}), visual},            // rank of bias
      {visual, text, shape({64, -1}), bias, visual},             // K is not known
      {visual, text, shape({-1, 17}), bias, visual},             // D is not known
  };
  for (const Tensors& tensors : bad) {
    check::that(tensors.change(plugin) != 0 && complained({"expected visual [B or 1, N, D]", "received visual ["}),
                "an error for shapes number %d at run time", static_cast<int>(&tensors - bad));
    check::that(tensors.configure(plugin) != 0 && complained({"received visual ["}),
                "an error for shapes number %d at build time", static_cast<int>(&tensors - bad));
  }
  check::that(Tensors(visual, text, weight, shape({17}), visual).change(plugin) != 0 &&
                  complained({"visual [4, 7, 64], text [4, 17, 64], weight [64, 17], bias [17] and output [4, 7, 64]"}),
              "the shapes %s", "to be told");
  check::that(plugin.onShapeChange(nullptr, 3, nullptr, 1) != 0 && complained({"4 inputs", "received 3 and 1"}),
              "an error for %s", "three inputs");
}

void check_types() {
  RcaPlugin plugin(RcaActivation::kNone);
  for (const DataType type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16, DataType::kINT8, DataType::kINT32}) {
    const bool known = type != DataType::kINT8 && type != DataType::kINT32;
    const DataType inputs[] = {type, type, type, type};
    DataType output = DataType::kBOOL;
    const bool taken = plugin.getOutputDataTypes(&output, 1, inputs, 4) == 0;
    check::that(taken == known && (!known || output == type) && complained({"types"}) == !known,
                "type %d to be %s", static_cast<int>(type), known ? "taken" : "refused");
    DynamicPluginTensorDesc tensors[5] = {};
    for (DynamicPluginTensorDesc& tensor : tensors) {
      tensor.desc.type = type;
      tensor.desc.format = TensorFormat::kLINEAR;
    }
    for (int position = 0; position < 5; ++position) {
      check::that(plugin.supportsFormatCombination(position, tensors, 4, 1) == known, "tensor %d of type %d to be %s",
                  position, static_cast<int>(type), known ? "taken" : "refused");
      DynamicPluginTensorDesc& tensor = tensors[position];
      tensor.desc.format = TensorFormat::kCHW32;
      check::that(!plugin.supportsFormatCombination(position, tensors, 4, 1), "tensor %d to be linear", position);
      tensor.desc.format = TensorFormat::kLINEAR;
      tensor.desc.type = type == DataType::kFLOAT ? DataType::kHALF : DataType::kFLOAT;
      check::that(position == 0 || !plugin.supportsFormatCombination(position, tensors, 4, 1),
                  "tensor %d to be of the others' type", position);
      tensor.desc.type = type;
    }
  }
  const DataType mixed[] = {DataType::kHALF, DataType::kHALF, DataType::kHALF, DataType::kFLOAT};
  DataType output;
  check::that(plugin.getOutputDataTypes(&output, 1, mixed, 4) != 0 && complained({"of one type", "1, 1, 1 and 0"}),
              "mixed types %s", "to be refused");
}

class Expression final : public IDimensionExpr {};

class Expressions final : public IExprBuilder, public apiv::VExprBuilder {
 public:
  Expressions() { mImpl = this; }
  const IDimensionExpr* constant(int64_t) override { return nullptr; }
  const IDimensionExpr* declareSizeTensor(int32_t, const IDimensionExpr&, const IDimensionExpr&) override {
    return nullptr;
  }
  const IDimensionExpr* operation(DimensionOperation operation, const IDimensionExpr& left,
                                  const IDimensionExpr& right) override {
    is_maximum = operation == DimensionOperation::kMAX;
    operands[0] = &left;
    operands[1] = &right;
    return &result;
  }
  bool is_maximum = false;
  const IDimensionExpr* operands[2] = {};
  Expression result;
};

void check_output_shape() {
  RcaPlugin plugin(RcaActivation::kNone);
  Expression sizes[6];
  DimsExprs inputs[4] = {};
  for (int index = 0; index < 2; ++index) {
    inputs[index].nbDims = 3;
    for (int axis = 0; axis < 3; ++axis) {
      inputs[index].d[axis] = &sizes[index * 3 + axis];
    }
  }
  DimsExprs output = {};
  Expressions expressions;
  check::that(plugin.getOutputShapes(inputs, 4, nullptr, 0, &output, 1, expressions) == 0 && output.nbDims == 3 &&
                  output.d[0] == &expressions.result && output.d[1] == &sizes[1] && output.d[2] == &sizes[2],
              "the output %s", "[batch, N, D]");
  check::that(expressions.is_maximum && expressions.operands[0] == &sizes[0] && expressions.operands[1] == &sizes[3],
              "the batch to be the larger one of %s", "visual and text");
  inputs[1].nbDims = 2;
  check::that(plugin.getOutputShapes(inputs, 4, nullptr, 0, &output, 1, expressions) != 0 &&
                  complained({"rank 3 and 2"}),
              "an error for %s", "text of rank 2");
}

std::vector<int32_t> tactics(const Tensors& tensors) {
  RcaPlugin plugin(RcaActivation::kNone);
  tensors.configure(plugin);
  std::vector<int32_t> result(static_cast<size_t>(plugin.getNbTactics()), -1);
  check::that(plugin.getValidTactics(result.data(), static_cast<int32_t>(result.size())) == 0, "the %s", "tactics");
  return result;
}

void check_tactics() {
  using Numbers = std::vector<int32_t>;
  check::that(tactics(block(1, 17, 64)) == Numbers{2, 1}, "tensor cores first for %s", "words");
  check::that(tactics(block(1, 1, 256, DataType::kBF16)) == Numbers{1, 2}, "SIMT first for %s", "the sentence");
  check::that(tactics(block(1, 17, 64, DataType::kFLOAT)) == Numbers{1}, "SIMT only for %s", "FP32");
  check::that(tactics(block(1, 17, 33)) == Numbers{1}, "SIMT only for %s", "an odd width");
  check::that(tactics(block(1, 65, 64)) == Numbers{1}, "SIMT only for %s", "many words");
  RcaPlugin plugin(RcaActivation::kNone);
  block(1, 17, 64).configure(plugin);
  block(1, 17, 33).configure(plugin);  // TensorRT configures the same plugin again
  int32_t numbers[2];
  check::that(plugin.getNbTactics() == 1 && plugin.getValidTactics(numbers, 2) != 0 && complained({"1 tactics"}),
              "one tactic for the last %s", "configuration");
  for (const int32_t number : {-1, 3}) {
    check::that(plugin.setTactic(number) != 0 && complained({"expected a tactic"}), "tactic %d to be refused", number);
  }
}

void check_enqueue() {
  char memory[5] = {};
  const void* inputs[] = {memory, memory + 1, memory + 2, memory + 3};
  void* output = memory + 4;
  auto* stream = reinterpret_cast<CUstream_st*>(memory);
  RcaPlugin built(RcaActivation::kRelu);
  const std::unique_ptr<IPluginV3> attached(built.attachToContext(nullptr));
  auto* runtime = static_cast<IPluginV3OneRuntime*>(attached->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  Tensors tensors(shape({1, 7, 64}), shape({4, 17, 64}), shape({64, 17}), shape({64}), shape({4, 7, 64}),
                  DataType::kBF16);
  const auto enqueue = [&] {
    return runtime->enqueue(tensors.inputs, &tensors.output, inputs, &output, nullptr, stream);
  };
  check::that(enqueue() == 0 && called_method == RcaMethod::kAuto && called_stream == stream, "the %s",
              "method to be automatic where no tactic was set");
  const RcaProblem& call = called_problem;
  check::that(call.visual == inputs[0] && call.text == inputs[1] && call.weight == inputs[2] &&
                  call.bias == inputs[3] && call.output == output,
              "the tensors %s", "in their places");
  check::that(call.visual_batch == 1 && call.batch == 4 && call.tokens == 7 && call.words == 17 && call.width == 64 &&
                  call.type == RcaType::kBfloat16 && call.activation == RcaActivation::kRelu,
              "the sizes, type and activation %s", "of the tensors");
  check::that(runtime->setTactic(2) == 0 && enqueue() == 0 && called_method == RcaMethod::kTensorCore, "the %s",
              "tactic to choose the method");
  kernel_error = "no such device";
  check::that(enqueue() != 0 && complained({"no such device", "visual [1, 7, 64]"}), "the kernel's error %s",
              "to be reported");
  kernel_error = nullptr;
  tensors.inputs[0].type = DataType::kINT8;
  check::that(enqueue() != 0 && complained({"received the type 2"}), "an error for %s", "INT8");
}

}  // namespace

int main() {
  talent::set_logger_finder(&logger_finder);
  check_fields();
  check_serialized();
  check_shapes();
  check_types();
  check_output_shape();
  check_tactics();
  check_enqueue();
  return check::result();
}
