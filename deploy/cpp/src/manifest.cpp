#include "manifest.h"

#include <algorithm>
#include <iterator>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "files.h"
#include "manifest_rules.h"
#include "quote.h"
#include "suggest.h"
#include "talent/errors.h"

namespace talent {
namespace {

using json::Member;
using json::Value;

constexpr const char* kRequiredFiles[] = {"text.onnx", "vision.onnx", kTokenizer};

void check(const Value& value, const Rule& rule, const std::string& where, const std::string& name) {
  if (!rule.holds(value)) {
    throw Error(where + ": expected " + name + " to be " + rule.expected + ", received " + json::shown(value) + "; " +
                kAgain);
  }
}

void check_record(const Value& record, const std::vector<Field>& fields, const std::string& where,
                  const std::string& name) {
  check(record, object_rule(), where, name.empty() ? "the content" : name);
  const std::string prefix = name.empty() ? "" : name + ".";
  for (const Member& member : record.members) {
    if (std::none_of(fields.begin(), fields.end(), [&](const Field& field) { return field.name == member.name; })) {
      std::vector<std::string> known;
      std::transform(fields.begin(), fields.end(), std::back_inserter(known), [](const Field& field) {
        return field.name;
      });
      throw Error(where + ": unknown field " + in_quotes(prefix + member.name) + suggest(member.name, known) + "; " +
                  kAgain);
    }
  }
  for (const Field& field : fields) {
    if (const Value* value = record.find(field.name)) {
      check(*value, field.rule, where, prefix + field.name);
    } else if (field.required) {
      throw Error(where + ": missing field " + in_quotes(prefix + field.name) + ", expected " + field.rule.expected +
                  "; " + kAgain);
    }
  }
}

void check_manifest(const Value& content, const std::string& where) {
  const Value* schema = content.find("schema");
  if (schema != nullptr && is_integer_of(*schema, kSchema + 1)) {
    throw Error(where + ": expected schema " + std::to_string(kSchema) + ", received " + schema->text +
                ": a newer version made the bundle; run: pip install --upgrade talent-edge");
  }
  check_record(content, manifest_fields(), where, "");
  const Value& files = *content.find("files");
  for (const Member& member : files.members) {
    Value name;
    name.kind = Value::Kind::kText;
    name.text = member.name;
    check(name, file_name_rule(), where, "a name in files");
    check_record(member.value, file_fields(), where, "files[" + in_quotes(member.name) + "]");
  }
  for (const char* name : kRequiredFiles) {
    if (files.find(name) == nullptr) {
      throw Error(where + ": expected the size and digest of " + name + " in files, received none; " + kAgain);
    }
  }
  const std::vector<Value>& engines = content.find("engines")->items;
  for (size_t index = 0; index < engines.size(); ++index) {
    check_record(engines[index], engine_fields(), where, "engines[" + std::to_string(index) + "]");
  }
}

}  // namespace

json::Value read_manifest(const std::filesystem::path& path) {
  const std::string where = shown(path);
  Value content;
  try {
    content = json::parse(read_file(path));
  } catch (const std::system_error& error) {
    if (error.code() == std::errc::no_such_file_or_directory) {
      throw Error("not a bundle: " + shown(path.parent_path()) + " has no " + kManifest +
                  "; expected a directory that talent-export wrote");
    }
    throw Error("cannot read " + where + ": " + error.code().message() + "; expected a file that talent-export wrote");
  } catch (const json::Malformed& error) {
    throw Error(where + ": malformed JSON (" + error.what() +
                "): the file is damaged or was cut short; copy it again or " + kAgain);
  }
  check_manifest(content, where);
  return content;
}

}  // namespace talent
