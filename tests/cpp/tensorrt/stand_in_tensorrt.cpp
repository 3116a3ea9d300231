// Stands for TensorRT's library: it has its objects, for the headers that it is compiled with, and runs the toy graphs
// on the streams of the stand-in for CUDA. A plan is a line of text.
//
// What it does besides is told to it by environment variables: STAND_IN_VERSION, the version that it says it is;
// STAND_IN_REFUSES, a function that fails.
#include <dlfcn.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <map>
#include <sstream>
#include <string>

#include "export.h"
#include "stand_in_cuda.h"
#include "toy_graphs.h"
#include "unused_interfaces.h"

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::TensorIOMode;

namespace {

constexpr int64_t kWorkspace = 512;
constexpr int64_t kMostExpressions = 4;

nvinfer1::ILogger* logger = nullptr;

bool refuses(const char* function) {
  const char* what = std::getenv("STAND_IN_REFUSES");
  if (what == nullptr || std::strcmp(what, function) != 0) {
    return false;
  }
  logger->log(nvinfer1::ILogger::Severity::kERROR, (std::string(function) + " is\nrefused").c_str());
  return true;
}

struct Tensor {
  std::string name;
  TensorIOMode mode;
  DataType type;
  Dims dims;
};

DataType number(bool half) { return half ? DataType::kHALF : DataType::kFLOAT; }

std::vector<Tensor> tensors_of(const toy::Plan& plan) {
  const DataType prompt = number(plan.prompt_half);
  const TensorIOMode side = plan.is_vision ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
  const std::string bias = plan.other_name ? "other" : "bias";
  const std::vector<Tensor> prompts = {{"colour", side, prompt, {4, {-1, 3, 1, 1}}},
                                       {bias, side, prompt, {4, {-1, 1, 1, 1}}}};
  std::vector<Tensor> tensors = {{"tokens", TensorIOMode::kINPUT, DataType::kINT64, {2, {-1, toy::kTokens}}}};
  if (plan.is_vision) {
    tensors = {{"image", TensorIOMode::kINPUT, number(plan.image_half), {4, {-1, 3, plan.size, plan.size}}},
               {"logits", TensorIOMode::kOUTPUT, number(plan.logits_half), {4, {-1, 1, plan.size / 2, plan.size / 2}}}};
  }
  tensors.insert(tensors.end(), prompts.begin(), prompts.end());
  return tensors;
}

class Context final : public nvinfer1::IExecutionContext, public nvinfer1::stand_in::UnusedContext {
 public:
  explicit Context(const toy::Plan& plan) : plan_(plan), tensors_(tensors_of(plan)) {
    mImpl = this;
    stand_in::count("execution contexts", 1);
  }
  ~Context() noexcept override { stand_in::count("execution contexts", -1); }

  void setDeviceMemoryV2(void* memory, int64_t size) noexcept override {
    workspace_ = stand_in::is_on_gpu(memory, kWorkspace) && size >= kWorkspace ? memory : nullptr;
  }

  bool setInputShape(const char* name, const Dims& dims) noexcept override {
    batches_[name] = dims.d[0];
    const Tensor* tensor = find(name);
    return !refuses("setInputShape") && tensor != nullptr && dims.nbDims == tensor->dims.nbDims &&
           std::equal(dims.d + 1, dims.d + dims.nbDims, tensor->dims.d + 1) && dims.d[0] >= 1 &&
           dims.d[0] <= kMostExpressions;
  }

  Dims getTensorShape(const char* name) const noexcept override {
    Dims dims = find(name)->dims;
    dims.d[0] = expressions();
    return dims;
  }

  bool setTensorAddress(const char* name, void* memory) noexcept override {
    addresses_[name] = memory;
    return find(name) != nullptr;
  }

  // What is read and written is decided when the work is put into the stream, as a graph needs it.
  bool enqueueV3(cudaStream_t stream) noexcept override {
    cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
    cudaStreamIsCapturing(stream, &capturing);
    if (refuses("enqueueV3") || (capturing != cudaStreamCaptureStatusNone && refuses("capture")) ||
        workspace_ == nullptr || !are_all_on_gpu()) {
      return false;
    }
    stand_in::enqueue(stream, [plan = plan_, at = addresses_, count = expressions(), workspace = workspace_] {
      std::memset(workspace, 0, kWorkspace);
      plan.is_vision ? run_vision(plan, at, count) : run_text(plan, at, count);
    });
    return true;
  }

