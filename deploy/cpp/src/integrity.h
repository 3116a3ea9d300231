// Whether a file is still the one that was recorded: deploy/integrity.py.
//
// A digest that travels with its file is no signature: it finds accidents and other versions, not somebody who changes
// both.
#pragma once

#include <filesystem>
#include <string>

#include "talent/bundle.h"

namespace talent {

// SHA-256 of a file in hexadecimal; it is read in pieces. Throws std::system_error where it cannot be read.
std::string sha256(const std::filesystem::path& path);

// What is wrong with a file, to follow its name in a sentence; empty for nothing. The SHA-256 is compared (kDigests)
// unless the size is wrong already.
std::string problem(const std::filesystem::path& path, const FileRecord& expected, Verify verify);

}  // namespace talent
