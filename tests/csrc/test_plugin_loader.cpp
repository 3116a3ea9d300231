// Loading the plugin from C++, with a registry that does what TensorRT's does.
#include "plugin_loader.h"

#include <cstring>
#include <functional>

#include "check.h"

using talent::plugin_fits;

namespace {

class Registry {
 public:
  bool refuses = false;
  int loaded = 0;

  void* loadLibrary(const char* path) {
    ++loaded;
    void* library = dlopen(path, RTLD_LAZY);
    using GetCreators = nvinfer1::IPluginCreatorInterface* const* (*)(int32_t&);
    const auto get = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"));
    if (refuses || creator_ != nullptr || get == nullptr || dlsym(library, "setLoggerFinder") == nullptr) {
      return nullptr;
    }
    int32_t count = 0;
    creator_ = static_cast<nvinfer1::IPluginCreatorV3One*>(get(count)[0]);
    return library;
  }

  nvinfer1::IPluginCreatorInterface* getCreator(const char* name, const char* version, const char* space) const {
    const bool found = creator_ != nullptr && std::strcmp(creator_->getPluginName(), name) == 0 &&
                       std::strcmp(creator_->getPluginVersion(), version) == 0 &&
                       std::strcmp(creator_->getPluginNamespace(), space) == 0;
    return found ? creator_ : nullptr;
  }

 private:
  nvinfer1::IPluginCreatorV3One* creator_ = nullptr;
};

void check_refused(const char* words, const std::function<void()>& call) {
  try {
    call();
    check::that(false, "an error about %s, received none", words);
  } catch (const std::runtime_error& error) {
    check::that(std::strstr(error.what(), words) != nullptr, "an error about %s, received %s", words, error.what());
  }
}

void check_versions() {
  check::that(plugin_fits(101303, 10, 3) && plugin_fits(110000, 11, 1), "one major version to fit itself");
  check::that(!plugin_fits(101303, 11, 0) && !plugin_fits(110000, 10, 16), "10 and 11 not to fit each other");
  check::that(plugin_fits(110100, 1, 7) && plugin_fits(10701, 1, 7), "TensorRT-RTX 1.7 to fit 11 and itself");
  check::that(!plugin_fits(101303, 1, 7) && !plugin_fits(110100, 1, 2) && !plugin_fits(10200, 1, 7),
              "TensorRT-RTX not to fit 10, nor older ones 11 or each other");
  check::that(!plugin_fits(0), "a library that does not say its version not to fit");
}

}  // namespace

// Arguments: the plugin, a library that says it is for an old TensorRT, and one called libtensorrt_rtx.so.1.
int main(int, char** arguments) {
  const std::string plugin = arguments[1];
  check_versions();
  Registry registry;
  talent::load_plugin(registry, plugin);
  talent::load_plugin(registry, plugin);
  check::that(registry.loaded == 2, "a second call to do no harm");
  check_refused("does not load", [&] { talent::load_plugin(registry, plugin + ".missing"); });
  check_refused("built with those of 8.6", [&] { talent::load_plugin(registry, arguments[2]); });
  Registry refusing;
  refusing.refuses = true;
  check_refused("but it did not", [&] { talent::load_plugin(refusing, plugin); });
  check::that(dlopen(arguments[3], RTLD_LAZY) != nullptr, "a stand-in for TensorRT-RTX to load");
  check_refused("LD_LIBRARY_PATH", [&] { talent::load_plugin(registry, plugin); });
  return check::result();
}
