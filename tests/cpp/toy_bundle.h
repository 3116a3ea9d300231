// A bundle whose graphs are no graphs: for a segmenter over a backend that the test brings along.
#pragma once

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "byte_symbols.h"
#include "integrity.h"
#include "talent/bundle.h"

constexpr int kToyImageSize = 64;
constexpr int kToyContextLength = 8;

// A tokenizer.json that knows a token for each byte of a word and for each that ends one, which is 256 + the byte, and
// the merges "m u" and "mu g</w>".
inline std::string toy_tokenizer_text() {
  std::ostringstream text;
  text << R"json({"version": "1.0", "added_tokens": [], "decoder": null,
"truncation": {"direction": "Right", "max_length": 17, "strategy": "LongestFirst", "stride": 0}, "padding": null,
"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"},
  {"type": "Replace", "pattern": {"Regex": "[\u02bc\u2018-\u201b]"}, "content": "'"},
  {"type": "Replace", "pattern": {"Regex": "[\u201c-\u201f]"}, "content": "\""},
  {"type": "Replace", "pattern": {"Regex": "[\\x00-\\x08\\x0b\\x0e-\\x1f\\x7f\\u206a-\\u206f\\ufeff\\ufff9-\\ufffc]"},
   "content": ""},
  {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "}, {"type": "Lowercase"}]},
"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
  {"type": "Split", "pattern": {"Regex": "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+"},
   "behavior": "Removed", "invert": true},
  {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]},
"post_processor": {"type": "TemplateProcessing",
  "single": [{"SpecialToken": {"id": "<start_of_text>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
             {"SpecialToken": {"id": "<end_of_text>", "type_id": 0}}],
  "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
  "special_tokens": {
    "<end_of_text>": {"id": "<end_of_text>", "ids": [515], "tokens": ["<end_of_text>"]},
    "<start_of_text>": {"id": "<start_of_text>", "ids": [514], "tokens": ["<start_of_text>"]}}},
"model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
  "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
  "merges": [["m", "u"], "mu g</w>"], "vocab": {)json";
  const std::vector<std::string> symbols = byte_symbols();
  for (size_t byte = 0; byte < symbols.size(); ++byte) {
    const std::string escape = symbols[byte] == "\"" || symbols[byte] == "\\" ? "\\" : "";
    text << '"' << escape << symbols[byte] << "\": " << byte << ", ";
    text << '"' << escape << symbols[byte] << "</w>\": " << 256 + byte << ", ";
  }
  text << R"("mu": 512, "mug</w>": 513, "<start_of_text>": 514, "<end_of_text>": 515}}})";
  return text.str();
}

inline std::string toy_record(const std::filesystem::path& path) {
  return R"({"bytes": )" + std::to_string(std::filesystem::file_size(path)) + R"(, "sha256": ")" +
         talent::sha256(path) + R"("})";
}

// Writes it into `folder` and reads it: FP16, threshold 0.35.
inline talent::Bundle toy_bundle(const std::filesystem::path& folder) {
  std::ofstream(folder / "text.onnx") << "text";
  std::ofstream(folder / "vision.onnx") << "vision";
  std::ofstream(folder / "tokenizer.json", std::ios::binary) << toy_tokenizer_text();
  std::ofstream(folder / "bundle.json") << R"json({"schema": 1, "preset": "toy", "precision": "fp16",
"image_size": )json" << kToyImageSize << R"json(, "context_length": )json" << kToyContextLength
                                        << R"json(, "threshold": 0.35,
"preprocessing": {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711],
                  "interpolation": "cubic", "letterbox": true},
"source": {}, "engines": [], "parity": {}, "versions": {}, "commit": "none", "created": "2026-01-31T12:00:00+00:00",
"files": {"text.onnx": )json" << toy_record(folder / "text.onnx") << R"json(, "vision.onnx": )json"
                                        << toy_record(folder / "vision.onnx") << R"json(, "tokenizer.json": )json"
                                        << toy_record(folder / "tokenizer.json") << "}}";
  return talent::Bundle::load(folder);
}
