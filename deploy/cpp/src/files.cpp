#include "files.h"

#include <cerrno>
#include <system_error>

namespace talent {

std::string shown(const std::filesystem::path& path) {
  const std::string root = path.root_directory().empty() ? "" : "/";
  std::string text = root;
  for (const auto& part : path.relative_path()) {
    if (!part.empty() && part != ".") {
      text += (text == root ? "" : "/") + part.string();
    }
  }
  return text.empty() ? "." : text;
}

File open_file(const std::filesystem::path& path) {
  File file(std::fopen(path.c_str(), "rb"));
  if (file == nullptr) {
    throw std::system_error(errno, std::generic_category());
  }
  return file;
}

size_t read_piece(std::FILE* file, char* bytes, size_t size) {
  const size_t received = std::fread(bytes, 1, size, file);
  if (received == 0 && std::ferror(file) != 0) {
    throw std::system_error(errno, std::generic_category());
  }
  return received;
}

std::string read_file(const std::filesystem::path& path) {
  const File file = open_file(path);
  std::string content;
  for (size_t received = kPiece; received != 0;) {
    const size_t size = content.size();
    content.resize(size + kPiece);
    received = read_piece(file.get(), content.data() + size, kPiece);
    content.resize(size + received);
  }
  return content;
}

}  // namespace talent
