// tokenizer.json, as talent/tokenizer.py writes it.
#pragma once

#include <cstdint>
#include <filesystem>

#include "byte_pairs.h"

namespace talent {

struct TokenizerFile {
  BytePairs byte_pairs;
  int64_t start_id;
  int64_t end_id;
  int64_t vocab_size;
};

// Throws Error for a file that is missing or malformed, or asks for anything else than what words.h and BytePairs do.
TokenizerFile read_tokenizer_file(const std::filesystem::path& path);

}  // namespace talent
