// ONNX Runtime's C interface, with owners and exceptions.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "interface.h"

namespace talent::onnxruntime {

// Functions are asked for as of this version, so that any later header and library will do.
constexpr uint32_t kVersion = 15;
static_assert(ORT_API_VERSION >= kVersion, "libtalent needs the headers of ONNX Runtime 1.15 or newer");

// Throws Error where the library is older than kVersion.
const OrtApi& api();

// Throws Error, which begins with `what` and goes on with ONNX Runtime's own words, where a call failed.
void check(OrtStatus* status, const std::string& what);

template <auto kRelease>
struct Release {
  template <typename Object>
  void operator()(Object* object) const {
    (api().*kRelease)(object);
  }
};

using Environment = std::unique_ptr<OrtEnv, Release<&OrtApi::ReleaseEnv>>;
using MemoryInfo = std::unique_ptr<OrtMemoryInfo, Release<&OrtApi::ReleaseMemoryInfo>>;
using Value = std::unique_ptr<OrtValue, Release<&OrtApi::ReleaseValue>>;

// A tensor in memory that somebody else holds as long as this lives.
Value tensor_over(const void* data, size_t bytes, const std::vector<int64_t>& shape, ONNXTensorElementDataType type);

// What a tensor is and holds.
struct TensorView {
  ONNXTensorElementDataType type;
  std::vector<int64_t> shape;
  const void* data;
  size_t elements;
};
TensorView view_of(OrtValue* value);

// A graph, ready to run; several threads may run it at once.
class Session {
 public:
  // threads: in each operator, 0 for one per core. Throws Error where the file cannot be loaded.
  Session(const Environment& environment, const std::filesystem::path& path, int threads);

  // Element types as ONNX Runtime's Python package names them: "tensor(float)".
  const GraphInterface& graph() const { return graph_; }

  // Outputs in the order of their names. Throws Error with ONNX Runtime's words.
  std::vector<Value> run(const std::vector<const char*>& input_names, const std::vector<const OrtValue*>& inputs,
                         const std::vector<const char*>& output_names) const;

 private:
  const std::string path_;
  std::unique_ptr<OrtSession, Release<&OrtApi::ReleaseSession>> session_;
  GraphInterface graph_;
};

}  // namespace talent::onnxruntime
