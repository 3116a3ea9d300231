// The agreement between the two graphs of a bundle: deploy/runtime/interface.py.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace talent {

constexpr const char* kTokens = "tokens";
constexpr const char* kImage = "image";
constexpr const char* kLogits = "logits";
constexpr int64_t kMostExpressions = 64;  // pictures or expressions that the ONNX files take at once

// Names of a graph's inputs or outputs in their order, with their element types in any form.
using TensorTypes = std::vector<std::pair<std::string, std::string>>;

struct GraphInterface {
  TensorTypes inputs;
  TensorTypes outputs;
};

// Compares the names and element types of two graphs. where: names them, for the error. Throws Error when they do not
// fit.
void check_graphs(const std::string& where, const GraphInterface& text, const GraphInterface& vision);

}  // namespace talent
