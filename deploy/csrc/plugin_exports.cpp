// What TensorRT looks for in a library of plugins, and what our own loader (deploy/plugin.py) asks it first.
#include <NvInferRuntime.h>

#include "export.h"
#include "plugin_log.h"
#include "rca_plugin.h"

extern "C" {

// The TensorRT whose headers this was compiled with: 101303 for 10.13.3, 10701 for TensorRT-RTX 1.7.1. The virtual
// functions of the logger and its finder lie elsewhere in TensorRT 11 than in 10, so a library for the one must not be
// loaded by the other.
TALENT_EXPORT int32_t talent_plugin_tensorrt() {
  return NV_TENSORRT_MAJOR * 10000 + NV_TENSORRT_MINOR * 100 + NV_TENSORRT_PATCH;
}

TALENT_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { talent::set_logger_finder(finder); }

TALENT_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static talent::RcaPluginCreator rca;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&rca};
  count = 1;
  return creators;
}

}  // extern "C"
