// The fields of an RCA: the attributes of its ONNX node when an engine is built, what was serialized when one is read.
//
//   activation       text "none" or "relu", whose length alone says where it ends
//   negative_slope   FP32, 1 for none and 0 for relu: the same again, for the body of the ONNX function; may be missing
#pragma once

#include <NvInferRuntime.h>

#include <optional>

#include "rca_kernel.h"

namespace talent {

constexpr const char* kActivationField = "activation";
constexpr const char* kSlopeField = "negative_slope";

// "none" or "relu".
const char* activation_name(RcaActivation activation) noexcept;

// What the fields say. Names that are not ours are ignored, with a warning but for those that choose the plugin. What
// is wrong (a type, a length, a value, a contradiction, activation missing, a field given twice) is reported, and
// nothing returned. `layer` is for the messages.
std::optional<RcaActivation> read_fields(const nvinfer1::PluginFieldCollection* fields, const char* layer) noexcept;

}  // namespace talent
