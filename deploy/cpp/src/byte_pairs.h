// Byte-pair encoding of one word.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace talent {

class BytePairs {
 public:
  using Vocabulary = std::unordered_map<std::string, int64_t>;  // ids of 0 to below 2^31
  using Pair = std::pair<std::string, std::string>;

  // merges: best first. Throws Error where the vocabulary lacks the symbol of a byte, a part of a merge or its whole.
  BytePairs(const Vocabulary& vocabulary, const std::vector<Pair>& merges);

  // Append the ids of a word, which is not empty. Takes n log n steps for n bytes.
  void encode(std::string_view word, std::vector<int64_t>& ids) const;

 private:
  struct Merge {
    uint32_t rank;
    uint32_t id;
  };

  const Merge* find(uint32_t left, uint32_t right) const;

  std::array<uint32_t, 256> inside_, last_;  // ids of the bytes
  std::unordered_map<uint64_t, Merge> merges_;
};

}  // namespace talent
