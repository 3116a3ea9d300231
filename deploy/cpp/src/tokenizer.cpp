#include "talent/tokenizer.h"

#include <string>
#include <utility>

#include "quote.h"
#include "talent/errors.h"
#include "tokenizer_file.h"
#include "utf8.h"
#include "words.h"

namespace talent {
namespace {

constexpr int64_t kShortest = 3;        // start, a token, end
constexpr int64_t kLongest = 1 << 20;   // what a network takes is far below
constexpr size_t kMostBytes = 1 << 28;  // of a sentence, whose lengths ICU keeps in 32 bits

}  // namespace

struct Tokenizer::Contents {
  TokenizerFile file;
  int64_t context_length;
};

Tokenizer::Tokenizer(std::shared_ptr<const Contents> contents) : contents_(std::move(contents)) {}

Tokenizer Tokenizer::load(const std::filesystem::path& path, int64_t context_length) {
  TokenizerFile file = read_tokenizer_file(path);
  if (context_length < kShortest) {
    throw Error("expected a context length of at least 3 (start, word, end), received " +
                std::to_string(context_length));
  }
  if (context_length > kLongest) {
    throw Error("expected a context length of at most " + std::to_string(kLongest) + ", received " +
                std::to_string(context_length) + "; export the bundle again");
  }
  return Tokenizer(std::make_shared<const Contents>(Contents{std::move(file), context_length}));
}

std::vector<int64_t> Tokenizer::encode(std::string_view utf8) const {
  if (utf8.size() > kMostBytes) {
    throw Error("expected a sentence of at most " + std::to_string(kMostBytes) + " bytes, received " +
                std::to_string(utf8.size()));
  }
  const auto length = static_cast<size_t>(contents_->context_length);
  const std::u32string text = clean(from_utf8(utf8));
  std::vector<int64_t> ids = {contents_->file.start_id};
  for (const std::u32string_view word : split_words(text)) {
    contents_->file.byte_pairs.encode(to_utf8(word), ids);
    if (ids.size() + 1 >= length) {  // the others would be cut off
      ids.resize(length - 1);
      break;
    }
  }
  if (ids.size() == 1) {
    throw Error("expected a sentence that names an object, received " + in_quotes(utf8) + ", which holds no words");
  }
  ids.push_back(contents_->file.end_id);
  ids.resize(length, 0);
  return ids;
}

int64_t Tokenizer::context_length() const noexcept { return contents_->context_length; }
int64_t Tokenizer::start_id() const noexcept { return contents_->file.start_id; }
int64_t Tokenizer::end_id() const noexcept { return contents_->file.end_id; }
int64_t Tokenizer::vocab_size() const noexcept { return contents_->file.vocab_size; }

}  // namespace talent
