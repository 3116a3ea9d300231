#include "quote.h"

#include <unicode/uchar.h>

#include <cstdio>

#include "utf8.h"

namespace talent {
namespace {

constexpr size_t kLongest = 30;  // that reprlib leaves whole
constexpr size_t kBefore = 13;   // characters that it leaves on each side of "..."
constexpr size_t kAfter = 14;

bool is_printable(char32_t character) {
  constexpr uint32_t kInvisible = U_GC_C_MASK | U_GC_Z_MASK;  // control, format, private, unassigned; separators
  return character == U' ' || (U_MASK(u_charType(static_cast<UChar32>(character))) & kInvisible) == 0;
}

std::u32string escaped(char32_t character) {
  char text[16];
  const char* format = character < 0x100 ? "\\x%02x" : character < 0x10000 ? "\\u%04x" : "\\U%08x";
  std::snprintf(text, sizeof text, format, static_cast<unsigned>(character));
  return from_utf8(text);
}

std::u32string characters_in_quotes(std::u32string_view characters) {
  const bool twice = characters.find(U'\'') != characters.npos && characters.find(U'"') == characters.npos;
  const char32_t quote = twice ? U'"' : U'\'';
  std::u32string text(1, quote);
  for (const char32_t character : characters) {
    if (character == quote || character == U'\\') {
      text += {U'\\', character};
    } else if (character == U'\n') {
      text += U"\\n";
    } else if (character == U'\r') {
      text += U"\\r";
    } else if (character == U'\t') {
      text += U"\\t";
    } else if (is_printable(character)) {
      text += character;
    } else {
      text += escaped(character);
    }
  }
  return text + quote;
}

bool is_safe(char character) {
  return (character >= 'a' && character <= 'z') || (character >= 'A' && character <= 'Z') ||
         (character >= '0' && character <= '9') || std::string_view("_@%+=:,./-").find(character) != std::string::npos;
}

std::string shell_word(const std::string& word) {
  bool safe = !word.empty();
  std::string text = "'";
  for (const char character : word) {
    safe = safe && is_safe(character);
    character == '\'' ? text += "'\"'\"'" : text += character;
  }
  return safe ? word : text + "'";
}

}  // namespace

std::string in_quotes(std::string_view utf8) { return to_utf8(characters_in_quotes(from_utf8(utf8))); }

std::string in_quotes_short(std::string_view utf8) {
  const std::u32string whole = from_utf8(utf8);
  const size_t size = whole.size();
  std::u32string text = characters_in_quotes(std::u32string_view(whole).substr(0, kLongest));
  if (text.size() > kLongest) {
    // Where characters are few and their escapes long, reprlib counts its tail from the wrong end: so does this.
    const size_t tail = size >= kAfter ? size - kAfter : 2 * size > kAfter ? 2 * size - kAfter : 0;
    text = characters_in_quotes(whole.substr(0, kBefore) + whole.substr(tail));
    text = text.substr(0, kBefore) + U"..." + text.substr(text.size() - kAfter);
  }
  return to_utf8(text);
}

std::string shell_command(const std::vector<std::string>& words) {
  std::vector<std::string> safe;
  for (const std::string& word : words) {
    safe.push_back(shell_word(word));
  }
  return joined(safe, " ");
}

std::string joined(const std::vector<std::string>& texts, std::string_view between) {
  std::string all;
  for (size_t index = 0; index < texts.size(); ++index) {
    all += (index == 0 ? std::string() : std::string(between)) + texts[index];
  }
  return all;
}

}  // namespace talent
