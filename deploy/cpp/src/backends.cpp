#include "backends.h"

#include <algorithm>

#include "files.h"
#include "quote.h"
#include "suggest.h"
#include "talent/errors.h"

namespace talent {
namespace {

constexpr const char* kAuto = "auto";
constexpr const char* kBuildTensorRT =
    "build libtalent again from the top of its repository, where CUDA's compiler and TensorRT's headers are: cmake -B "
    "build -DTENSORRT_ROOT=DIRECTORY";
constexpr const char* kBuildOnnxRuntime =
    "build libtalent again with a release of ONNX Runtime: cmake -B build -DONNXRUNTIME_ROOT=DIRECTORY";

std::string built_without(const BackendKind& kind) { return "libtalent was built without " + kind.name; }

OpenedBackend open_first(const Bundle& bundle, const Options& options, const std::vector<BackendKind>& kinds) {
  OpenedBackend opened;
  for (const BackendKind& kind : kinds) {
    if (!kind.open) {
      opened.auto_report.push_back(built_without(kind));
    } else if (&kind == &kinds.back()) {
      opened.backend = kind.open(bundle, options);
      return opened;
    } else {
      try {
        opened.backend = kind.open(bundle, options);
        return opened;
      } catch (const Error& error) {
        opened.auto_report.emplace_back(error.what());
      }
    }
  }
  throw Error("no backend can run " + shown(bundle.directory()) + " here: " + joined(opened.auto_report, "; ") + "; " +
              kinds.back().build);
}

}  // namespace

std::vector<BackendKind> backend_kinds() {
  std::vector<BackendKind> kinds = {
      {"tensorrt", kBuildTensorRT}, {"tensorrt_rtx", kBuildTensorRT}, {"onnxruntime", kBuildOnnxRuntime}};
#ifdef TALENT_WITH_TENSORRT
  for (BackendKind& kind : kinds) {
    if (kind.build == kBuildTensorRT) {
      kind.open = [name = kind.name](const Bundle& bundle, const Options& options) {
        return open_tensorrt(bundle, name, options);
      };
    }
  }
#endif
#ifdef TALENT_WITH_ONNXRUNTIME
  kinds.back().open = open_onnxruntime;
#endif
  return kinds;
}

void check_backend(std::string_view name, const std::vector<BackendKind>& kinds) {
  std::vector<std::string> known = {kAuto};
  for (const BackendKind& kind : kinds) {
    known.push_back(kind.name);
  }
  if (std::find(known.begin(), known.end(), name) == known.end()) {
    throw Error("unknown backend " + in_quotes(name) + suggest(name, known));
  }
}

OpenedBackend open_backend(const Bundle& bundle, const Options& options, const std::vector<BackendKind>& kinds) {
  check_backend(options.backend, kinds);
  if (options.backend == kAuto) {
    return open_first(bundle, options, kinds);
  }
  const auto kind = std::find_if(kinds.begin(), kinds.end(), [&](const BackendKind& one) {
    return one.name == options.backend;
  });
  if (!kind->open) {
    throw Error(built_without(*kind) + "; " + kind->build);
  }
  return {kind->open(bundle, options), {}};
}

}  // namespace talent
