// What TensorRT calls the plugin for rectified cost aggregation, and what ONNX files call its node.
#pragma once

namespace talent {

constexpr const char* kPluginName = "RcaCostAggregation";
constexpr const char* kPluginVersion = "1";
constexpr const char* kPluginNamespace = "talent";

}  // namespace talent
