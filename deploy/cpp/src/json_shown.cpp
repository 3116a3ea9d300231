#include <algorithm>

#include "json.h"
#include "quote.h"

namespace talent::json {
namespace {

// The limits of Python's reprlib.
constexpr int kDeepest = 6;
constexpr size_t kMostItems = 6;
constexpr size_t kMostMembers = 4;
constexpr size_t kMostDigits = 40;
constexpr size_t kDigitsBefore = 18;
constexpr size_t kDigitsAfter = 19;

std::string shown_at(const Value& value, int levels);

std::string shown_integer(const std::string& digits) {
  if (digits.size() <= kMostDigits) {
    return digits;
  }
  return digits.substr(0, kDigitsBefore) + "..." + digits.substr(digits.size() - kDigitsAfter);
}

std::string shown_list(const Value& value, int levels) {
  if (levels <= 0 && !value.items.empty()) {
    return "[...]";
  }
  std::vector<std::string> pieces;
  for (size_t index = 0; index < std::min(value.items.size(), kMostItems); ++index) {
    pieces.push_back(shown_at(value.items[index], levels - 1));
  }
  if (value.items.size() > kMostItems) {
    pieces.emplace_back("...");
  }
  return "[" + joined(pieces, ", ") + "]";
}

std::string shown_object(const Value& value, int levels) {
  if (levels <= 0 && !value.members.empty()) {
    return "{...}";
  }
  std::vector<const Member*> members;
  for (const Member& member : value.members) {
    members.push_back(&member);
  }
  std::sort(members.begin(), members.end(), [](const Member* one, const Member* other) {
    return one->name < other->name;  // bytes of UTF-8 are in the order of their code points
  });
  std::vector<std::string> pieces;
  for (size_t index = 0; index < std::min(members.size(), kMostMembers); ++index) {
    pieces.push_back(in_quotes_short(members[index]->name) + ": " + shown_at(members[index]->value, levels - 1));
  }
  if (members.size() > kMostMembers) {
    pieces.emplace_back("...");
  }
  return "{" + joined(pieces, ", ") + "}";
}

std::string shown_at(const Value& value, int levels) {
  switch (value.kind) {
    case Value::Kind::kNull:
      return "None";
    case Value::Kind::kBoolean:
      return value.boolean ? "True" : "False";
    case Value::Kind::kInteger:
      return shown_integer(value.text);
    case Value::Kind::kFraction:
      return value.text;
    case Value::Kind::kText:
      return in_quotes_short(value.text);
    case Value::Kind::kList:
      return shown_list(value, levels);
    case Value::Kind::kObject:
      return shown_object(value, levels);
  }
  return {};
}

}  // namespace

std::string shown(const Value& value) { return shown_at(value, kDeepest); }

}  // namespace talent::json
