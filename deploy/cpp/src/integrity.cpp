#include "integrity.h"

#include <openssl/evp.h>

#include <memory>
#include <stdexcept>
#include <system_error>
#include <vector>

#include "files.h"

namespace talent {
namespace {

struct FreeContext {
  void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
};

void check(bool done) {
  if (!done) {
    throw std::runtime_error("OpenSSL: expected its SHA-256 to work, received a failure");
  }
}

std::string hexadecimal(const unsigned char* bytes, unsigned size) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (unsigned index = 0; index < size; ++index) {
    text += {kDigits[bytes[index] >> 4], kDigits[bytes[index] & 15]};
  }
  return text;
}

}  // namespace

std::string sha256(const std::filesystem::path& path) {
  const File file = open_file(path);
  const std::unique_ptr<EVP_MD_CTX, FreeContext> context(EVP_MD_CTX_new());
  check(context != nullptr && EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1);
  std::vector<char> piece(kPiece);
  while (const size_t size = read_piece(file.get(), piece.data(), piece.size())) {
    check(EVP_DigestUpdate(context.get(), piece.data(), size) == 1);
  }
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned size = 0;
  check(EVP_DigestFinal_ex(context.get(), digest, &size) == 1);
  return hexadecimal(digest, size);
}

std::string problem(const std::filesystem::path& path, const FileRecord& expected, Verify verify) {
  try {
    const auto status = std::filesystem::status(path);
    if (!std::filesystem::is_regular_file(status)) {
      return "is missing";
    }
    const auto size = static_cast<int64_t>(std::filesystem::file_size(path));
    if (size != expected.bytes) {
      return std::string(size < expected.bytes ? "was cut short" : "was changed") + " (expected " +
             std::to_string(expected.bytes) + " bytes, received " + std::to_string(size) + ")";
    }
    if (verify == Verify::kDigests) {
      if (const std::string received = sha256(path); received != expected.sha256) {
        return "was changed (expected SHA-256 " + expected.sha256 + ", received " + received + ")";
      }
    }
  } catch (const std::system_error& error) {  // filesystem_error is one
    if (error.code() == std::errc::too_many_symbolic_link_levels) {
      return "is missing";
    }
    return "cannot be read (" + error.code().message() + ")";
  }
  return "";
}

}  // namespace talent
