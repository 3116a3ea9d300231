// A bundle: the directory that talent-export writes and every runtime reads; deploy/bundle.py says what is in it.
//
// Loading compares sizes, so that a copy that broke off is found at once. What a runtime is handed - the graphs or the
// engines that it loads, and the tokenizer - is compared with its SHA-256 at that moment: a network that was changed is
// never run.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "talent/export.h"
#include "talent/tokenizer.h"

namespace talent {

// Size in bytes and SHA-256 (hexadecimal) of a file.
struct TALENT_API FileRecord {
  int64_t bytes = 0;
  std::string sha256;
};

// One TensorRT engine of a bundle.
struct TALENT_API EngineRecord {
  std::string graph;    // "text" or "vision"
  std::string precision;
  std::string runtime;  // "tensorrt" or "tensorrt_rtx"
  std::string version;  // of that runtime, as its Python package has it: "10.3.0"
  std::string arch;     // "sm87", several as "sm86+sm89", or "portable"
  std::string path;     // relative to the bundle
  double seconds = 0;   // what the build took
  int64_t batch = 1;    // the largest it takes
  std::optional<int64_t> peak_memory_bytes;  // of the process that built it; none where that is not known
  bool plugin = false;                       // whether it needs the plugin for RCA
  FileRecord file;
  std::map<std::string, std::string> built_from;  // SHA-256 by name of its graph's ONNX files

  // Whether this engine may be loaded: engines belong to one TensorRT version and one GPU architecture ("sm87").
  // Throws Error for a GPU that is not named so.
  bool fits(std::string_view on_runtime, std::string_view of_version, std::string_view gpu) const;
};

// How much of the files Bundle::load compares with bundle.json.
enum class Verify { kSizes, kDigests };

// What bundle.json says, and the directory that it says it of.
class TALENT_API Bundle {
 public:
  using Files = std::vector<std::pair<std::string, FileRecord>>;  // by name, in the order of bundle.json

  // What bundle.json says; no other file is looked at. Throws Error for a missing directory or manifest, for JSON that
  // is malformed or of a newer schema, and for fields that are missing, unknown or wrong.
  static Bundle read(const std::filesystem::path& directory);

  // Read a bundle and compare the size of every file, or (kDigests) also every SHA-256, which reads them all. Engines
  // may be left out of a copy; those that are there must be whole. Throws Error as `read` does, and for a file that is
  // missing or differs.
  static Bundle load(const std::filesystem::path& directory, Verify verify = Verify::kSizes);

  const std::filesystem::path& directory() const noexcept { return directory_; }
  const std::string& preset() const noexcept { return preset_; }
  const std::string& precision() const noexcept { return precision_; }
  int64_t image_size() const noexcept { return image_size_; }          // side of the square input in pixels
  int64_t context_length() const noexcept { return context_length_; }  // tokens of a sentence
  double threshold() const noexcept { return threshold_; }  // probability above which a pixel belongs to the object
  const std::string& commit() const noexcept { return commit_; }
  const std::string& created() const noexcept { return created_; }
  const std::map<std::string, std::string>& versions() const noexcept { return versions_; }
  const Files& files() const noexcept { return files_; }  // without the engines
  const std::vector<EngineRecord>& engines() const noexcept { return engines_; }

  // The ONNX graphs and the tokenizer, compared with their SHA-256 just now. Throw Error where one differs.
  std::filesystem::path text_onnx() const;
  std::filesystem::path vision_onnx() const;
  std::filesystem::path tokenizer_json() const;
  Tokenizer tokenizer() const;

  // The plan of `engine_record`, or none; throws as it does.
  std::optional<std::filesystem::path> engine(std::string_view graph, std::string_view runtime,
                                              std::string_view version, std::string_view arch) const;

  // The engine of a graph that fits this TensorRT and GPU ("sm87"), or nullptr; one for this GPU before a portable one.
  // It lives as long as the bundle. Throws Error for an engine that was built from other ONNX files, or that differs
  // from its SHA-256.
  const EngineRecord* engine_record(std::string_view graph, std::string_view runtime, std::string_view version,
                                    std::string_view arch) const;

  // Names of the ONNX files that are not those which the engine was built from; none for one that is current.
  std::vector<std::string> changed_since(const EngineRecord& engine) const;

 private:
  Bundle() = default;

  Files present() const;
  std::filesystem::path checked(const std::string& name, Verify verify) const;
  std::filesystem::path graph_file(std::string_view graph) const;
  std::map<std::string, std::string> graph_files(std::string_view graph) const;
  std::string remedy(const std::string& name) const;

  std::filesystem::path directory_;
  std::string preset_, precision_, commit_, created_;
  int64_t image_size_ = 0, context_length_ = 0;
  double threshold_ = 0;
  std::map<std::string, std::string> versions_;
  Files files_;
  std::vector<EngineRecord> engines_;
};

}  // namespace talent
