// CLIP's byte-pair encoding: sentences in, token ids out; the same ids as talent/tokenizer.py gives, but for characters
// that only one of both knows, because its Unicode is newer.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string_view>
#include <vector>

#include "talent/export.h"

namespace talent {

// Read once, then constant: one tokenizer serves any number of threads, and a copy costs a pointer.
class TALENT_API Tokenizer {
 public:
  // Read the tokenizer.json of a bundle. Throws Error where it is missing, malformed, or asks for anything else than
  // what is done here: what is not understood is never ignored. context_length: tokens of a sentence, at least 3.
  static Tokenizer load(const std::filesystem::path& path, int64_t context_length);

  // int64 [context_length]: start, ids, end, zeros; a longer sentence is cut and ends with the end token.
  //
  // Bytes that are no UTF-8 are taken for U+FFFD, one for each longest beginning of a character, as Python's
  // bytes.decode("utf-8", "replace") has it. A literal "<end_of_text>" is text here, not the end token.
  // Throws Error for a sentence without words, or of more than 256 MiB.
  std::vector<int64_t> encode(std::string_view utf8) const;

  int64_t context_length() const noexcept;
  int64_t start_id() const noexcept;
  int64_t end_id() const noexcept;
  int64_t vocab_size() const noexcept;

 private:
  struct Contents;
  explicit Tokenizer(std::shared_ptr<const Contents> contents);
  std::shared_ptr<const Contents> contents_;
};

}  // namespace talent
