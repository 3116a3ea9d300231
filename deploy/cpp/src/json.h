// JSON as deploy/manifest.py reads it.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace talent::json {

// What is no JSON: where, in a few words.
class Malformed : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Member;

// A JSON value. JSON does not tell 448.0 from 448, so a number without a fraction is an integer, of any size.
struct Value {
  enum class Kind { kNull, kBoolean, kInteger, kFraction, kText, kList, kObject };

  Kind kind = Kind::kNull;
  bool boolean = false;
  std::string text;  // kText: UTF-8; kInteger: its decimal digits; kFraction: the shortest text that is this number
  std::vector<Value> items;
  std::vector<Member> members;  // in the order of the file; of a name that is there twice, the last value

  bool is_null() const { return kind == Kind::kNull; }
  bool is_text() const { return kind == Kind::kText; }
  bool is_list() const { return kind == Kind::kList; }
  bool is_object() const { return kind == Kind::kObject; }
  bool is_number() const { return kind == Kind::kInteger || kind == Kind::kFraction; }

  // The number as an integer, if it is one and fits.
  std::optional<int64_t> integer() const;
  // The number; 0 for what is none.
  double number() const;
  // The value of a member of an object, or nullptr.
  const Value* find(std::string_view name) const;
};

struct Member {
  std::string name;
  Value value;
};

// Equal as JSON is: 1 is not true, and the order of members does not matter.
bool operator==(const Value& one, const Value& other);

// Throws Malformed for what is no JSON in UTF-8, also for a number too large for a double, and for what is nested
// deeper than people write.
Value parse(std::string_view text);

// A short text for a message: what Python's reprlib.repr gives.
std::string shown(const Value& value);

}  // namespace talent::json
