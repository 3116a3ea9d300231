// A bundle with engines of the toy graphs, for the stand-in for TensorRT.
#pragma once

#include <NvInferRuntime.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "talent/bundle.h"
#include "toy_bundle.h"
#include "toy_graphs.h"

constexpr const char* kToyRuntime = NV_TENSORRT_MAJOR < 2 ? "tensorrt_rtx" : "tensorrt";
constexpr const char* kToyArch = "sm89";  // of the stand-in's GPU

// The version of the stand-in, as TensorRT's Python package names its own.
inline std::string toy_version() {
  return std::to_string(NV_TENSORRT_MAJOR) + "." + std::to_string(NV_TENSORRT_MINOR) + "." +
         std::to_string(NV_TENSORRT_PATCH) + "." + std::to_string(NV_TENSORRT_BUILD);
}

struct ToyEngines {
  std::string text = "toy text";  // the plans
  std::string vision = "toy vision";
  std::string version = toy_version();
  std::string arch = kToyArch;
  bool plugin = false;  // whether the vision engine needs it
  int64_t batch = 4;
  int64_t image_size = toy::Plan().size;
};

inline std::string toy_engine(const std::filesystem::path& folder, const std::string& graph, const std::string& plan,
                              bool plugin, const ToyEngines& engines) {
  const std::string path = "engines/toy/" + graph + ".plan";
  std::filesystem::create_directories((folder / path).parent_path());
  std::ofstream(folder / path) << plan;
  std::ostringstream text;
  text << R"({"graph": ")" << graph << R"(", "precision": "fp16", "runtime": ")" << kToyRuntime << R"(", "version": ")"
       << engines.version << R"(", "arch": ")" << engines.arch << R"(", "path": ")" << path
       << R"(", "seconds": 1, "batch": )" << engines.batch << R"(, "peak_memory_bytes": null, "plugin": )"
       << (plugin ? "true" : "false") << R"(, "bytes": )" << plan.size() << R"(, "sha256": ")"
       << talent::sha256(folder / path) << R"(", "built_from": {")" << graph << R"(.onnx": ")"
       << talent::sha256(folder / (graph + ".onnx")) << R"("}})";
  return text.str();
}

// Writes it into `folder` and reads it.
inline talent::Bundle toy_engine_bundle(const std::filesystem::path& folder, const ToyEngines& engines = {}) {
  for (const char* name : {"text.onnx", "vision.onnx", "tokenizer.json"}) {
    std::ofstream(folder / name) << name;
  }
  const std::string text = toy_engine(folder, "text", engines.text, false, engines);
  const std::string vision = toy_engine(folder, "vision", engines.vision, engines.plugin, engines);
  std::ofstream(folder / "bundle.json")
      << R"({"schema": 1, "preset": "toy", "precision": "fp16", "image_size": )" << engines.image_size
      << R"(, "context_length": )" << toy::kTokens << R"(, "threshold": 0.35, "preprocessing": {"mean": [0.48145466, )"
      << R"(0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711], "interpolation": "cubic", )"
      << R"("letterbox": true}, "source": {}, "parity": {}, "versions": {}, "commit": "none", )"
      << R"("created": "2026-01-31T12:00:00+00:00", "engines": [)" << text << ", " << vision << R"(], "files": {)"
      << R"("text.onnx": )" << toy_record(folder / "text.onnx") << R"(, "vision.onnx": )"
      << toy_record(folder / "vision.onnx") << R"(, "tokenizer.json": )" << toy_record(folder / "tokenizer.json")
      << "}}";
  return talent::Bundle::load(folder);
}
