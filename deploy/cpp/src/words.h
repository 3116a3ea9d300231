// A sentence as the words that are encoded one by one: talent/tokenizer.py's `_clean`, then the normalizer and the
// pattern of tokenizer.json.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace talent {

// The text in lower case, composed (NFC), its HTML entities, ligatures and widths in plain characters, its quotes
// straight, without control characters. White space is left as it is: no word has any.
std::u32string clean(std::u32string_view text);

// Runs of letters, single digits, runs of other characters, and what follows an apostrophe in "it's"; views of `text`.
std::vector<std::u32string_view> split_words(std::u32string_view text);

}  // namespace talent
