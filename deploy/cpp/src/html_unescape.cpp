#include "html_unescape.h"

#include <algorithm>
#include <cstdint>
#include <iterator>

namespace talent {
namespace {

struct NamedEntity {
  std::string_view name;
  char32_t first;
  char32_t second;  // 0 for none
};

struct NumericEntity {
  uint32_t number;
  char32_t character;
};

#include "html_entities.inc"

constexpr size_t kLongestName = 32;  // without its semicolon
constexpr size_t kShortestName = 2;  // that is looked for at the beginning of a longer one
constexpr uint32_t kLastCodePoint = 0x10ffff;

bool is_decimal(char32_t character) { return character >= U'0' && character <= U'9'; }

int digit_value(char32_t character) {
  if (is_decimal(character)) {
    return static_cast<int>(character - U'0');
  }
  const char32_t lower = character | 0x20;
  return lower >= U'a' && lower <= U'f' ? static_cast<int>(lower - U'a') + 10 : 16;
}

bool may_be_in_name(char32_t character) {
  return std::u32string_view(U"\t\n\f <&#;").find(character) == std::u32string_view::npos;
}

const NamedEntity* find_name(std::string_view name) {
  const auto* found = std::lower_bound(std::begin(kNamedEntities), std::end(kNamedEntities), name,
                                       [](const NamedEntity& entity, std::string_view wanted) {
                                         return entity.name < wanted;
                                       });
  return found != std::end(kNamedEntities) && found->name == name ? found : nullptr;
}

void append_number(uint32_t number, std::u32string& text) {
  const auto* found = std::lower_bound(std::begin(kNumericEntities), std::end(kNumericEntities), number,
                                       [](const NumericEntity& entity, uint32_t wanted) {
                                         return entity.number < wanted;
                                       });
  if (found != std::end(kNumericEntities) && found->number == number) {
    if (found->character != 0) {
      text += found->character;
    }
  } else if ((number >= 0xd800 && number < 0xe000) || number > kLastCodePoint) {
    text += U'\ufffd';
  } else {
    text += static_cast<char32_t>(number);
  }
}

// Takes "#38;" or "#x26;" off the front of what follows an ampersand. False where there is none.
bool take_number(std::u32string_view& rest, std::u32string& text) {
  const bool hexadecimal = rest.size() > 1 && (rest[1] == U'x' || rest[1] == U'X');
  const int base = hexadecimal ? 16 : 10;
  const size_t begin = hexadecimal ? 2 : 1;
  size_t end = begin;
  uint32_t number = 0;
  for (; end < rest.size() && digit_value(rest[end]) < base; ++end) {
    number = std::min(number * static_cast<uint32_t>(base) + static_cast<uint32_t>(digit_value(rest[end])),
                      kLastCodePoint + 1);
  }
  if (end == begin) {
    return false;
  }
  append_number(number, text);
  rest.remove_prefix(end < rest.size() && rest[end] == U';' ? end + 1 : end);
  return true;
}

// Takes what may be a name off the front. False where nothing may.
bool take_name(std::u32string_view& rest, std::u32string& text) {
  size_t size = 0;
  while (size < std::min(rest.size(), kLongestName) && may_be_in_name(rest[size])) {
    ++size;
  }
  if (size == 0) {
    return false;
  }
  if (size < rest.size() && rest[size] == U';') {
    ++size;
  }
  const auto* const ascii_end = std::find_if(rest.data(), rest.data() + size, [](char32_t character) {
    return character > 0x7f;
  });
  const std::string ascii(rest.data(), ascii_end);
  const NamedEntity* found = ascii.size() == size ? find_name(ascii) : nullptr;
  size_t used = size;
  while (found == nullptr && --used >= kShortestName) {
    found = used <= ascii.size() ? find_name(std::string_view(ascii).substr(0, used)) : nullptr;
  }
  if (found == nullptr) {
    used = 0;
    text += U'&';
  } else {
    text += found->first;
    if (found->second != 0) {
      text += found->second;
    }
  }
  text += rest.substr(used, size - used);
  rest.remove_prefix(size);
  return true;
}

}  // namespace

std::u32string html_unescape(std::u32string_view rest) {
  std::u32string text;
  text.reserve(rest.size());
  for (size_t place; (place = rest.find(U'&')) != rest.npos;) {
    text += rest.substr(0, place);
    rest.remove_prefix(place + 1);
    const bool is_number = !rest.empty() && rest.front() == U'#';
    if (!(is_number ? take_number(rest, text) : take_name(rest, text))) {
      text += U'&';
    }
  }
  text += rest;
  return text;
}

}  // namespace talent
