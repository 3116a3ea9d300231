// How Python and a shell write text down: messages are to be the same in both languages.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace talent {

// A text between quotes, what cannot be printed escaped: Python's repr.
std::string in_quotes(std::string_view utf8);

// The same with its middle left out where it is longer than some 30 characters: Python's reprlib.repr.
std::string in_quotes_short(std::string_view utf8);

// A command whose words a shell takes as they are: Python's shlex.join.
std::string shell_command(const std::vector<std::string>& words);

// "a, b, c", say.
std::string joined(const std::vector<std::string>& texts, std::string_view between);

}  // namespace talent
