// Entities of HTML: &amp; is an ampersand.
#pragma once

#include <string>
#include <string_view>

namespace talent {

// The text with its entities in plain characters, as Python's html.unescape: also those that HTML's standard calls
// errors and browsers take all the same ("&ampx" is "&x", "&#128;" is the euro sign).
std::u32string html_unescape(std::u32string_view text);

}  // namespace talent