 private:
  using Addresses = std::map<std::string, void*>;

  static std::byte* part(void* memory, bool half, int64_t index) {
    return static_cast<std::byte*>(memory) + index * (half ? 2 : 4);
  }

  static void run_text(const toy::Plan& plan, const Addresses& at, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      std::vector<float> colour(3), bias(1);
      toy::text(static_cast<const int64_t*>(at.at("tokens")) + i * toy::kTokens, colour.data(), bias.data());
      toy::write(part(at.at("colour"), plan.prompt_half, i * 3), plan.prompt_half, colour);
      toy::write(part(at.at("bias"), plan.prompt_half, i), plan.prompt_half, bias);
    }
  }

  static void run_vision(const toy::Plan& plan, const Addresses& at, int64_t count) {
    const std::vector<float> image = toy::read(at.at("image"), plan.image_half, 3 * plan.size * plan.size);
    const std::vector<float> colours = toy::read(at.at("colour"), plan.prompt_half, count * 3);
    const std::vector<float> biases = toy::read(at.at("bias"), plan.prompt_half, count);
    const int64_t area = plan.size / 2 * (plan.size / 2);
    for (int64_t i = 0; i < count; ++i) {
      std::vector<float> logits(static_cast<size_t>(area));
      toy::vision(image.data(), plan.size, colours.data() + i * 3, biases[static_cast<size_t>(i)], logits.data());
      toy::write(part(at.at("logits"), plan.logits_half, i * area), plan.logits_half, logits);
    }
  }

  const Tensor* find(const std::string& name) const {
    for (const Tensor& tensor : tensors_) {
      if (tensor.name == name) {
        return &tensor;
      }
    }
    return nullptr;
  }

  int64_t expressions() const {
    const auto found = batches_.find(plan_.is_vision ? "colour" : "tokens");
    return found == batches_.end() ? -1 : found->second;
  }

  // Every tensor has its own piece of the GPU's memory, and the image is one or as many as there are expressions.
  bool are_all_on_gpu() const {
    for (const Tensor& tensor : tensors_) {
      const auto at = addresses_.find(tensor.name);
      size_t bytes = tensor.type == DataType::kHALF ? 2 : tensor.type == DataType::kFLOAT ? 4 : 8;
      for (int index = 1; index < tensor.dims.nbDims; ++index) {
        bytes *= static_cast<size_t>(tensor.dims.d[index]);
      }
      bytes *= tensor.name == "image" ? 1 : static_cast<size_t>(expressions());
      if (at == addresses_.end() || !stand_in::is_on_gpu(at->second, bytes)) {
        return false;
      }
    }
    return !plan_.is_vision || batches_.at("image") == 1;
  }

  const toy::Plan plan_;
  const std::vector<Tensor> tensors_;
  std::map<std::string, int64_t> batches_;
  Addresses addresses_;
  void* workspace_ = nullptr;
};

class Engine final : public nvinfer1::ICudaEngine, public nvinfer1::stand_in::UnusedEngine {
 public:
  explicit Engine(const toy::Plan& plan) : plan_(plan), tensors_(tensors_of(plan)) {
    mImpl = this;
    stand_in::count("engines", 1);
  }
  ~Engine() noexcept override { stand_in::count("engines", -1); }

  int32_t getNbIOTensors() const noexcept override { return static_cast<int32_t>(tensors_.size()); }
  const char* getIOTensorName(int32_t index) const noexcept override {
    return tensors_[static_cast<size_t>(index)].name.c_str();
  }
  TensorIOMode getTensorIOMode(const char* name) const noexcept override { return find(name).mode; }
  DataType getTensorDataType(const char* name) const noexcept override { return find(name).type; }
  Dims getTensorShape(const char* name) const noexcept override { return find(name).dims; }
  nvinfer1::TensorLocation getTensorLocation(const char*) const noexcept override {
    return nvinfer1::TensorLocation::kDEVICE;
  }
  nvinfer1::TensorFormat getTensorFormat(const char*) const noexcept override {
    return nvinfer1::TensorFormat::kLINEAR;
  }
  int64_t getDeviceMemorySizeV2() const noexcept override { return kWorkspace; }
  nvinfer1::IExecutionContext* createExecutionContext(
      nvinfer1::ExecutionContextAllocationStrategy strategy) noexcept override {
    const bool is_ours = strategy == nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED;
    return refuses("createExecutionContext") || !is_ours ? nullptr : new Context(plan_);
  }

