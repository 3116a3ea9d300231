#include "json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <unordered_map>

namespace talent::json {
namespace {

constexpr size_t kDeepest = 500;  // Python's reader gives up at some 1000

// A number without a fraction, in decimal: a double holds it exactly.
std::string integer_text(double value) {
  char text[400];
  const int size = std::snprintf(text, sizeof text, "%.0f", value);
  const std::string digits(text, static_cast<size_t>(size));
  return digits == "-0" ? "0" : digits;
}

std::string fraction_text(double value) {
  char text[64];
  const auto format = std::fabs(value) < 1e-4 ? std::chars_format::scientific : std::chars_format::fixed;
  return std::string(text, std::to_chars(text, text + sizeof text, value, format).ptr);
}

// Puts together what the parser meets. `Open` is an object or list whose end has not come yet.
class Builder {
 public:
  using Kind = Value::Kind;

  bool null() { return put({}); }
  bool boolean(bool value) {
    Value made;
    made.kind = Kind::kBoolean;
    made.boolean = value;
    return put(std::move(made));
  }
  bool number_integer(int64_t value) { return put_text(Kind::kInteger, std::to_string(value)); }
  bool number_unsigned(uint64_t value) { return put_text(Kind::kInteger, std::to_string(value)); }
  bool number_float(double value, const std::string& literal) {
    if (literal.find_first_of(".eE") == std::string::npos) {  // an integer of more than 64 bits
      return put_text(Kind::kInteger, literal);
    }
    const bool whole = value == std::floor(value);
    return put_text(whole ? Kind::kInteger : Kind::kFraction, whole ? integer_text(value) : fraction_text(value));
  }
  bool string(std::string& value) { return put_text(Kind::kText, std::move(value)); }
  bool binary(std::vector<uint8_t>&) { return false; }  // not in JSON
  bool start_object(size_t) { return open(Kind::kObject); }
  bool start_array(size_t) { return open(Kind::kList); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }
  bool key(std::string& name) {
    open_.back().name = std::move(name);
    return true;
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error) {
    const bool is_too_large = dynamic_cast<const nlohmann::detail::out_of_range*>(&error) != nullptr;
    problem = is_too_large ? "a number too large for a double" : "not JSON in UTF-8";
    problem += " at byte " + std::to_string(position);
    return false;
  }

  Value root;
  std::string problem;

 private:
  struct Open {
    Value value;
    std::string name;  // of the member that is read
    std::unordered_map<std::string, size_t> places;
  };

  bool open(Kind kind) {
    if (open_.size() == kDeepest) {
      problem = "nested deeper than " + std::to_string(kDeepest);
      return false;
    }
    open_.emplace_back();
    open_.back().value.kind = kind;
    return true;
  }

  bool close() {
    Value value = std::move(open_.back().value);
    open_.pop_back();
    return put(std::move(value));
  }

  bool put_text(Kind kind, std::string text) {
    Value made;
    made.kind = kind;
    made.text = std::move(text);
    return put(std::move(made));
  }

  bool put(Value value) {
    if (open_.empty()) {
      root = std::move(value);
    } else if (Open& open = open_.back(); open.value.is_list()) {
      open.value.items.push_back(std::move(value));
    } else if (const auto [place, is_new] = open.places.try_emplace(open.name, open.value.members.size()); is_new) {
      open.value.members.push_back({std::move(open.name), std::move(value)});
    } else {
      open.value.members[place->second].value = std::move(value);
    }
    return true;
  }

  std::vector<Open> open_;
};

}  // namespace

std::optional<int64_t> Value::integer() const {
  int64_t value = 0;
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool fits = problem == std::errc() && end == text.data() + text.size();
  return kind == Kind::kInteger && fits ? std::optional(value) : std::nullopt;
}

double Value::number() const {
  double value = 0;
  if (is_number()) {
    std::from_chars(text.data(), text.data() + text.size(), value);
  }
  return value;
}

const Value* Value::find(std::string_view name) const {
  const auto found = std::find_if(members.begin(), members.end(), [&](const Member& member) {
    return member.name == name;
  });
  return found == members.end() ? nullptr : &found->value;
}

bool operator==(const Value& one, const Value& other) {
  return one.kind == other.kind && one.boolean == other.boolean && one.text == other.text &&
         one.items == other.items && one.members.size() == other.members.size() &&
         std::all_of(one.members.begin(), one.members.end(), [&](const Member& member) {
           const Value* same = other.find(member.name);
           return same != nullptr && member.value == *same;
         });
}

Value parse(std::string_view text) {
  // The parser below takes a byte order mark, and for the end of the text a zero byte.
  if (text.substr(0, 3) == "\xef\xbb\xbf" || text.find('\0') != std::string_view::npos) {
    throw Malformed("a byte order mark or a zero byte");
  }
  Builder builder;
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &builder)) {
    throw Malformed(builder.problem);
  }
  return std::move(builder.root);
}

}  // namespace talent::json
