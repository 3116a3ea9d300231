#include "tokenizer_file.h"

#include <algorithm>
#include <string_view>
#include <system_error>

#include "files.h"
#include "json.h"
#include "quote.h"
#include "talent/errors.h"

namespace talent {
namespace {

using json::Member;
using json::Value;

constexpr const char* kStart = "<start_of_text>";
constexpr const char* kEnd = "<end_of_text>";
constexpr std::string_view kAnyInteger = "any integer";  // in the place of a value below

// All of the file but the vocabulary and the merges: what words.h, BytePairs and Tokenizer do. To how many tokens the
// file itself cuts and pads does not matter.
constexpr std::string_view kUnderstood = R"json({
  "version": "1.0",
  "added_tokens": [],
  "normalizer": {"type": "Sequence", "normalizers": [
    {"type": "NFC"},
    {"type": "Replace", "pattern": {"Regex": "[\u02bc\u2018-\u201b]"}, "content": "'"},
    {"type": "Replace", "pattern": {"Regex": "[\u201c-\u201f]"}, "content": "\""},
    {"type": "Replace", "content": "",
     "pattern": {"Regex": "[\\x00-\\x08\\x0b\\x0e-\\x1f\\x7f\\u206a-\\u206f\\ufeff\\ufff9-\\ufffc]"}},
    {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "},
    {"type": "Lowercase"}]},
  "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
    {"type": "Split", "behavior": "Removed", "invert": true,
     "pattern": {"Regex": "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+"}},
    {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]},
  "post_processor": {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<start_of_text>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
               {"SpecialToken": {"id": "<end_of_text>", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {
      "<start_of_text>": {"id": "<start_of_text>", "ids": ["any integer"], "tokens": ["<start_of_text>"]},
      "<end_of_text>": {"id": "<end_of_text>", "ids": ["any integer"], "tokens": ["<end_of_text>"]}}},
  "decoder": null,
  "truncation": {"direction": "Right", "max_length": "any integer", "strategy": "LongestFirst", "stride": 0},
  "padding": {"strategy": {"Fixed": "any integer"}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
              "pad_type_id": 0, "pad_token": "!"},
  "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false}
})json";

// A tokenizer, but of another model: the message is whole.
class NotOurs : public Error {
 public:
  using Error::Error;
};

[[noreturn]] void refuse(const std::string& name, const std::string& expected, const std::string& received) {
  throw Error("expected " + name + " to be " + expected + ", received " + received);
}

// Throws Error for the first thing that is not as it is in kUnderstood.
void compare(const Value& received, const Value& expected, const std::string& name) {
  if (expected.is_text() && expected.text == kAnyInteger) {
    if (received.kind != Value::Kind::kInteger) {
      refuse(name, "an integer", json::shown(received));
    }
    return;
  }
  if (expected.kind != received.kind || expected.members.empty() != received.members.empty() ||
      expected.items.size() != received.items.size() || expected.text != received.text ||
      expected.boolean != received.boolean) {
    refuse(name, json::shown(expected), json::shown(received));
  }
  for (size_t index = 0; index < expected.items.size(); ++index) {
    compare(received.items[index], expected.items[index], name + "[" + std::to_string(index) + "]");
  }
  const std::string prefix = name.empty() ? "" : name + ".";
  for (const Member& member : received.members) {
    if (expected.find(member.name) == nullptr) {
      throw Error("unknown field " + in_quotes(prefix + member.name));
    }
  }
  for (const Member& member : expected.members) {
    const Value* value = received.find(member.name);
    if (value == nullptr) {
      throw Error("missing field " + in_quotes(prefix + member.name));
    }
    compare(*value, member.value, prefix + member.name);
  }
}

// Takes a member out of an object.
Value take(Value& object, std::string_view name) {
  const auto found = std::find_if(object.members.begin(), object.members.end(), [&](const Member& member) {
    return member.name == name;
  });
  if (found == object.members.end()) {
    throw Error("missing field " + in_quotes("model." + std::string(name)));
  }
  Value value = std::move(found->value);
  object.members.erase(found);
  return value;
}

BytePairs::Vocabulary read_vocabulary(const Value& value) {
  if (!value.is_object()) {
    refuse("model.vocab", "an object of ids", json::shown(value));
  }
  BytePairs::Vocabulary vocabulary;
  std::vector<bool> is_taken(value.members.size());
  for (const Member& member : value.members) {
    const int64_t id = member.value.integer().value_or(-1);
    if (id < 0 || static_cast<size_t>(id) >= is_taken.size() || is_taken[static_cast<size_t>(id)]) {
      refuse("the ids in model.vocab",
             "each of the numbers from 0 to below " + std::to_string(is_taken.size()) + " once",
             json::shown(member.value) + " for " + in_quotes(member.name));
    }
    is_taken[static_cast<size_t>(id)] = true;
    vocabulary.emplace(member.name, id);
  }
  return vocabulary;
}

// ["t", "h"], or "t h" as older versions of the library write it.
BytePairs::Pair read_merge(const Value& value, size_t index) {
  if (value.items.size() == 2 && value.items[0].is_text() && value.items[1].is_text()) {
    return {value.items[0].text, value.items[1].text};
  }
  const size_t space = value.text.find(' ');
  if (!value.is_text() || space == std::string::npos || value.text.find(' ', space + 1) != std::string::npos) {
    refuse("model.merges[" + std::to_string(index) + "]", "two symbols", json::shown(value));
  }
  return {value.text.substr(0, space), value.text.substr(space + 1)};
}

std::vector<BytePairs::Pair> read_merges(const Value& value) {
  if (!value.is_list()) {
    refuse("model.merges", "a list", json::shown(value));
  }
  std::vector<BytePairs::Pair> merges;
  merges.reserve(value.items.size());
  for (const Value& merge : value.items) {
    merges.push_back(read_merge(merge, merges.size()));
  }
  return merges;
}

// The id of the start or end token in the vocabulary, which the template must put there, too.
void check_template(const Value& content, const char* token, int64_t id) {
  const Value* special = content.find("post_processor")->find("special_tokens")->find(token);
  const Value& received = special->find("ids")->items[0];
  if (received.integer() != id) {
    refuse("post_processor.special_tokens." + std::string(token) + ".ids", "[" + std::to_string(id) + "]",
           "[" + json::shown(received) + "]");
  }
}

// Truncation and padding may also be null: what they say does not matter, but for their sides.
Value understood(const Value& content) {
  Value expected = json::parse(kUnderstood);
  for (Member& member : expected.members) {
    const Value* received = content.find(member.name);
    if ((member.name == "truncation" || member.name == "padding") && received != nullptr && received->is_null()) {
      member.value = *received;
    }
  }
  return expected;
}

TokenizerFile read(Value content) {
  const auto model = std::find_if(content.members.begin(), content.members.end(), [](const Member& member) {
    return member.name == "model" && member.value.is_object();
  });
  if (model == content.members.end()) {
    throw Error("expected an object with an object 'model' inside, received " + json::shown(content));
  }
  const BytePairs::Vocabulary vocabulary = read_vocabulary(take(model->value, "vocab"));
  const std::vector<BytePairs::Pair> merges = read_merges(take(model->value, "merges"));
  const auto start = vocabulary.find(kStart), end = vocabulary.find(kEnd);
  if (start == vocabulary.end() || end == vocabulary.end() ||
      end->second + 1 != static_cast<int64_t>(vocabulary.size())) {
    throw NotOurs("not a TALENT tokenizer: expected " + in_quotes(kEnd) + " as its last token, and " +
                  in_quotes(kStart) + " among them");
  }
  compare(content, understood(content), "");
  check_template(content, kStart, start->second);
  check_template(content, kEnd, end->second);
  return {BytePairs(vocabulary, merges), start->second, end->second, static_cast<int64_t>(vocabulary.size())};
}

}  // namespace

TokenizerFile read_tokenizer_file(const std::filesystem::path& path) {
  std::error_code ignored;  // what cannot be asked for is no file
  if (!std::filesystem::is_regular_file(path, ignored)) {
    throw Error("no such tokenizer: " + shown(path));
  }
  std::string problem;
  try {
    return read(json::parse(read_file(path)));
  } catch (const NotOurs&) {
    throw;
  } catch (const std::system_error& error) {
    problem = error.code().message();
  } catch (const json::Malformed& error) {
    problem = error.what();
  } catch (const Error& error) {
    problem = error.what();
  }
  throw Error("not a tokenizer.json: " + shown(path) + " (" + problem + "); export the bundle again");
}

}  // namespace talent
