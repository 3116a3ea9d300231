#include "utf8.h"

#include <unicode/utf8.h>

#include <cstdint>

namespace talent {

std::u32string from_utf8(std::string_view text) {
  std::u32string characters;
  characters.reserve(text.size());
  const auto* bytes = reinterpret_cast<const uint8_t*>(text.data());
  const auto size = static_cast<int64_t>(text.size());
  for (int64_t index = 0; index < size;) {
    UChar32 character;
    U8_NEXT_OR_FFFD(bytes, index, size, character);
    characters.push_back(static_cast<char32_t>(character));
  }
  return characters;
}

std::string to_utf8(std::u32string_view characters) {
  std::string text;
  text.reserve(characters.size());
  for (const char32_t character : characters) {
    char bytes[U8_MAX_LENGTH];
    int32_t size = 0;
    U8_APPEND_UNSAFE(bytes, size, character);
    text.append(bytes, static_cast<size_t>(size));
  }
  return text;
}

}  // namespace talent
