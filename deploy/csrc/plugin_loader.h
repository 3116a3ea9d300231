// Registers the plugin with a TensorRT from C++, as deploy/plugin.py does from Python. Linux only.
//
//     talent::load_plugin(*getPluginRegistry(), "build/libtalent_plugin.so");
//
// It must come before a parser is made and before an engine with the plugin is read.
#pragma once

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstring>
#include <stdexcept>
#include <string>

#include "plugin_name.h"

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

// Whether a registry has the plugin. (To ask it by name would log an error where it has not.)
template <typename Registry>
bool has_plugin(Registry& registry) {
  int32_t count = 0;
  nvinfer1::IPluginCreatorInterface* const* creators = registry.getAllCreators(&count);
  for (int32_t index = 0; index < count; ++index) {
    if (std::strcmp(creators[index]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") == 0) {
      const auto* creator = static_cast<const nvinfer1::IPluginCreatorV3One*>(creators[index]);
      if (std::strcmp(creator->getPluginName(), kPluginName) == 0 &&
          std::strcmp(creator->getPluginVersion(), kPluginVersion) == 0 &&
          std::strcmp(creator->getPluginNamespace(), kPluginNamespace) == 0) {
        return true;
      }
    }
  }
  return false;
}

// TensorRT-RTX's ONNX parser opens itself as libtensorrt_rtx.so, and ends the process where there is only
// libtensorrt_rtx.so.1. `library`: the plugin, beside which lies a library of that name that needs the one with the
// number. Throws std::runtime_error where neither is found.
inline void name_rtx(const std::string& library) {
  constexpr const char* kName = "libtensorrt_rtx.so";
  if (dlopen("libtensorrt_rtx.so.1", RTLD_LAZY | RTLD_NOLOAD) == nullptr || dlopen(kName, RTLD_LAZY) != nullptr) {
    return;  // another TensorRT, or nothing is wrong
  }
  const std::string named = library.substr(0, library.find_last_of('/') + 1) + "libtalent_rtx_name.so";
  if (dlopen(named.c_str(), RTLD_LAZY) == nullptr) {
    throw std::runtime_error(std::string("expected ") + kName + " where the loader finds it, or " + named +
                             " that stands for it, found only libtensorrt_rtx.so.1; run: make plugin");
  }
}

// `registry`: an nvinfer1::IPluginRegistry. More than once does no harm. Throws std::runtime_error, with what was
// expected and what was found, where the library is missing, not ours, made for another TensorRT or not accepted, and
// as `name_rtx`.
template <typename Registry>
void load_plugin(Registry& registry, const std::string& library) {
  void* handle = dlopen(library.c_str(), RTLD_LAZY | RTLD_LOCAL);
  if (handle == nullptr) {
    throw std::runtime_error("expected the TensorRT plugin at " + library + ", but it does not load: " + dlerror() +
                             "; run: make plugin");
  }
  const auto version = reinterpret_cast<int32_t (*)()>(dlsym(handle, "talent_plugin_tensorrt"));
  if (version == nullptr) {
    throw std::runtime_error("expected this project's plugin at " + library +
                             ", found a library without talent_plugin_tensorrt; run: make plugin");
  }
  const int built = version();
  if (!plugin_fits(built)) {
    throw std::runtime_error("expected a plugin that was built with the headers of TensorRT " +
                             std::to_string(NV_TENSORRT_MAJOR) + "." + std::to_string(NV_TENSORRT_MINOR) +
                             ", received " + library + ", built with those of " + std::to_string(built / 10000) + "." +
                             std::to_string(built / 100 % 100) + "; build it again with -DTENSORRT_ROOT");
  }
  name_rtx(library);
  if (has_plugin(registry)) {
    return;
  }
  // loadLibrary says nothing where it refuses.
  if (registry.loadLibrary(library.c_str()) == nullptr || !has_plugin(registry)) {
    throw std::runtime_error(std::string("expected TensorRT to register ") + kPluginName + ", version " +
                             kPluginVersion + ", of namespace " + kPluginNamespace + " from " + library +
                             ", but it did not: the library is of another version; run: make plugin");
  }
}

}  // namespace talent
