// Which engine of a bundle a TensorRT and a GPU take, and what to do where there is none: deploy/runtime/tensorrt.py.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "talent/bundle.h"
#include "tensorrt_library.h"

namespace talent {

// A TensorRT on a GPU.
struct TensorRtTarget {
  const TensorRtLibrary& library;
  std::string runtime;  // "tensorrt" or "tensorrt_rtx"
  std::string arch;     // "sm87"
};

// The engine of a graph, which lives as long as the bundle. Throws Error, with what there is and the command that
// builds one, where none is for this target; and as Bundle::engine_record.
const EngineRecord& choose_engine(const Bundle& bundle, std::string_view graph, const TensorRtTarget& target);

// What to do where a bundle lacks an engine of `runtime` for the GPU `arch`, or (`force`) has one that is bad.
std::string build_advice(const std::filesystem::path& directory, const std::string& runtime, const std::string& arch,
                         bool force = false);

}  // namespace talent
