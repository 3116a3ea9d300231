#include "interface.h"

#include <algorithm>
#include <string_view>

#include "manifest.h"
#include "quote.h"
#include "talent/errors.h"

namespace talent {
namespace {

const std::string* type_of(const TensorTypes& tensors, std::string_view name) {
  const auto found = std::find_if(tensors.begin(), tensors.end(), [&](const auto& tensor) {
    return tensor.first == name;
  });
  return found == tensors.end() ? nullptr : &found->second;
}

std::string names_of(const TensorTypes& tensors) {
  std::vector<std::string> names;
  for (const auto& [name, type] : tensors) {
    names.push_back(name);
  }
  return joined(names, ", ");
}

}  // namespace

void check_graphs(const std::string& where, const GraphInterface& text, const GraphInterface& vision) {
  const std::string again = std::string("; ") + kAgain;
  if (text.inputs.size() != 1 || text.inputs[0].first != kTokens || type_of(vision.inputs, kImage) == nullptr ||
      type_of(vision.outputs, kLogits) == nullptr) {
    throw Error(where + ": expected text(" + kTokens + ") and vision(" + kImage + ", ...) -> " + kLogits +
                ", received text(" + names_of(text.inputs) + ") and vision(" + names_of(vision.inputs) + ") -> " +
                names_of(vision.outputs) + again);
  }
  for (const auto& [name, type] : vision.inputs) {
    if (name == kImage) {
      continue;
    }
    const std::string* made = type_of(text.outputs, name);
    if (made == nullptr) {
      throw Error(where + ": vision expects the prompt tensor " + in_quotes(name) +
                  ", which text does not make (it makes " + names_of(text.outputs) + ")" + again);
    }
    if (*made != type) {
      throw Error(where + ": vision expects " + in_quotes(name) + " as " + type + ", text makes " + *made + again);
    }
  }
  std::vector<std::string> unused;
  for (const auto& [name, type] : text.outputs) {
    if (name == kImage || type_of(vision.inputs, name) == nullptr) {
      unused.push_back(name);
    }
  }
  if (!unused.empty()) {
    std::sort(unused.begin(), unused.end());
    throw Error(where + ": text makes prompt tensors that vision does not take: " + joined(unused, ", ") + again);
  }
}

}  // namespace talent
