// Loading the plugin from C++, with a registry that does what TensorRT's does.
#include "plugin_loader.h"

#include <filesystem>
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
    if (refuses || creators_ != nullptr || get == nullptr || dlsym(library, "setLoggerFinder") == nullptr) {
      return nullptr;
    }
    creators_ = get(count_);
    return library;
  }

  nvinfer1::IPluginCreatorInterface* const* getAllCreators(int32_t* count) const {
    *count = count_;
    return creators_;
  }

 private:
  nvinfer1::IPluginCreatorInterface* const* creators_ = nullptr;
  int32_t count_ = 0;
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
}

// With a library called libtensorrt_rtx.so.1 in the process, and none without the number.
void check_rtx(Registry& registry, const std::string& plugin, const char* rtx) {
  constexpr const char* kName = "libtensorrt_rtx.so";
  check::that(dlopen(rtx, RTLD_LAZY) != nullptr, "a stand-in for TensorRT-RTX to load");
  check::that(dlopen(kName, RTLD_LAZY) == nullptr, "no library of the name without a number to begin with");
  const std::filesystem::path elsewhere = std::filesystem::path(rtx).parent_path() / "libtalent_plugin.so";
  std::filesystem::remove(elsewhere);
  std::filesystem::create_symlink(plugin, elsewhere);
  check_refused("found only libtensorrt_rtx.so.1", [&] { talent::load_plugin(registry, elsewhere); });
  talent::load_plugin(registry, plugin);
  void* named = dlopen(kName, RTLD_LAZY);
  check::that(named != nullptr && dlsym(named, "stand_in") != nullptr, "its functions to be found by the other name");
}

}  // namespace

// Arguments: the plugin, a library that says it is for an old TensorRT, and one called libtensorrt_rtx.so.1.
int main(int, char** arguments) {
  const std::string plugin = arguments[1];
  check_versions();
  Registry registry;
  talent::load_plugin(registry, plugin);
  talent::load_plugin(registry, plugin);
  check::that(registry.loaded == 1, "a second call to do nothing, received %d", registry.loaded);
  check_refused("does not load", [&] { talent::load_plugin(registry, plugin + ".missing"); });
  check_refused("built with those of 8.6", [&] { talent::load_plugin(registry, arguments[2]); });
  Registry refusing;
  refusing.refuses = true;
  check_refused("but it did not", [&] { talent::load_plugin(refusing, plugin); });
  check_rtx(registry, plugin, arguments[3]);
  check_refused("without talent_plugin_tensorrt", [&] { talent::load_plugin(registry, arguments[3]); });
  return check::result();
}
