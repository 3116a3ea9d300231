// Token ids of many texts, for tests/deploy/test_cpp_tokenizer.py.
//
//   encode_texts <tokenizer.json> <context length> <texts> <ids> <errors>
//
// texts: for each its size in bytes as uint32, and its bytes. ids: int64 [texts, context length], a row of -1 where one
// was refused. errors: a line for each text, empty where it was taken; the same line on stderr, and exit code 2, where
// the tokenizer itself was refused.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>

#include "talent/errors.h"
#include "talent/tokenizer.h"

int main(int count, char** arguments) {
  if (count != 6) {
    std::fprintf(stderr, "usage: encode_texts <tokenizer.json> <context length> <texts> <ids> <errors>\n");
    return 1;
  }
  try {
    const talent::Tokenizer tokenizer = talent::Tokenizer::load(arguments[1], std::stoll(arguments[2]));
    std::ifstream input(arguments[3], std::ios::binary);
    const std::string texts{std::istreambuf_iterator<char>(input), {}};
    std::ofstream ids(arguments[4], std::ios::binary), errors(arguments[5], std::ios::binary);
    for (size_t place = 0; place < texts.size();) {
      uint32_t size;
      std::memcpy(&size, texts.data() + place, sizeof size);
      place += sizeof size;
      std::vector<int64_t> row(static_cast<size_t>(tokenizer.context_length()), -1);
      try {
        row = tokenizer.encode(std::string_view(texts).substr(place, size));
      } catch (const talent::Error& error) {
        errors << error.what();
      }
      place += size;
      errors << '\n';
      ids.write(reinterpret_cast<const char*>(row.data()), static_cast<std::streamsize>(row.size() * sizeof row[0]));
    }
    return ids.flush() && errors.flush() ? 0 : 1;
  } catch (const talent::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
