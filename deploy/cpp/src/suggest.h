// Names that somebody may have meant.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace talent {

// "; did you mean 'x'?" when a known name is near `name`, else "; known: x, y": talent/errors.py's suggest.
std::string suggest(std::string_view name, std::vector<std::string> known);

}  // namespace talent
