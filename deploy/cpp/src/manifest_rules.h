// The fields of bundle.json, and what each must be.
#pragma once

#include <cstdint>
#include <vector>

#include "json.h"

namespace talent {

constexpr int64_t kSchema = 1;  // of bundle.json, the newest that is known

// What a value must be, in words and as a test.
struct Rule {
  const char* expected;
  bool (*holds)(const json::Value& value);
};

struct Field {
  const char* name;
  Rule rule;
  bool required = true;
};

// In the order in which they are checked.
const std::vector<Field>& manifest_fields();
const std::vector<Field>& file_fields();
const std::vector<Field>& engine_fields();

const Rule& object_rule();
const Rule& file_name_rule();

// Whether a value is an integer of at least `least`, of any size.
bool is_integer_of(const json::Value& value, int64_t least);

}  // namespace talent
