#include "tensorrt_engine.h"

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <system_error>

#include "files.h"
#include "manifest.h"
#include "quote.h"
#include "talent/errors.h"
#include "tensorrt_library.h"

namespace talent {
namespace {

std::string read_plan(const std::filesystem::path& plan) {
  try {
    return read_file(plan);
  } catch (const std::system_error& error) {
    throw Error("cannot read " + shown(plan) + ": " + error.code().message());
  }
}

std::optional<ElementType> element_type(nvinfer1::DataType type) {
  switch (type) {
    case nvinfer1::DataType::kFLOAT:
      return ElementType::kFloat;
    case nvinfer1::DataType::kHALF:
      return ElementType::kHalf;
    case nvinfer1::DataType::kINT64:
      return ElementType::kInt64;
    default:
      return std::nullopt;
  }
}

const char* name_of(ElementType type) {
  return type == ElementType::kFloat ? "FLOAT" : type == ElementType::kHalf ? "HALF" : "INT64";
}

TensorTypes types_of(const std::vector<EngineTensor>& tensors) {
  TensorTypes types;
  for (const EngineTensor& tensor : tensors) {
    types.emplace_back(tensor.name, name_of(tensor.type));
  }
  return types;
}

// Whether all of a shape but the batch is known.
bool is_known(const std::vector<int64_t>& shape) {
  return !shape.empty() && std::all_of(shape.begin() + 1, shape.end(), [](int64_t size) { return size > 0; });
}

std::string text_of(const nvinfer1::Dims& dims) {
  std::vector<std::string> sizes;
  for (int index = 0; index < dims.nbDims; ++index) {
    sizes.push_back(std::to_string(dims.d[index]));
  }
  return "[" + joined(sizes, ", ") + "]";
}

}  // namespace

size_t bytes_of(ElementType type) { return type == ElementType::kFloat ? 4 : type == ElementType::kHalf ? 2 : 8; }

size_t bytes_of_one(const EngineTensor& tensor) {
  size_t bytes = bytes_of(tensor.type);
  for (size_t index = 1; index < tensor.shape.size(); ++index) {
    bytes *= static_cast<size_t>(tensor.shape[index]);
  }
  return bytes;
}

const EngineTensor& tensor_of(const std::vector<EngineTensor>& tensors, const std::string& name) {
  const auto found = std::find_if(tensors.begin(), tensors.end(), [&](const auto& one) { return one.name == name; });
  if (found == tensors.end()) {
    throw std::logic_error("expected a tensor " + name);
  }
  return *found;
}

nvinfer1::Dims dims_of(const EngineTensor& tensor, int64_t batch) {
  nvinfer1::Dims dims = {};
  dims.nbDims = static_cast<int32_t>(tensor.shape.size());
  std::copy(tensor.shape.begin(), tensor.shape.end(), dims.d);
  dims.d[0] = batch;
  return dims;
}

TensorRtEngine::TensorRtEngine(nvinfer1::IRuntime& runtime, const std::filesystem::path& plan,
                               const std::string& runtime_name, const std::string& advice)
    : runtime_name_(runtime_name), plan_(shown(plan)) {
  const std::string bytes = read_plan(plan);
  tensorrt_said();  // what came before has nothing to do with it
  engine_.reset(runtime.deserializeCudaEngine(bytes.data(), bytes.size()));
  if (engine_ == nullptr) {
    throw Error(runtime_name_ + " cannot load " + plan_ + ": " + tensorrt_said() +
                "; the engine is damaged or was built elsewhere; " + advice);
  }
  for (int32_t index = 0; index < engine_->getNbIOTensors(); ++index) {
    const char* name = engine_->getIOTensorName(index);
    const nvinfer1::Dims dims = engine_->getTensorShape(name);
    const std::optional<ElementType> type = element_type(engine_->getTensorDataType(name));
    const std::vector<int64_t> shape(dims.d, dims.d + std::max(dims.nbDims, 0));
    if (!type || !is_known(shape) || engine_->getTensorLocation(name) != nvinfer1::TensorLocation::kDEVICE ||
        engine_->getTensorFormat(name) != nvinfer1::TensorFormat::kLINEAR) {
      throw Error(plan_ + ": expected its tensor " + in_quotes(name) + " to be FLOAT, HALF or INT64, linear, and of "
                  "sizes that are known but for the batch, received type " +
                  std::to_string(static_cast<int32_t>(engine_->getTensorDataType(name))) + " and shape " +
                  text_of(dims) + "; " + kAgain);
    }
    const bool is_input = engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
    (is_input ? inputs_ : outputs_).push_back({name, *type, shape});
  }
}

GraphInterface TensorRtEngine::interface() const { return {types_of(inputs_), types_of(outputs_)}; }

size_t TensorRtEngine::memory() const {
  return static_cast<size_t>(std::max<int64_t>(engine_->getDeviceMemorySizeV2(), 0));
}

TensorRtContext TensorRtEngine::make_context(const DeviceMemory& memory) const {
  TensorRtContext context(
      engine_->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
  check(context != nullptr, "make an execution context of");
  context->setDeviceMemoryV2(memory.get(), static_cast<int64_t>(memory.size()));
  return context;
}

void TensorRtEngine::check(bool done, const std::string& tried) const {
  if (!done) {
    throw Error("expected " + runtime_name_ + " to " + tried + " " + plan_ + ", received: " + tensorrt_said() +
                "; where it goes on, close what else uses this GPU, or build the engine again with talent-build");
  }
}

}  // namespace talent
