// TensorRT's library, which is opened when it is asked for and not linked: one build of libtalent serves machines with
// and without it.
//
// It is called through the virtual functions of the headers that libtalent was compiled with. Within a major version of
// TensorRT new ones come behind the others, so a library of the same major version serves that is not older. (Compared
// in the headers of 10.3, 10.7, 10.13 and 10.16, and of 11.0 and 11.1.) Of TensorRT-RTX, whose headers could not be
// compared, only the very version serves.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <string_view>

namespace talent {

class TensorRtLibrary {
 public:
  // runtime: "tensorrt" or "tensorrt_rtx". Throws Error where libtalent was compiled with the headers of the other one,
  // where there is no library, and for a version that does not fit; nothing but its version was asked by then.
  explicit TensorRtLibrary(const std::string& runtime);

  const std::string& version() const noexcept { return version_; }  // "10.13.3.9"

  // Whether `text` names this version, as the Python package of TensorRT names its own: "10.13.3.9", or "10.3.0" of
  // old.
  bool is_version(std::string_view text) const;

  // Throws Error where TensorRT refuses.
  std::unique_ptr<nvinfer1::IRuntime> make_runtime() const;

  // Registers the plugin for RCA; more than once does no harm. path: of its library, empty for the one beside
  // libtalent, or else where the loader finds it. Throws Error as load_plugin of plugin_loader.h throws.
  void load_plugin(const std::string& path) const;

 private:
  template <typename Function>
  Function* function(const char* name) const;

  std::string runtime_;
  std::string name_;       // of the library's file
  void* handle_;           // never closed: TensorRT keeps threads and handlers of its own
  std::string version_;
  std::string short_version_;  // without the build
};

// What TensorRT has said of errors in this thread since this was asked last, on one line. Its warnings are not kept.
std::string tensorrt_said();

}  // namespace talent
