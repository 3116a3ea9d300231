#include "checked_options.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <string>
#include <vector>

#include "files.h"
#include "letterbox_check.h"
#include "quote.h"
#include "suggest.h"

namespace talent {
namespace {

// A number as Python shows it.
std::string shown_number(double value) {
  const double magnitude = std::fabs(value);
  const bool is_small_or_large = magnitude != 0 && (magnitude < 1e-4 || magnitude >= 1e16);
  const auto format = is_small_or_large ? std::chars_format::scientific : std::chars_format::fixed;
  std::array<char, 64> text;
  const std::string shown(text.data(), std::to_chars(text.data(), text.data() + text.size(), value, format).ptr);
  return std::isfinite(value) && shown.find_first_of(".e") == shown.npos ? shown + ".0" : shown;
}

}  // namespace

void check_device(const Options& options) {
  if (options.device < 0) {
    refuse("the number of a GPU, 0 or more, as device", std::to_string(options.device));
  }
}

void check_precision(const Bundle& bundle, const Options& options) {
  const std::string& precision = options.precision;
  if (precision.empty()) {
    return;
  }
  const std::vector<std::string> known = {"fp32", "fp16", "int8"};
  if (std::find(known.begin(), known.end(), precision) == known.end()) {
    throw Error("unknown precision " + in_quotes(precision) + suggest(precision, known));
  }
  if (precision != bundle.precision()) {
    throw Error("expected an " + precision + " bundle, received " + shown(bundle.directory()) + ", which is " +
                bundle.precision() + ": the precision is in its ONNX files, and its accuracy was measured with it; "
                "export another bundle: talent-export CHECKPOINT --" + precision + " -o BUNDLE");
  }
}

double checked_threshold(const Bundle& bundle, const Options& options) {
  const double threshold = options.threshold.value_or(bundle.threshold());
  if (!(threshold >= 0 && threshold < 1)) {
    refuse("a threshold from 0 to below 1", shown_number(threshold));
  }
  return threshold;
}

}  // namespace talent
