#include "talent/bundle.h"

#include <algorithm>
#include <system_error>

#include "files.h"
#include "integrity.h"
#include "manifest.h"
#include "quote.h"
#include "talent/errors.h"
#include "targets.h"

namespace talent {
namespace {

using json::Member;
using json::Value;

// Reads the fields of one object of a manifest that was checked.
class Record {
 public:
  Record(const Value& value, std::string where, std::string prefix)
      : value_(value), where_(std::move(where)), prefix_(std::move(prefix)) {}

  const Value& operator[](const char* name) const { return *value_.find(name); }
  const Value* find(const char* name) const { return value_.find(name); }
  const std::string& text(const char* name) const { return (*this)[name].text; }

  // Throws Error for an integer of more than 63 bits, which Python reads and nothing here could be.
  int64_t integer(const char* name) const {
    const std::optional<int64_t> integer = (*this)[name].integer();
    if (!integer.has_value()) {
      throw Error(where_ + ": expected " + prefix_ + name + " to be an integer below 2^63, received " +
                  json::shown((*this)[name]) + "; " + kAgain);
    }
    return *integer;
  }

  FileRecord file() const { return {integer("bytes"), text("sha256")}; }

 private:
  const Value& value_;
  std::string where_, prefix_;
};

std::map<std::string, std::string> texts_by_name(const Value& object) {
  std::map<std::string, std::string> texts;
  for (const Member& member : object.members) {
    texts.emplace(member.name, member.value.text);
  }
  return texts;
}

EngineRecord read_engine(const Record& record) {
  EngineRecord engine;
  engine.graph = record.text("graph");
  engine.precision = record.text("precision");
  engine.runtime = record.text("runtime");
  engine.version = record.text("version");
  engine.arch = record.text("arch");
  engine.path = record.text("path");
  engine.seconds = record["seconds"].number();
  engine.batch = record.integer("batch");
  if (!record["peak_memory_bytes"].is_null()) {
    engine.peak_memory_bytes = record.integer("peak_memory_bytes");
  }
  const Value* plugin = record.find("plugin");
  engine.plugin = plugin != nullptr && plugin->boolean;
  engine.file = record.file();
  engine.built_from = texts_by_name(record["built_from"]);
  return engine;
}

// Sets what stands under a name, at the place of an older one of that name.
void set(Bundle::Files& files, const std::string& name, const FileRecord& record) {
  const auto found = std::find_if(files.begin(), files.end(), [&](const auto& file) { return file.first == name; });
  if (found == files.end()) {
    files.emplace_back(name, record);
  } else {
    found->second = record;
  }
}

}  // namespace

bool EngineRecord::fits(std::string_view on_runtime, std::string_view of_version, std::string_view gpu) const {
  const bool covered = covers(arch, gpu);  // which also checks the name of the GPU
  return runtime == on_runtime && version == of_version && covered;
}

Bundle Bundle::read(const std::filesystem::path& directory) {
  std::error_code ignored;  // what cannot be asked for is no directory
  if (!std::filesystem::is_directory(directory, ignored)) {
    throw Error("no such bundle: " + shown(directory) + "; expected a directory that talent-export wrote");
  }
  const std::filesystem::path path = directory / kManifest;
  const std::string where = shown(path);
  const Value content = read_manifest(path);
  const Record record(content, where, "");
  Bundle bundle;
  bundle.directory_ = directory;
  bundle.preset_ = record.text("preset");
  bundle.precision_ = record.text("precision");
  bundle.image_size_ = record.integer("image_size");
  bundle.context_length_ = record.integer("context_length");
  bundle.threshold_ = record["threshold"].number();
  bundle.versions_ = texts_by_name(record["versions"]);
  bundle.commit_ = record.text("commit");
  bundle.created_ = record.text("created");
  for (const Member& file : record["files"].members) {
    bundle.files_.emplace_back(file.name, Record(file.value, where, "files[" + in_quotes(file.name) + "].").file());
  }
  for (const Value& engine : record["engines"].items) {
    const std::string prefix = "engines[" + std::to_string(bundle.engines_.size()) + "].";
    bundle.engines_.push_back(read_engine(Record(engine, where, prefix)));
  }
  return bundle;
}

Bundle Bundle::load(const std::filesystem::path& directory, Verify verify) {
  Bundle bundle = read(directory);
  for (const auto& [name, record] : bundle.present()) {
    bundle.checked(name, verify);
  }
  return bundle;
}

std::filesystem::path Bundle::text_onnx() const { return graph_file("text"); }

std::filesystem::path Bundle::vision_onnx() const { return graph_file("vision"); }

std::filesystem::path Bundle::tokenizer_json() const { return checked(kTokenizer, Verify::kDigests); }

Tokenizer Bundle::tokenizer() const { return Tokenizer::load(tokenizer_json(), context_length_); }

std::optional<std::filesystem::path> Bundle::engine(std::string_view graph, std::string_view runtime,
                                                    std::string_view version, std::string_view arch) const {
  const EngineRecord* record = engine_record(graph, runtime, version, arch);
  return record == nullptr ? std::nullopt : std::optional(directory_ / record->path);
}

const EngineRecord* Bundle::engine_record(std::string_view graph, std::string_view runtime, std::string_view version,
                                          std::string_view arch) const {
  const EngineRecord* best = nullptr;
  for (const EngineRecord& engine : engines_) {
    std::error_code ignored;  // what cannot be asked for is not there
    if (engine.graph == graph && engine.fits(runtime, version, arch) &&
        std::filesystem::is_regular_file(directory_ / engine.path, ignored) &&
        (best == nullptr || (best->arch == kPortable && engine.arch != kPortable))) {
      best = &engine;
    }
  }
  if (best == nullptr) {
    return nullptr;
  }
  if (const std::vector<std::string> changed = changed_since(*best); !changed.empty()) {
    throw Error(shown(directory_ / best->path) + " was built from another " + joined(changed, " and ") +
                " than this bundle has; remove it, or build it again: " + build_command(directory_, runtime, arch));
  }
  checked(best->path, Verify::kDigests);
  return best;
}

std::vector<std::string> Bundle::changed_since(const EngineRecord& engine) const {
  const std::map<std::string, std::string> now = graph_files(engine.graph);
  std::map<std::string, std::string> both = now;
  both.insert(engine.built_from.begin(), engine.built_from.end());
  std::vector<std::string> changed;
  for (const auto& [name, digest] : both) {
    const auto of_now = now.find(name), built = engine.built_from.find(name);
    if (of_now == now.end() || built == engine.built_from.end() || of_now->second != built->second) {
      changed.push_back(name);
    }
  }
  return changed;
}

// Every recorded file, less the engines that were left out of this copy.
Bundle::Files Bundle::present() const {
  Files files = files_;
  for (const EngineRecord& engine : engines_) {
    std::error_code ignored;  // what cannot be asked for is not there
    if (std::filesystem::exists(directory_ / engine.path, ignored)) {
      set(files, engine.path, engine.file);
    }
  }
  return files;
}

// A recorded file, compared just now. Throws Error where it differs.
std::filesystem::path Bundle::checked(const std::string& name, Verify verify) const {
  const Files files = present();
  const auto found = std::find_if(files.begin(), files.end(), [&](const auto& file) { return file.first == name; });
  const std::string wrong = found == files.end() ? "is missing" : problem(directory_ / name, found->second, verify);
  if (!wrong.empty()) {
    throw Error("cannot load the bundle " + shown(directory_) + ": " + name + " " + wrong + "; " + remedy(name));
  }
  return directory_ / name;
}

// The ONNX file of a graph, its digest and that of its external data compared.
std::filesystem::path Bundle::graph_file(std::string_view graph) const {
  std::filesystem::path path;
  for (const auto& [name, digest] : graph_files(graph)) {  // the graph comes before its data
    const std::filesystem::path file = checked(name, Verify::kDigests);
    path = path.empty() ? file : path;
  }
  return path;
}

// SHA-256 of the ONNX file of a graph, and of the external data where there is some.
std::map<std::string, std::string> Bundle::graph_files(std::string_view graph) const {
  const std::string onnx = std::string(graph) + ".onnx";
  std::map<std::string, std::string> digests;
  for (const auto& [name, record] : files_) {
    if (name == onnx || name == onnx + ".data") {
      digests.emplace(name, record.sha256);
    }
  }
  return digests;
}

// What to do about a file that is damaged: an engine can go, a graph cannot.
std::string Bundle::remedy(const std::string& name) const {
  const bool is_engine = std::none_of(files_.begin(), files_.end(), [&](const auto& file) {
    return file.first == name;
  });
  return is_engine ? "copy it again, remove it, or build it again: " + build_command(directory_)
                   : std::string("copy it again or ") + kAgain;
}

}  // namespace talent
