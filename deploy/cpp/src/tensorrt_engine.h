// One engine of a bundle in TensorRT: what goes in and out of it, and its execution contexts.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "backend.h"
#include "cuda_memory.h"
#include "interface.h"

namespace talent {

using TensorRtContext = std::unique_ptr<nvinfer1::IExecutionContext>;

// An input or output of an engine; its elements lie one after the other in the memory of the GPU.
struct EngineTensor {
  std::string name;
  ElementType type;
  std::vector<int64_t> shape;  // -1 where it varies, which is the batch alone
};

size_t bytes_of(ElementType type);

// How many bytes of a tensor belong to one picture or expression: to all of its shape but the batch.
size_t bytes_of_one(const EngineTensor& tensor);

class TensorRtEngine {
 public:
  // Reads a plan. advice: what to do where TensorRT refuses it. Throws Error for that, and for an engine whose tensors
  // are none that talent-build makes.
  TensorRtEngine(nvinfer1::IRuntime& runtime, const std::filesystem::path& plan, const std::string& runtime_name,
                 const std::string& advice);

  const std::vector<EngineTensor>& inputs() const noexcept { return inputs_; }
  const std::vector<EngineTensor>& outputs() const noexcept { return outputs_; }
  GraphInterface interface() const;  // for check_graphs

  // Bytes that a context needs while it runs.
  size_t memory() const;

  // One that runs in `memory`, of at least memory(); contexts that share it must not run at the same time. Throws
  // Error.
  TensorRtContext make_context(const DeviceMemory& memory) const;

  // Throws Error, with TensorRT's words, unless it did what was `tried` ("run the vision engine").
  void check(bool done, const std::string& tried) const;

 private:
  std::string runtime_name_;
  std::string plan_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::vector<EngineTensor> inputs_, outputs_;
};

// The tensor of a name. Throws std::logic_error where there is none: check_graphs has looked.
const EngineTensor& tensor_of(const std::vector<EngineTensor>& tensors, const std::string& name);

// The shape of `tensor` with `batch` in the place of the batch.
nvinfer1::Dims dims_of(const EngineTensor& tensor, int64_t batch);

}  // namespace talent
