// The two engines of a bundle, which all lanes share.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <memory>
#include <string>

#include "cuda_graph.h"
#include "tensorrt_engine.h"

namespace talent {

struct TensorRtModel {
  std::unique_ptr<nvinfer1::IRuntime> runtime;  // lives longer than its engines
  std::unique_ptr<const TensorRtEngine> text;
  std::unique_ptr<const TensorRtEngine> vision;
  int64_t image_size;        // S
  int64_t most_expressions;  // that the vision engine takes at once
  CudaGraphs graphs;
};

}  // namespace talent
