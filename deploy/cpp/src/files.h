// Paths and the contents of files.
#pragma once

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

namespace talent {

struct Close {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

using File = std::unique_ptr<std::FILE, Close>;

constexpr size_t kPiece = 1 << 20;  // bytes that are read at once

// A path as Python's pathlib shows it: no doubled slashes, no ".", no slash at the end.
std::string shown(const std::filesystem::path& path);

// A file, open for reading. Throws std::system_error, whose code is the system's, where that fails.
File open_file(const std::filesystem::path& path);

// The next bytes of a file, at most `size`; 0 at its end. Throws std::system_error.
size_t read_piece(std::FILE* file, char* bytes, size_t size);

// The whole content of a file. Throws std::system_error.
std::string read_file(const std::filesystem::path& path);

}  // namespace talent
