#include "rca_fields.h"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "plugin_log.h"

namespace talent {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

constexpr RcaActivation kActivations[] = {RcaActivation::kNone, RcaActivation::kRelu};
constexpr int kShown = 40;  // characters of a value that is wrong

float slope_of(RcaActivation activation) { return activation == RcaActivation::kRelu ? 0.0f : 1.0f; }

// Attributes by which TensorRT's ONNX parser chooses the plugin: not settings of it.
bool chooses_plugin(std::string_view name) { return name == "plugin_version" || name == "plugin_namespace"; }

std::optional<RcaActivation> read_activation(const PluginField& field, const char* layer) {
  if (field.type != PluginFieldType::kCHAR || field.length < 1 || field.data == nullptr) {
    report(Severity::kERROR,
           "RcaCostAggregation %s: expected the field activation to be text (type %d) of at least one character, "
           "received type %d and length %d",
           layer, static_cast<int>(PluginFieldType::kCHAR), static_cast<int>(field.type),
           static_cast<int>(field.length));
    return std::nullopt;
  }
  std::string_view value(static_cast<const char*>(field.data), static_cast<size_t>(field.length));
  if (value.back() == '\0') {  // a terminator that was counted
    value.remove_suffix(1);
  }
  for (const RcaActivation activation : kActivations) {
    if (value == activation_name(activation)) {
      return activation;
    }
  }
  report(Severity::kERROR,
         "RcaCostAggregation %s: expected the field activation to be \"none\" or \"relu\", received \"%.*s\"", layer,
         std::min(kShown, static_cast<int>(value.size())), value.data());
  return std::nullopt;
}

std::optional<float> read_slope(const PluginField& field, const char* layer) {
  if (field.type != PluginFieldType::kFLOAT32 || field.length != 1 || field.data == nullptr) {
    report(Severity::kERROR,
           "RcaCostAggregation %s: expected the field negative_slope to be one FP32 number (type %d), received type %d "
           "and length %d",
           layer, static_cast<int>(PluginFieldType::kFLOAT32), static_cast<int>(field.type),
           static_cast<int>(field.length));
    return std::nullopt;
  }
  float slope;
  std::memcpy(&slope, field.data, sizeof slope);  // nobody says that it is aligned
  return slope;
}

// Read into `place` what `read` makes of a field. False where that fails, or where the place is taken.
template <typename Value, typename Read>
bool read_once(std::optional<Value>& place, const PluginField& field, const char* layer, Read read) {
  if (place.has_value()) {
    report(Severity::kERROR, "RcaCostAggregation %s: expected the field %s once, received it twice", layer, field.name);
    return false;
  }
  place = read(field, layer);
  return place.has_value();
}

}  // namespace

const char* activation_name(RcaActivation activation) noexcept {
  return activation == RcaActivation::kRelu ? "relu" : "none";
}

std::optional<RcaActivation> read_fields(const nvinfer1::PluginFieldCollection* fields, const char* layer) noexcept {
  if (fields == nullptr || fields->nbFields < 0 || (fields->nbFields > 0 && fields->fields == nullptr)) {
    report(Severity::kERROR, "RcaCostAggregation %s: expected a collection of fields, received none", layer);
    return std::nullopt;
  }
  std::optional<RcaActivation> activation;
  std::optional<float> slope;
  for (int32_t index = 0; index < fields->nbFields; ++index) {
    const PluginField& field = fields->fields[index];
    const std::string_view name = field.name == nullptr ? "" : field.name;
    if (name == kActivationField) {
      if (!read_once(activation, field, layer, read_activation)) {
        return std::nullopt;
      }
    } else if (name == kSlopeField) {
      if (!read_once(slope, field, layer, read_slope)) {
        return std::nullopt;
      }
    } else if (!chooses_plugin(name)) {
      report(Severity::kWARNING, "RcaCostAggregation %s: ignored the field \"%.*s\"; known: %s, %s", layer,
             std::min(kShown, static_cast<int>(name.size())), name.data(), kActivationField, kSlopeField);
    }
  }
  if (!activation.has_value()) {
    report(Severity::kERROR,
           "RcaCostAggregation %s: expected the field activation (\"none\" or \"relu\"), received %d fields without it",
           layer, static_cast<int>(fields->nbFields));
    return std::nullopt;
  }
  if (slope.has_value() && *slope != slope_of(*activation)) {  // true of a NaN, too
    report(Severity::kERROR,
           "RcaCostAggregation %s: expected negative_slope %g with activation \"%s\", received %g: the plugin and the "
           "body of the ONNX function would compute different things",
           layer, static_cast<double>(slope_of(*activation)), activation_name(*activation),
           static_cast<double>(*slope));
    return std::nullopt;
  }
  return activation;
}

}  // namespace talent
