#include "onnxruntime_api.h"

#include <sstream>
#include <utility>

#include "files.h"
#include "talent/errors.h"

namespace talent::onnxruntime {
namespace {

constexpr int kErrorsOnly = 3;  // a missing GPU is no news here

// Makes the biases of quantized layers integers, with scales that underflow where the graph's scales are FP16: with
// ONNX Runtime 1.24 the masks of an INT8 bundle came out empty.
constexpr const char* kWrongOptimizers = "WeightBiasQuantization";

using SessionOptions = std::unique_ptr<OrtSessionOptions, Release<&OrtApi::ReleaseSessionOptions>>;
using TypeInfo = std::unique_ptr<OrtTypeInfo, Release<&OrtApi::ReleaseTypeInfo>>;
using ShapeInfo = std::unique_ptr<OrtTensorTypeAndShapeInfo, Release<&OrtApi::ReleaseTensorTypeAndShapeInfo>>;
using Status = std::unique_ptr<OrtStatus, Release<&OrtApi::ReleaseStatus>>;

// In one line.
std::string words_of(const OrtStatus* status) {
  std::istringstream words(api().GetErrorMessage(status));
  std::string text;
  for (std::string word; words >> word;) {
    text += (text.empty() ? "" : " ") + word;
  }
  return text;
}

SessionOptions session_options(int threads) {
  const std::string what = "ONNX Runtime takes no options";
  OrtSessionOptions* made = nullptr;
  check(api().CreateSessionOptions(&made), what);
  SessionOptions options(made);
  check(api().SetSessionLogSeverityLevel(made, kErrorsOnly), what);
  // Between frames its threads would go on spinning and take the cores from whatever else runs in the robot.
  check(api().AddSessionConfigEntry(made, "session.force_spinning_stop", "1"), what);
  check(api().AddSessionConfigEntry(made, "optimization.disable_specified_optimizers", kWrongOptimizers), what);
  if (threads > 0) {
    check(api().SetIntraOpNumThreads(made, threads), what);
  }
  return options;
}

std::string type_name(const OrtTypeInfo* info, const std::string& what) {
  const OrtTensorTypeAndShapeInfo* tensor = nullptr;
  check(api().CastTypeInfoToTensorInfo(info, &tensor), what);
  if (tensor == nullptr) {
    return "no tensor";
  }
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  check(api().GetTensorElementType(tensor, &type), what);
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return "tensor(float)";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return "tensor(float16)";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      return "tensor(bfloat16)";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE:
      return "tensor(double)";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
      return "tensor(int64)";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
      return "tensor(int32)";
    default:
      return "tensor(element type " + std::to_string(type) + ")";
  }
}

// The names and types of one side of a graph.
TensorTypes types_of(const OrtSession* session, decltype(OrtApi::SessionGetInputCount) count_of,
                     decltype(OrtApi::SessionGetInputName) name_of,
                     decltype(OrtApi::SessionGetInputTypeInfo) type_of, const std::string& what) {
  OrtAllocator* allocator = nullptr;
  size_t count = 0;
  check(api().GetAllocatorWithDefaultOptions(&allocator), what);
  check(count_of(session, &count), what);
  TensorTypes types;
  for (size_t index = 0; index < count; ++index) {
    char* name = nullptr;
    check(name_of(session, index, allocator, &name), what);
    const auto free = [&](char* text) { Status(api().AllocatorFree(allocator, text)); };
    const std::unique_ptr<char, decltype(free)> owned(name, free);
    OrtTypeInfo* info = nullptr;
    check(type_of(session, index, &info), what);
    types.emplace_back(name, type_name(TypeInfo(info).get(), what));
  }
  return types;
}

}  // namespace

const OrtApi& api() {
  static const OrtApi* const found = OrtGetApiBase()->GetApi(kVersion);
  if (found == nullptr) {
    throw Error(std::string("expected the library of ONNX Runtime 1.") + std::to_string(kVersion) +
                " or newer, received " + OrtGetApiBase()->GetVersionString() + "; put a newer libonnxruntime.so on the "
                "loader's path");
  }
  return *found;
}

void check(OrtStatus* status, const std::string& what) {
  if (const Status owned(status); owned != nullptr) {
    throw Error(what + ": " + words_of(status));
  }
}

Value tensor_over(const void* data, size_t bytes, const std::vector<int64_t>& shape, ONNXTensorElementDataType type) {
  const std::string what = "ONNX Runtime takes no tensor";
  OrtMemoryInfo* made = nullptr;
  check(api().CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &made), what);
  const MemoryInfo memory(made);
  OrtValue* value = nullptr;
  check(api().CreateTensorWithDataAsOrtValue(made, const_cast<void*>(data), bytes, shape.data(), shape.size(), type,
                                             &value),
        what);  // an input, which is only read
  return Value(value);
}

TensorView view_of(OrtValue* value) {
  const std::string what = "ONNX Runtime gave no tensor";
  OrtTensorTypeAndShapeInfo* made = nullptr;
  check(api().GetTensorTypeAndShape(value, &made), what);
  const ShapeInfo info(made);
  TensorView view = {};
  size_t rank = 0;
  check(api().GetTensorElementType(made, &view.type), what);
  check(api().GetDimensionsCount(made, &rank), what);
  view.shape.resize(rank);
  check(api().GetDimensions(made, view.shape.data(), rank), what);
  check(api().GetTensorShapeElementCount(made, &view.elements), what);
  void* data = nullptr;
  check(api().GetTensorMutableData(value, &data), what);
  view.data = data;
  return view;
}

Session::Session(const Environment& environment, const std::filesystem::path& path, int threads)
    : path_(shown(path)) {
  const std::string cannot = "ONNX Runtime cannot load " + path_;
  const SessionOptions options = session_options(threads);
  OrtSession* made = nullptr;
  try {
    check(api().CreateSession(environment.get(), path.c_str(), options.get(), &made), cannot);
  } catch (const Error& error) {
    throw Error(error.what() + std::string("; copy the bundle again or export it again with talent-export"));
  }
  session_.reset(made);
  graph_.inputs = types_of(made, api().SessionGetInputCount, api().SessionGetInputName, api().SessionGetInputTypeInfo,
                           cannot);
  graph_.outputs = types_of(made, api().SessionGetOutputCount, api().SessionGetOutputName,
                            api().SessionGetOutputTypeInfo, cannot);
}

std::vector<Value> Session::run(const std::vector<const char*>& input_names, const std::vector<const OrtValue*>& inputs,
                                const std::vector<const char*>& output_names) const {
  std::vector<OrtValue*> made(output_names.size(), nullptr);
  OrtStatus* status = api().Run(session_.get(), nullptr, input_names.data(), inputs.data(), inputs.size(),
                                output_names.data(), output_names.size(), made.data());
  std::vector<Value> outputs;
  for (OrtValue* output : made) {
    outputs.emplace_back(output);
  }
  check(status, "ONNX Runtime cannot run " + path_);
  return outputs;
}

}  // namespace talent::onnxruntime
