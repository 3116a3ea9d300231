#include "byte_pairs.h"

#include <queue>
#include <tuple>

#include "quote.h"
#include "talent/errors.h"
#include "utf8.h"

namespace talent {
namespace {

constexpr const char* kEndOfWord = "</w>";

// A piece of a word: a symbol, and the pieces beside it.
struct Piece {
  uint32_t id;
  size_t previous;
  size_t next;
  bool is_merged;  // into the piece before it
};

constexpr size_t kNone = ~size_t{0};

// Two neighbours that may be merged. What has become of them since, `Piece` says.
struct Candidate {
  uint32_t rank;
  size_t place;  // of the left one
  uint32_t id;   // of both together
};

struct IsWorse {
  bool operator()(const Candidate& one, const Candidate& other) const {
    return std::tie(one.rank, one.place) > std::tie(other.rank, other.place);
  }
};

// The printable characters that stand for the bytes: themselves where they are printable, else those from 256 on.
std::array<std::string, 256> byte_symbols() {
  std::array<std::string, 256> symbols;
  char32_t free = 256;
  for (size_t byte = 0; byte < symbols.size(); ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    const char32_t character = printable ? static_cast<char32_t>(byte) : free++;
    symbols[byte] = to_utf8({&character, 1});
  }
  return symbols;
}

uint32_t id_of(const BytePairs::Vocabulary& vocabulary, const std::string& symbol) {
  const auto found = vocabulary.find(symbol);
  if (found == vocabulary.end()) {
    throw Error("expected the symbol " + in_quotes(symbol) + " in model.vocab, received none");
  }
  return static_cast<uint32_t>(found->second);
}

uint64_t key_of(uint32_t left, uint32_t right) { return uint64_t{left} << 32 | right; }

}  // namespace

BytePairs::BytePairs(const Vocabulary& vocabulary, const std::vector<Pair>& merges) {
  const std::array<std::string, 256> symbols = byte_symbols();
  for (size_t byte = 0; byte < symbols.size(); ++byte) {
    inside_[byte] = id_of(vocabulary, symbols[byte]);
    last_[byte] = id_of(vocabulary, symbols[byte] + kEndOfWord);
  }
  merges_.reserve(merges.size());
  uint32_t rank = 0;
  for (const auto& [left, right] : merges) {
    const uint32_t left_id = id_of(vocabulary, left), right_id = id_of(vocabulary, right);
    merges_[key_of(left_id, right_id)] = {rank++, id_of(vocabulary, left + right)};
  }
}

const BytePairs::Merge* BytePairs::find(uint32_t left, uint32_t right) const {
  const auto found = merges_.find(key_of(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

void BytePairs::encode(std::string_view word, std::vector<int64_t>& ids) const {
  std::vector<Piece> pieces(word.size());
  for (size_t place = 0; place < word.size(); ++place) {
    const bool is_last = place + 1 == word.size();
    pieces[place] = {(is_last ? last_ : inside_)[static_cast<uint8_t>(word[place])], place == 0 ? kNone : place - 1,
                     is_last ? kNone : place + 1, false};
  }

  std::priority_queue<Candidate, std::vector<Candidate>, IsWorse> candidates;
  const auto propose = [&](size_t place) {
    if (place != kNone && pieces[place].next != kNone) {
      if (const Merge* merge = find(pieces[place].id, pieces[pieces[place].next].id)) {
        candidates.push({merge->rank, place, merge->id});
      }
    }
  };
  for (size_t place = 0; place < pieces.size(); ++place) {
    propose(place);
  }

  while (!candidates.empty()) {
    const Candidate best = candidates.top();
    candidates.pop();
    Piece& left = pieces[best.place];
    if (left.is_merged || left.next == kNone) {
      continue;
    }
    Piece& right = pieces[left.next];
    const Merge* merge = find(left.id, right.id);
    if (merge == nullptr || merge->id != best.id) {  // other neighbours than those of the candidate
      continue;
    }
    left.id = merge->id;
    left.next = right.next;
    right.is_merged = true;
    if (left.next != kNone) {
      pieces[left.next].previous = best.place;
    }
    propose(left.previous);
    propose(best.place);
  }

  for (size_t place = 0; place != kNone; place = pieces[place].next) {
    ids.push_back(pieces[place].id);
  }
}

}  // namespace talent
