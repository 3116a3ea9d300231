#include "manifest_rules.h"

#include <algorithm>
#include <initializer_list>
#include <string_view>

namespace talent {
namespace {

using json::Member;
using json::Value;

constexpr std::string_view kDigits = "0123456789";
constexpr size_t kDigestSize = 64;

// How this version feeds a network.
constexpr const char* kPreprocessing =
    R"({"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711],
        "interpolation": "cubic", "letterbox": true})";
constexpr const char* kPreprocessingText =
    "{'mean': [0.48145466, 0.4578275, 0.40821073], 'std': [0.26862954, 0.26130258, 0.27577711], "
    "'interpolation': 'cubic', 'letterbox': True}, which is how this version feeds a network";

bool is_one_of(const Value& value, std::initializer_list<std::string_view> names) {
  return value.is_text() && std::find(names.begin(), names.end(), value.text) != names.end();
}

bool is_digit(char character) { return kDigits.find(character) != kDigits.npos; }

bool is_letter(char character) {
  return (character >= 'a' && character <= 'z') || (character >= 'A' && character <= 'Z');
}

bool is_digest(std::string_view text) {
  return text.size() == kDigestSize && text.find_first_not_of("0123456789abcdef") == text.npos;
}

// A bundle may come from a stranger: its manifest must not name files outside it, on any system.
bool is_name(std::string_view text) {
  const auto begins = [](char character) { return is_letter(character) || is_digit(character) || character == '_'; };
  return !text.empty() && begins(text.front()) && std::all_of(text.begin(), text.end(), [&](char character) {
    return begins(character) || character == '.' || character == '+' || character == '-';
  });
}

bool is_plan(std::string_view text) {
  constexpr std::string_view kFolder = "engines/";
  if (text.substr(0, kFolder.size()) != kFolder) {
    return false;
  }
  while (true) {
    text.remove_prefix(text.find('/') + 1);
    const size_t slash = text.find('/');
    if (slash == text.npos) {
      return is_name(text);
    }
    if (!is_name(text.substr(0, slash))) {
      return false;
    }
  }
}

// sm87, or several with a plus between.
bool are_gpus(std::string_view text) {
  while (true) {
    const size_t plus = text.find('+');
    const std::string_view gpu = text.substr(0, plus);
    if (gpu.size() < 3 || gpu.substr(0, 2) != "sm" || gpu.find_first_not_of(kDigits, 2) != gpu.npos) {
      return false;
    }
    if (plus == text.npos) {
      return true;
    }
    text.remove_prefix(plus + 1);
  }
}

// Whether a text begins as `pattern`, in which every 0 stands for a digit; takes it off the front.
bool take(std::string_view& text, std::string_view pattern) {
  if (text.size() < pattern.size()) {
    return false;
  }
  for (size_t index = 0; index < pattern.size(); ++index) {
    if (pattern[index] == '0' ? !is_digit(text[index]) : text[index] != pattern[index]) {
      return false;
    }
  }
  text.remove_prefix(pattern.size());
  return true;
}

bool is_time(std::string_view text) {
  if (!take(text, "0000-00-00T00:00:00")) {
    return false;
  }
  if (take(text, ".0")) {
    text.remove_prefix(std::min(text.find_first_not_of(kDigits), text.size()));
  }
  return (take(text, "Z") || take(text, "+00:00") || take(text, "-00:00")) && text.empty();
}

bool is_not_empty(const Value& value) { return value.is_text() && !value.text.empty(); }
bool is_precision(const Value& value) { return is_one_of(value, {"fp32", "fp16", "int8"}); }
bool is_positive(const Value& value) { return is_integer_of(value, 1); }
bool is_recorded_digest(const Value& value) { return value.is_text() && is_digest(value.text); }

