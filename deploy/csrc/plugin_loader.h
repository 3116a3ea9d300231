// Registers the plugin with a TensorRT from C++, as deploy/plugin.py does from Python. Linux only.
//
//     talent::load_plugin(*getPluginRegistry(), "build/libtalent_plugin.so");
//
// It must come before a parser is made and before an engine with the plugin is read.
#pragma once

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <stdexcept>
#include <string>

namespace talent {

// Whether a plugin may be loaded by the TensorRT of these headers. built: its talent_plugin_tensorrt(), 101303 for
// 10.13.3. Loggers lie elsewhere from TensorRT 11 on; TensorRT-RTX 1.7 (examined) and later have that layout, too.
constexpr bool plugin_fits(int built, int major = NV_TENSORRT_MAJOR, int minor = NV_TENSORRT_MINOR) {
  const int built_major = built / 10000;
  if (major >= 2) {
    return built_major == major;
  }
  return built / 100 == major * 100 + minor || (built_major == 11 && major == 1 && minor >= 7);
}

// `registry`: an nvinfer1::IPluginRegistry. More than once does no harm. Throws std::runtime_error, with what was
// expected and what was found, where the library is missing, not ours, made for another TensorRT or not accepted; and
// where TensorRT-RTX is loaded under a name by which its ONNX parser would not find it (it would end the process).
template <typename Registry>
void load_plugin(Registry& registry, const std::string& library) {
  void* handle = dlopen(library.c_str(), RTLD_LAZY | RTLD_LOCAL);
  if (handle == nullptr) {
    throw std::runtime_error("expected the TensorRT plugin at " + library + ", but it does not load: " + dlerror() +
                             "; run: make plugin");
  }
  const auto version = reinterpret_cast<int32_t (*)()>(dlsym(handle, "talent_plugin_tensorrt"));
  const int built = version == nullptr ? 0 : version();
  const bool fits = plugin_fits(built);
  dlclose(handle);  // the registry opens it again
  if (!fits) {
    throw std::runtime_error("expected a plugin that was built with the headers of TensorRT " +
                             std::to_string(NV_TENSORRT_MAJOR) + "." + std::to_string(NV_TENSORRT_MINOR) +
                             ", received " + library + ", built with those of " + std::to_string(built / 10000) + "." +
                             std::to_string(built / 100 % 100) + "; build it again with -DTENSORRT_ROOT");
  }
  constexpr const char* kRtx = "libtensorrt_rtx.so";
  if (dlopen("libtensorrt_rtx.so.1", RTLD_LAZY | RTLD_NOLOAD) != nullptr && dlopen(kRtx, RTLD_LAZY) == nullptr) {
    throw std::runtime_error(std::string("expected ") + kRtx + " where the loader finds it, since TensorRT-RTX opens "
                             "itself by that name, found only libtensorrt_rtx.so.1; link the one to the other in a "
                             "directory of LD_LIBRARY_PATH");
  }
  // loadLibrary says nothing where it refuses, and refuses a plugin that it has
  registry.loadLibrary(library.c_str());
  if (registry.getCreator("RcaCostAggregation", "1", "talent") == nullptr) {
    throw std::runtime_error("expected TensorRT to register RcaCostAggregation, version 1, of namespace talent from " +
                             library + ", but it did not: the library is of another version; run: make plugin");
  }
}

}  // namespace talent
