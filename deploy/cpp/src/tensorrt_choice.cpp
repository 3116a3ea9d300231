#include "tensorrt_choice.h"

#include <algorithm>
#include <set>
#include <string>
#include <system_error>
#include <vector>

#include "files.h"
#include "quote.h"
#include "talent/errors.h"
#include "targets.h"

namespace talent {
namespace {

constexpr const char* kRtx = "tensorrt_rtx";
constexpr const char* kRtxTargets[] = {"sm75", "sm80", "sm86", "sm89", "sm120", "sm121"};  // of TensorRT-RTX 1.7
constexpr int kOldestCapability = 75;  // Turing, the oldest that TensorRT 10 and 11 serve

// What keeps an engine from being used here, in brackets behind its name.
std::string why_not(const Bundle& bundle, const EngineRecord& engine, const TensorRtTarget& target) {
  std::error_code ignored;  // what cannot be asked for is not there
  if (!std::filesystem::is_regular_file(bundle.directory() / engine.path, ignored)) {
    return "(left out of this copy)";
  }
  if (engine.runtime != target.runtime) {
    return "(another runtime)";
  }
  std::vector<std::string> wrong;
  if (!target.library.is_version(engine.version)) {
    wrong.push_back("version");
  }
  if (!engine.fits(target.runtime, engine.version, target.arch)) {
    wrong.push_back("GPU");
  }
  return "(another " + joined(wrong, " and ") + ")";
}

}  // namespace

const EngineRecord& choose_engine(const Bundle& bundle, std::string_view graph, const TensorRtTarget& target) {
  std::set<std::string> have;
  for (const EngineRecord& engine : bundle.engines()) {
    if (engine.graph != graph) {
      continue;
    }
    if (target.library.is_version(engine.version)) {
      const EngineRecord* record = bundle.engine_record(graph, target.runtime, engine.version, target.arch);
      if (record != nullptr) {
        return *record;
      }
    }
    have.insert(engine.runtime + " " + engine.version + " for " + engine.arch + " " + why_not(bundle, engine, target));
  }
  const std::string all = joined({have.begin(), have.end()}, ", ");
  throw Error(shown(bundle.directory()) + " has no " + std::string(graph) + " engine for " + target.runtime + " " +
              target.library.version() + " on " + target.arch + " (it has: " + (all.empty() ? "none" : all) +
              "); engines belong to one version and GPU; " +
              build_advice(bundle.directory(), target.runtime, target.arch));
}

std::string build_advice(const std::filesystem::path& directory, const std::string& runtime, const std::string& arch,
                         bool force) {
  if (std::stoi(arch.substr(2)) < kOldestCapability) {
    return "no TensorRT of today builds for " + arch + ": use the backend onnxruntime";
  }
  if (runtime == kRtx && std::find(std::begin(kRtxTargets), std::end(kRtxTargets), arch) == std::end(kRtxTargets)) {
    return "TensorRT-RTX builds none for " + arch + ", only for " +
           joined({std::begin(kRtxTargets), std::end(kRtxTargets)}, ", ") + "; with full TensorRT, run: " +
           build_command(directory, "tensorrt");
  }
  return "run: " + build_command(directory, runtime, arch) + (force ? " --force" : "");
}

}  // namespace talent