constexpr Rule kObject = {"a JSON object", [](const Value& value) { return value.is_object(); }};
constexpr Rule kNotEmpty = {"text that is not empty", is_not_empty};
constexpr Rule kPositive = {"an integer of at least 1", is_positive};
constexpr Rule kDigest = {"a SHA-256 of 64 hexadecimal digits", is_recorded_digest};
constexpr Rule kPrecision = {"one of fp32, fp16, int8", is_precision};
constexpr Rule kFileName = {"a file name inside the bundle of letters, digits and . _ + -",
                            [](const Value& value) { return value.is_text() && is_name(value.text); }};

}  // namespace

bool is_integer_of(const Value& value, int64_t least) {
  if (value.kind != Value::Kind::kInteger) {
    return false;
  }
  const std::optional<int64_t> integer = value.integer();
  return integer.has_value() ? *integer >= least : value.text.front() != '-';
}

const Rule& object_rule() { return kObject; }
const Rule& file_name_rule() { return kFileName; }

const std::vector<Field>& manifest_fields() {
  static const std::vector<Field> fields = {
      {"schema", kPositive},
      {"preset", kNotEmpty},
      {"precision", kPrecision},
      {"image_size", kPositive},
      {"context_length", {"an integer of at least 3", [](const Value& value) { return is_integer_of(value, 3); }}},
      {"threshold", {"a number from 0 to below 1", [](const Value& value) {
         return value.is_number() && value.number() >= 0 && value.number() < 1;
       }}},
      {"preprocessing", {kPreprocessingText, [](const Value& value) { return value == json::parse(kPreprocessing); }}},
      {"source", kObject},
      {"files", kObject},
      {"engines", {"a list", [](const Value& value) { return value.is_list(); }}},
      {"parity", kObject},
      {"versions", {"an object of texts", [](const Value& value) {
         return value.is_object() && std::all_of(value.members.begin(), value.members.end(), [](const Member& member) {
           return member.value.is_text();
         });
       }}},
      {"commit", kNotEmpty},
      {"created", {"a time with its zone, such as 2026-01-31T12:00:00+00:00",
                   [](const Value& value) { return value.is_text() && is_time(value.text); }}}};
  return fields;
}

const std::vector<Field>& file_fields() {
  static const std::vector<Field> fields = {{"bytes", kPositive}, {"sha256", kDigest}};
  return fields;
}

const std::vector<Field>& engine_fields() {
  static const std::vector<Field> fields = {
      {"graph", {"one of text, vision", [](const Value& value) { return is_one_of(value, {"text", "vision"}); }}},
      {"precision", kPrecision},
      {"runtime", {"one of tensorrt, tensorrt_rtx", [](const Value& value) {
         return is_one_of(value, {"tensorrt", "tensorrt_rtx"});
       }}},
      {"version", kNotEmpty},
      {"arch", {"portable, or GPUs such as sm87 or sm86+sm89", [](const Value& value) {
         return value.is_text() && (value.text == "portable" || are_gpus(value.text));
       }}},
      {"path", {"a path inside the bundle such as engines/tensorrt-10.3.0-sm87/text.plan",
                [](const Value& value) { return value.is_text() && is_plan(value.text); }}},
      {"seconds", {"a number of seconds", [](const Value& value) {
         return value.is_number() && value.number() >= 0;
       }}},
      {"batch", kPositive},
      {"peak_memory_bytes", {"a number of bytes, or null where it is not known", [](const Value& value) {
         return value.is_null() || is_positive(value);
       }}},
      {"plugin", {"true or false", [](const Value& value) { return value.kind == Value::Kind::kBoolean; }}, false},
      {"bytes", kPositive},
      {"sha256", kDigest},
      {"built_from", {"the SHA-256 by name of the ONNX files that it was built from", [](const Value& value) {
         return value.is_object() && !value.members.empty() &&
                std::all_of(value.members.begin(), value.members.end(), [](const Member& member) {
                  return is_name(member.name) && is_recorded_digest(member.value);
                });
       }}}};
  return fields;
}

}  // namespace talent
