// What libtalent says of many bundles, for tests/deploy/test_cpp_bundle.py: a command in each line of stdin, and for
// each an answer with a zero byte behind it.
//
//   read <directory>                                         a summary
//   load <directory>, verify <directory>                     the same, the files compared
//   engine <directory> <graph> <runtime> <version> <arch>    the path of the plan, or nothing
//   graphs <directory>                                       the paths of the graphs and the tokenizer, compared
//
// Words are separated by tabs. The answer begins with "ok" or "error" and a tab.
#include <cstdio>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "talent/bundle.h"
#include "talent/errors.h"

namespace {

std::string summary(const talent::Bundle& bundle) {
  std::ostringstream text;
  text.precision(17);
  text << bundle.preset() << '\t' << bundle.precision() << '\t' << bundle.image_size() << '\t'
       << bundle.context_length() << '\t' << bundle.threshold() << '\t' << bundle.commit() << '\t' << bundle.created();
  for (const auto& [name, version] : bundle.versions()) {
    text << '\t' << name << '=' << version;
  }
  for (const auto& [name, record] : bundle.files()) {
    text << '\t' << name << ' ' << record.bytes << ' ' << record.sha256;
  }
  for (const talent::EngineRecord& engine : bundle.engines()) {
    text << '\t' << engine.graph << ' ' << engine.precision << ' ' << engine.runtime << ' ' << engine.version << ' '
         << engine.arch << ' ' << engine.path << ' ' << engine.seconds << ' ' << engine.batch << ' '
         << engine.peak_memory_bytes.value_or(-1) << ' ' << engine.plugin << ' ' << engine.file.bytes << ' '
         << engine.file.sha256;
    for (const auto& [name, digest] : engine.built_from) {
      text << ' ' << name << '=' << digest;
    }
  }
  return text.str();
}

std::string answer(const std::vector<std::string>& words) {
  const std::string& command = words.at(0);
  const std::string& directory = words.at(1);
  if (command == "read") {
    return summary(talent::Bundle::read(directory));
  }
  if (command == "load") {
    return summary(talent::Bundle::load(directory));
  }
  if (command == "verify") {
    return summary(talent::Bundle::load(directory, talent::Verify::kDigests));
  }
  const talent::Bundle bundle = talent::Bundle::load(directory);
  if (command == "graphs") {
    return bundle.text_onnx().string() + '\t' + bundle.vision_onnx().string() + '\t' +
           bundle.tokenizer_json().string() + '\t' + std::to_string(bundle.tokenizer().context_length());
  }
  return bundle.engine(words.at(2), words.at(3), words.at(4), words.at(5)).value_or("").string();
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    std::vector<std::string> words;
    std::istringstream parts(line);
    for (std::string word; std::getline(parts, word, '\t');) {
      words.push_back(word);
    }
    try {
      const std::string said = answer(words);
      std::cout << "ok\t" << said << '\0';
    } catch (const talent::Error& error) {
      std::cout << "error\t" << error.what() << '\0';
    }
  }
  return std::cout.flush() ? 0 : 1;
}
