#include "tensorrt_library.h"

#include <dlfcn.h>

#include <cstdint>
#include <filesystem>
#include <mutex>
#include <stdexcept>
#include <system_error>

#include "plugin_loader.h"
#include "talent/errors.h"

namespace talent {
namespace {

constexpr bool kRtx = NV_TENSORRT_MAJOR < 2;
constexpr const char* kRuntime = kRtx ? "tensorrt_rtx" : "tensorrt";
constexpr const char* kPluginFile = "libtalent_plugin.so";

thread_local std::string errors;

// TensorRT holds on to the first logger that it is given, so there is one, for good.
class Log final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity > Severity::kERROR) {
      return;
    }
    errors += errors.empty() ? "" : " ";
    for (const char* at = message; *at != '\0'; ++at) {
      errors += *at == '\n' ? ' ' : *at;
    }
  }
};

Log& the_log() {
  static Log& log = *new Log;
  return log;
}

std::string numbers(int major, int minor) { return std::to_string(major) + "." + std::to_string(minor); }

std::string headers() { return numbers(NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR); }

// The plugin beside the library, or the program, that this code is in; else its name, for the loader to look for.
std::string usual_plugin() {
  Dl_info self = {};
  if (dladdr(reinterpret_cast<const void*>(&tensorrt_said), &self) != 0 && self.dli_fname != nullptr) {
    const std::filesystem::path beside = std::filesystem::path(self.dli_fname).parent_path() / kPluginFile;
    std::error_code ignored;  // what cannot be asked for is not there
    if (std::filesystem::is_regular_file(beside, ignored)) {
      return beside.string();
    }
  }
  return kPluginFile;
}

}  // namespace

std::string tensorrt_said() {
  std::string said;
  said.swap(errors);
  return said.empty() ? "no reason" : said;
}

template <typename Function>
Function* TensorRtLibrary::function(const char* name) const {
  void* found = dlsym(handle_, name);
  if (found == nullptr) {
    throw Error("expected the library of TensorRT in " + name_ + ", found one without " + name +
                "; install TensorRT again");
  }
  return reinterpret_cast<Function*>(found);
}

TensorRtLibrary::TensorRtLibrary(const std::string& runtime)
    : runtime_(runtime),
      name_(kRtx ? "libtensorrt_rtx.so.1" : "libnvinfer.so." + std::to_string(NV_TENSORRT_MAJOR)) {
  if (runtime_ != kRuntime) {
    throw Error("libtalent was built for " + std::string(kRuntime) + ", with the headers of " + headers() +
                ", and not for " + runtime_ + "; use the backend " + kRuntime + ", or build libtalent again with the "
                "headers of " + runtime_ + ": cmake -DTENSORRT_ROOT=/path/to/it");
  }
  handle_ = dlopen(name_.c_str(), RTLD_LAZY | RTLD_LOCAL);
  if (handle_ == nullptr) {
    throw Error(runtime_ + " needs " + name_ + " of version " + headers() + " or newer, and it does not load: " +
                dlerror() + "; install it, name its directory in LD_LIBRARY_PATH, or use the backend onnxruntime");
  }
  using Number = int32_t() noexcept;
  const int major = function<Number>("getInferLibMajorVersion")();
  const int minor = function<Number>("getInferLibMinorVersion")();
  short_version_ = numbers(major, minor) + "." + std::to_string(function<Number>("getInferLibPatchVersion")());
  version_ = short_version_ + "." + std::to_string(function<Number>("getInferLibBuildVersion")());
  if (major != NV_TENSORRT_MAJOR || (kRtx ? minor != NV_TENSORRT_MINOR : minor < NV_TENSORRT_MINOR)) {
    throw Error("expected " + runtime_ + " " + headers() + ", whose headers libtalent was built with" +
                (kRtx ? "" : ", or a newer " + std::to_string(NV_TENSORRT_MAJOR)) + ", received " + version_ + " in " +
                name_ + "; install that one, or build libtalent again with the headers of this one: cmake "
                "-DTENSORRT_ROOT=/path/to/it");
  }
}

bool TensorRtLibrary::is_version(std::string_view text) const {
  return text == version_ || text.substr(0, text.find(".post")) == short_version_;
}

std::unique_ptr<nvinfer1::IRuntime> TensorRtLibrary::make_runtime() const {
  const auto create = function<void*(void*, int32_t) noexcept>("createInferRuntime_INTERNAL");
  // As createInferRuntime of the headers does.
  auto* runtime = static_cast<nvinfer1::IRuntime*>(create(&the_log(), NV_TENSORRT_VERSION));
  if (runtime == nullptr) {
    throw Error("expected " + runtime_ + " " + version_ + " to start, received: " + tensorrt_said() +
                "; nvidia-smi says whether the GPU and its driver work");
  }
  return std::unique_ptr<nvinfer1::IRuntime>(runtime);
}

void TensorRtLibrary::load_plugin(const std::string& path) const {
  static std::mutex one_at_a_time;  // looking whether it is there and registering it are two steps
  const std::lock_guard lock(one_at_a_time);
  auto* registry = function<nvinfer1::IPluginRegistry*() noexcept>("getPluginRegistry")();
  if (registry == nullptr) {
    throw Error("expected " + runtime_ + " " + version_ + " to have a registry of plugins, received none; install it "
                "again");
  }
  try {
    talent::load_plugin(*registry, path.empty() ? usual_plugin() : path);
  } catch (const std::runtime_error& error) {
    throw Error(error.what());
  }
}

}  // namespace talent
