// UTF-8 and code points.
#pragma once

#include <string>
#include <string_view>

namespace talent {

// Code points of a text. Bytes that are no UTF-8 become U+FFFD, one for each longest beginning of a character.
std::u32string from_utf8(std::string_view text);

std::string to_utf8(std::u32string_view characters);

}  // namespace talent
