// Which backends libtalent was built with, and which one runs a bundle.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "backend.h"
#include "talent/bundle.h"
#include "talent/segmenter.h"

namespace talent {

// A backend that libtalent can be built with. open: empty where it was built without. build: how to build it with.
struct BackendKind {
  std::string name;
  std::string build;
  std::function<std::unique_ptr<Backend>(const Bundle& bundle, const Options& options)> open = {};
};

// All there are, in the order in which "auto" tries them.
std::vector<BackendKind> backend_kinds();

// Throws Error for a name that is neither "auto" nor one of the kinds.
void check_backend(std::string_view name, const std::vector<BackendKind>& kinds);

// A backend, and for the choice "auto" why none of those before it was taken.
struct OpenedBackend {
  std::unique_ptr<Backend> backend;
  std::vector<std::string> auto_report;
};

// Opens Options::backend. Throws Error for a name that is unknown, for a backend that libtalent was built without,
// and as the backends do; "auto" goes on to the next one where one cannot be had, but for the last.
OpenedBackend open_backend(const Bundle& bundle, const Options& options, const std::vector<BackendKind>& kinds);

// A segmenter whose backend somebody else made; Options::backend is not looked at.
std::unique_ptr<Segmenter> segmenter_over(Bundle bundle, std::unique_ptr<Backend> backend, const Options& options = {});

// Both graphs in ONNX Runtime, on the CPU; defined where libtalent is built with it (TALENT_WITH_ONNXRUNTIME). Throws
// Error.
std::unique_ptr<Backend> open_onnxruntime(const Bundle& bundle, const Options& options);

// Both engines in TensorRT; defined where libtalent is built with it (TALENT_WITH_TENSORRT). runtime: "tensorrt" or
// "tensorrt_rtx". Throws Error, first of all where there is no GPU.
std::unique_ptr<Backend> open_tensorrt(const Bundle& bundle, const std::string& runtime, const Options& options);

}  // namespace talent