 private:
  const Tensor& find(const std::string& name) const {
    for (const Tensor& tensor : tensors_) {
      if (tensor.name == name) {
        return tensor;
      }
    }
    std::abort();
  }

  const toy::Plan plan_;
  const std::vector<Tensor> tensors_;
};

class Runtime final : public nvinfer1::IRuntime, public nvinfer1::stand_in::UnusedRuntime {
 public:
  Runtime() {
    mImpl = this;
    stand_in::count("runtimes", 1);
  }
  ~Runtime() noexcept override { stand_in::count("runtimes", -1); }

  nvinfer1::ICudaEngine* deserializeCudaEngine(const void* blob, size_t size) noexcept override {
    std::istringstream words(std::string(static_cast<const char*>(blob), size));
    std::string word, graph;
    words >> word >> graph;
    if (word != "toy") {
      logger->log(nvinfer1::ILogger::Severity::kWARNING, "a warning that nobody needs");
      logger->log(nvinfer1::ILogger::Severity::kERROR, "Magic tag does not match");
      return nullptr;
    }
    toy::Plan plan;
    plan.is_vision = graph == "vision";
    while (words >> word) {
      plan.size = word.rfind("size=", 0) == 0 ? std::stoll(word.substr(5)) : plan.size;
      plan.image_half = plan.image_half || word == "image=half";
      plan.prompt_half = plan.prompt_half || word == "prompt=half";
      plan.logits_half = plan.logits_half || word == "logits=half";
      plan.other_name = plan.other_name || word == "other";
    }
    return new Engine(plan);
  }
};

class Registry final : public nvinfer1::stand_in::UnusedRegistry {
 public:
  void* loadLibrary(const char* path) noexcept override {
    void* library = dlopen(path, RTLD_LAZY);
    using GetCreators = nvinfer1::IPluginCreatorInterface* const* (*)(int32_t&);
    creators_ = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"))(count_);
    return library;
  }
  nvinfer1::IPluginCreatorInterface* const* getAllCreators(int32_t* count) const noexcept override {
    *count = count_;
    return creators_;
  }

 private:
  nvinfer1::IPluginCreatorInterface* const* creators_ = nullptr;
  int32_t count_ = 0;
};

// Of "10.13.3.9".
int32_t version_part(size_t part) {
  std::array<int32_t, 4> numbers = {NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR, NV_TENSORRT_PATCH, NV_TENSORRT_BUILD};
  if (const char* told = std::getenv("STAND_IN_VERSION")) {
    std::istringstream text(told);
    char point = '.';
    text >> numbers[0] >> point >> numbers[1] >> point >> numbers[2] >> point >> numbers[3];
  }
  return numbers[part];
}

}  // namespace

extern "C" {

TALENT_EXPORT int32_t getInferLibMajorVersion() noexcept { return version_part(0); }
TALENT_EXPORT int32_t getInferLibMinorVersion() noexcept { return version_part(1); }
TALENT_EXPORT int32_t getInferLibPatchVersion() noexcept { return version_part(2); }
TALENT_EXPORT int32_t getInferLibBuildVersion() noexcept { return version_part(3); }

TALENT_EXPORT nvinfer1::IPluginRegistry* getPluginRegistry() noexcept {
  static Registry registry;
  return &registry;
}

TALENT_EXPORT void* createInferRuntime_INTERNAL(void* log, int32_t version) noexcept {
  logger = static_cast<nvinfer1::ILogger*>(log);
  return refuses("createInferRuntime") || version != NV_TENSORRT_VERSION
             ? nullptr
             : static_cast<nvinfer1::IRuntime*>(new Runtime);
}

}  // extern "C"
