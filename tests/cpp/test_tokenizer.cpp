// A tokenizer from its file to ids, and what it refuses. tests/deploy/test_cpp_tokenizer.py holds it against Python's.
#include "talent/tokenizer.h"

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "temporary_folder.h"
#include "talent/errors.h"
#include "toy_bundle.h"

using talent::Tokenizer;

namespace {

constexpr int kStart = 514;  // behind two symbols for each byte and two merges
constexpr int kEnd = 515;

std::filesystem::path folder;

// The toy bundle's tokenizer.json; `from` in it, which must be there once or more, becomes `to`.
std::filesystem::path write_file(const std::string& from = "", const std::string& to = "") {
  std::string content = toy_tokenizer_text();
  size_t changes = 0;
  for (size_t place = 0; !from.empty() && (place = content.find(from, place)) != content.npos; ++changes) {
    content.replace(place, from.size(), to);
    place += to.size();
  }
  check::that(from.empty() || changes > 0, "%s in the file", from.c_str());
  std::ofstream(folder / "tokenizer.json", std::ios::binary) << content;
  return folder / "tokenizer.json";
}

template <typename Call>
void check_refused(const std::string& expected, Call call) {
  try {
    call();
    check::that(false, "an error: %s", expected.c_str());
  } catch (const talent::Error& error) {
    check::that(std::string(error.what()).find(expected) != std::string::npos, "\"%s\", received \"%s\"",
                expected.c_str(), error.what());
  }
}

void check_ids() {
  const Tokenizer tokenizer = Tokenizer::load(write_file(), 6);
  check::that(tokenizer.context_length() == 6 && tokenizer.vocab_size() == 516 && tokenizer.start_id() == kStart &&
                  tokenizer.end_id() == kEnd,
              "the properties of the file");
  const std::vector<int64_t> mug = {kStart, 513, kEnd, 0, 0, 0};
  check::that(tokenizer.encode("mug") == mug && tokenizer.encode("  MUG\n") == mug, "mug to be one token");
  check::that(tokenizer.encode("mum a!").at(4) == 256 + '!', "words to be apart");
  check::that(tokenizer.encode("mum aa!") == std::vector<int64_t>{kStart, 512, 256 + 'm', 'a', 256 + 'a', kEnd},
              "a long sentence to be cut, and to end");
  check::that(tokenizer.encode("abcdefgh") == std::vector<int64_t>{kStart, 'a', 'b', 'c', 'd', kEnd},
              "a long word to be cut, and to end");
  check::that(tokenizer.encode("a\xff") == tokenizer.encode("a\ufffd"), "U+FFFD for what is no UTF-8");
  check::that(Tokenizer::load(write_file(), 3).encode("a b") == std::vector<int64_t>{kStart, 256 + 'a', kEnd},
              "a context of three tokens");
}

void check_refused_texts() {
  const Tokenizer tokenizer = Tokenizer::load(write_file(), 6);
  for (const auto& [text, shown] : {std::pair("", "''"), std::pair(" \n", "' \\n'"), std::pair("&nbsp;", "'&nbsp;'"),
                                    std::pair("\x07", "'\\x07'"), std::pair("\ufeff", "'\\ufeff'")}) {
    const std::string expected = std::string("that names an object, received ") + shown + ", which holds no words";
    check_refused(expected, [&, text = text] { tokenizer.encode(text); });
  }
  const std::string large((size_t{1} << 28) + 1, 'a');
  check_refused("at most 268435456 bytes, received 268435457", [&] { tokenizer.encode(large); });
}

void check_file(const std::string& from, const std::string& to, const std::string& expected) {
  const std::filesystem::path path = write_file(from, to);
  check_refused("not a tokenizer.json: " + path.string() + " (", [&] { Tokenizer::load(path, 17); });
  check_refused(expected, [&] { Tokenizer::load(path, 17); });
}

void check_refused_files() {
  check_refused("no such tokenizer: " + (folder / "none").string(), [] { Tokenizer::load(folder / "none", 17); });
  check_refused("no such tokenizer: " + folder.string(), [] { Tokenizer::load(folder, 17); });
  check_refused("context length of at least 3 (start, word, end), received 2",
                [] { Tokenizer::load(write_file(), 2); });
  check_refused("at most 1048576, received 1048577", [] { Tokenizer::load(write_file(), 1048577); });
  check_refused("not a TALENT tokenizer: expected '<end_of_text>' as its last token",
                [] { Tokenizer::load(write_file("<end_of_text>", "<eos>"), 17); });
  check_file("}}}", "}}", "not JSON");
  check_file("\"1.0\"", "\"2.0\"", "expected version to be '1.0', received '2.0'); export the bundle again");
  check_file("\"added_tokens\": []", "\"added_tokens\": [{}]", "expected added_tokens to be [], received [{}]");
  check_file("{\"type\": \"NFC\"}", "{\"type\": \"NFKC\"}", "expected normalizer.normalizers[0].type to be 'NFC'");
  check_file(", {\"type\": \"Lowercase\"}", "", "expected normalizer.normalizers to be [");
  check_file("\\\\s+", "\\\\s", "expected normalizer.normalizers[4].pattern.Regex to be '\\\\s+', received '\\\\s'");
  check_file("|'ve", "", "expected pre_tokenizer.pretokenizers[0].pattern.Regex to be");
  check_file("\"invert\": true", "\"invert\": false", "pretokenizers[0].invert to be True, received False");
  check_file("\"stride\": 0", "\"stride\": 1", "expected truncation.stride to be 0, received 1");
  check_file("\"max_length\": 17", "\"max_length\": 1.5", "truncation.max_length to be an integer, received 1.5");
  check_file("\"padding\": null", "\"padding\": {}", "expected padding to be {");
  check_file("\"decoder\": null", "\"decoder\": null, \"novelty\": 1", "unknown field 'novelty'");
  check_file("\"byte_fallback\": false, ", "", "missing field 'model.byte_fallback'");
  check_file("\"dropout\": null", "\"dropout\": 0.1", "expected model.dropout to be None, received 0.1");
  check_file("\"merges\":", "\"others\":", "missing field 'model.merges'");
  check_file("\"mu g</w>\"", "\"mug</w>\"", "expected model.merges[1] to be two symbols, received 'mug</w>'");
  check_file("\"mu g</w>\"", "\"mu g </w>\"", "expected model.merges[1] to be two symbols");
  check_file("\"mu g</w>\"", "\"mu h</w>\"", "expected the symbol 'muh</w>' in model.vocab, received none");
  check_file("\"mu\": 512", "\"mu\": 511", "once, received 511 for 'mu'");
  check_file("\"mu\": 512", "\"mu\": 516", "each of the numbers from 0 to below 516 once, received 516 for 'mu'");
  check_file("\"ids\": [514]", "\"ids\": [513]", "special_tokens.<start_of_text>.ids to be [514], received [513]");
}

// Copies share what was read, and threads may, too.
void check_threads() {
  const Tokenizer tokenizer = Tokenizer::load(write_file(), 6);
  const std::vector<int64_t> expected = tokenizer.encode("Ünïcode &amp; mugs");
  std::vector<std::thread> threads;
  bool same[4] = {};
  for (bool& answer : same) {
    threads.emplace_back([&answer, &expected, tokenizer] {
      answer = true;
      for (int count = 0; count < 200; ++count) {
        answer = answer && tokenizer.encode("Ünïcode &amp; mugs") == expected;
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  check::that(same[0] && same[1] && same[2] && same[3], "the same ids in every thread");
}

}  // namespace

int main() {
  const TemporaryFolder temporary;
  folder = temporary.path;
  check_ids();
  check_refused_texts();
  check_refused_files();
  check_threads();
  return check::result();
}
