// Byte-pair encoding against one that looks for the best pair again and again.
#include "byte_pairs.h"

#include <algorithm>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "byte_symbols.h"
#include "check.h"
#include "talent/errors.h"

using talent::BytePairs;

namespace {

struct Model {
  BytePairs::Vocabulary vocabulary;
  std::vector<BytePairs::Pair> merges;
};

// Merges of pieces of "abc", as a training would find them, in a random order that it would not.
Model random_model(std::mt19937& random) {
  Model model;
  const auto add = [&](const std::string& name) {
    model.vocabulary.emplace(name, static_cast<int64_t>(model.vocabulary.size()));
  };
  for (const std::string& symbol : byte_symbols()) {
    add(symbol);
    add(symbol + "</w>");
  }
  std::vector<std::string> insides = {"a", "b", "c"}, lasts = {"a</w>", "b</w>", "c</w>"};
  std::set<BytePairs::Pair> known;
  for (int count = 0; count < 40; ++count) {
    const bool at_end = random() % 3 == 0;
    const std::string left = insides[random() % insides.size()];
    const std::string right = at_end ? lasts[random() % lasts.size()] : insides[random() % insides.size()];
    if (known.insert({left, right}).second) {
      model.merges.emplace_back(left, right);
      add(left + right);
      (at_end ? lasts : insides).push_back(left + right);
    }
  }
  std::shuffle(model.merges.begin(), model.merges.end(), random);
  return model;
}

std::vector<int64_t> encode_slowly(const Model& model, const std::string& word) {
  std::vector<std::string> pieces;
  for (const char character : word) {
    pieces.emplace_back(1, character);
  }
  pieces.back() += "</w>";
  while (true) {
    size_t best = model.merges.size(), best_place = 0;
    for (size_t place = 0; place + 1 < pieces.size(); ++place) {
      for (size_t rank = 0; rank < best; ++rank) {
        if (model.merges[rank] == BytePairs::Pair(pieces[place], pieces[place + 1])) {
          best = rank;
          best_place = place;
        }
      }
    }
    if (best == model.merges.size()) {
      break;
    }
    pieces[best_place] += pieces[best_place + 1];
    pieces.erase(pieces.begin() + static_cast<std::ptrdiff_t>(best_place) + 1);
  }
  std::vector<int64_t> ids;
  for (const std::string& piece : pieces) {
    ids.push_back(model.vocabulary.at(piece));
  }
  return ids;
}

void check_random_words() {
  std::mt19937 random(7);
  size_t merged = 0;
  for (int round = 0; round < 30; ++round) {
    const Model model = random_model(random);
    const BytePairs byte_pairs(model.vocabulary, model.merges);
    for (int count = 0; count < 40; ++count) {
      std::string word;
      for (size_t size = 1 + random() % 30; word.size() < size;) {
        word += static_cast<char>('a' + random() % 3);
      }
      std::vector<int64_t> ids;
      byte_pairs.encode(word, ids);
      check::that(ids == encode_slowly(model, word), "the same ids of %s", word.c_str());
      merged += word.size() - ids.size();
    }
  }
  check::that(merged > 5000, "many merges, received %zu", merged);
}

void check_every_byte() {
  std::mt19937 random(7);
  const Model model = random_model(random);
  const BytePairs byte_pairs(model.vocabulary, {});
  const std::vector<std::string> symbols = byte_symbols();
  for (int byte = 0; byte < 256; ++byte) {
    std::vector<int64_t> ids = {-1};
    byte_pairs.encode(std::string(2, static_cast<char>(byte)), ids);
    const std::string& symbol = symbols[static_cast<size_t>(byte)];
    check::that(ids == std::vector<int64_t>{-1, model.vocabulary.at(symbol), model.vocabulary.at(symbol + "</w>")},
                "byte %d to be %s", byte, symbol.c_str());
  }
}

void check_refused(const BytePairs::Vocabulary& vocabulary, const std::vector<BytePairs::Pair>& merges,
                   const char* expected) {
  try {
    BytePairs(vocabulary, merges);
    check::that(false, "an error: %s", expected);
  } catch (const talent::Error& error) {
    check::that(std::string(error.what()) == expected, "\"%s\", received \"%s\"", expected, error.what());
  }
}

void check_errors() {
  std::mt19937 random(7);
  const Model model = random_model(random);
  check_refused(model.vocabulary, {{"x", "y"}}, "expected the symbol 'xy' in model.vocab, received none");
  check_refused(model.vocabulary, {{"xx", "y"}}, "expected the symbol 'xx' in model.vocab, received none");
  BytePairs::Vocabulary without = model.vocabulary;
  without.erase("z</w>");
  check_refused(without, {}, "expected the symbol 'z</w>' in model.vocab, received none");
}

// A word of 200,000 bytes is no harder than its length; in quadratic time this would take minutes.
void check_long_word() {
  std::mt19937 random(7);
  const Model model = random_model(random);
  const BytePairs byte_pairs(model.vocabulary, model.merges);
  std::string word;
  while (word.size() < 200'000) {
    word += static_cast<char>('a' + random() % 3);
  }
  std::vector<int64_t> ids;
  byte_pairs.encode(word, ids);
  check::that(!ids.empty() && ids.size() < word.size(), "fewer ids than bytes, received %zu", ids.size());
}

}  // namespace

int main() {
  check_random_words();
  check_every_byte();
  check_errors();
  check_long_word();
  return check::result();
}
