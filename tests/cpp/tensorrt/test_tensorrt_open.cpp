// What keeps a bundle from being run by TensorRT, and what is said about it.
//
// With the argument "missing": where the loader finds no library of TensorRT.
#include <dlfcn.h>

#include <filesystem>
#include <fstream>

#include "tensorrt_choice.h"
#include "toy_frames.h"

namespace {

constexpr const char* kOther = NV_TENSORRT_MAJOR < 2 ? "tensorrt" : "tensorrt_rtx";

std::string version(int minor) {
  return std::to_string(NV_TENSORRT_MAJOR) + "." + std::to_string(NV_TENSORRT_MINOR + minor) + ".0.7";
}

void check_refused_to_open(const std::string& words, const ToyEngines& engines = {},
                           const talent::Options& options = {}) {
  check_refused(words, [&] { ToyTensorRt toy(engines, options); });
  check_nothing_is_left(words.c_str());
}

void check_gpus() {
  stand_in::set_gpus(0);
  check_refused_to_open("needs an NVIDIA GPU and its driver, and none was found (nvidia-smi lists them); use the "
                        "backend onnxruntime instead");
  stand_in::set_gpus(1);
  talent::Options options;
  options.device = 1;
  check_refused_to_open("expected the number of a GPU from 0 to 0, received 1", {}, options);
}

void check_versions() {
  constexpr int kFits = NV_TENSORRT_MAJOR < 2 ? 0 : 1;  // the minor version above that of the headers
  constexpr int kDoesNotFit = NV_TENSORRT_MAJOR < 2 ? 1 : -1;
  TemporaryFolder folder;
  const talent::Bundle bundle = toy_engine_bundle(folder.path);
  check_refused(std::string("libtalent was built for ") + kToyRuntime,
                [&] { talent::open_tensorrt(bundle, kOther, {}); });
  // It says so before it is asked for a runtime, which would end this.
  setenv("STAND_IN_REFUSES", "createInferRuntime", 1);
  for (const std::string& other : {version(kDoesNotFit), std::string("99.0.0.1"), std::string("8.6.1.6")}) {
    setenv("STAND_IN_VERSION", other.c_str(), 1);
    check_refused_to_open("whose headers libtalent was built with");
    check_refused_to_open("received " + other + " in lib");
  }
  setenv("STAND_IN_VERSION", version(kFits).c_str(), 1);
  const std::string runtime = kToyRuntime;
  check_refused_to_open(" has no text engine for " + runtime + " " + version(kFits) + " on sm89 (it has: " + runtime +
                        " " + toy_version() + " for sm89 (another version)); engines belong to one version and GPU; "
                        "run: ");
  ToyEngines newer;
  newer.version = version(kFits);
  check_refused_to_open("to start, received: createInferRuntime is refused", newer);
  unsetenv("STAND_IN_REFUSES");
  const std::string number = version(kFits).substr(0, version(kFits).rfind('.'));
  for (const std::string& name : {version(kFits), number, number + ".post1"}) {  // as the Python packages name it
    newer.version = name;
    check::that(ToyTensorRt(newer).backend != nullptr, "an engine of %s to be taken", name.c_str());
  }
  for (const std::string& name : {number + ".8", number + "1", std::string("post1")}) {
    newer.version = name;
    check_refused_to_open("(another version)", newer);
  }
  unsetenv("STAND_IN_VERSION");
}

// Files that were left out of a copy, or damaged in it.
void check_files() {
  const ToyTensorRt toy;
  std::filesystem::remove(toy.folder.path / "engines" / "toy" / "vision.plan");
  check_refused("has no vision engine for", [&] { talent::open_tensorrt(toy.bundle, kToyRuntime, {}); });
  check_refused("(left out of this copy)", [&] { talent::open_tensorrt(toy.bundle, kToyRuntime, {}); });
  std::ofstream(toy.folder.path / "engines" / "toy" / "text.plan", std::ios::app) << "damage";
  check_refused("text.plan", [&] { talent::open_tensorrt(toy.bundle, kToyRuntime, {}); });
}

void check_engines() {
  ToyEngines engines;
  engines.arch = "sm86";
  check_refused_to_open("for sm86 (another GPU)); engines belong to one version and GPU; run: talent-build ", engines);
  engines = {};
  engines.vision = "damaged before it was recorded";
  check_refused_to_open("vision.plan: Magic tag does not match; the engine is damaged or was built elsewhere; run: "
                        "talent-build ", engines);
  engines.vision = "toy vision other";
  check_refused_to_open("vision expects the prompt tensor 'other', which text does not make", engines);
  engines.vision = "toy vision prompt=half";
  check_refused_to_open("vision expects 'colour' as HALF, text makes FLOAT", engines);
  engines.vision = "toy vision size=32";
  check_refused_to_open("image FLOAT or HALF [B, 3, 16, 16]", engines);
}

void check_advice() {
  const auto advice = [](const char* runtime, const char* arch, bool force) {
    return talent::build_advice("my bundle", runtime, arch, force);
  };
  const std::pair<std::string, std::string> pairs[] = {
      {advice("tensorrt", "sm87", false), "run: talent-build 'my bundle' --runtime tensorrt"},
      {advice("tensorrt", "sm75", true), "run: talent-build 'my bundle' --runtime tensorrt --force"},
      {advice("tensorrt_rtx", "sm75", true),
       "run: talent-build 'my bundle' --runtime tensorrt_rtx --arch sm75 --force"},
      {advice("tensorrt", "sm61", false), "no TensorRT of today builds for sm61: use the backend onnxruntime"},
      {advice("tensorrt_rtx", "sm87", false),
       "TensorRT-RTX builds none for sm87, only for sm75, sm80, sm86, sm89, sm120, sm121; with full TensorRT, run: "
       "talent-build 'my bundle' --runtime tensorrt"}};
  for (const auto& [received, expected] : pairs) {
    check::that(received == expected, "%s, received %s", expected.c_str(), received.c_str());
  }
}

void check_plugin(const std::filesystem::path& program) {
  ToyEngines engines;
  engines.plugin = true;
  talent::Options options;
  options.plugin = "/missing/libtalent_plugin.so";
  check_refused_to_open("vision.plan needs the TensorRT plugin for RCA: expected the TensorRT plugin at "
                        "/missing/libtalent_plugin.so, but it does not load", engines, options);
  check_refused_to_open("; or build the engines without it: talent-build ", engines, options);
  check_refused_to_open(" --plugin off", engines, options);
  const std::filesystem::path beside = program.parent_path() / "libtalent_plugin.so";
  check::that(std::filesystem::is_regular_file(beside), "%s for this test", beside.c_str());
  options.plugin.clear();
  const Picture picture(30, 20, talent::PixelFormat::kRgb, 1);
  for (const std::string& path : {std::string(), beside.string()}) {
    options.plugin = path;
    ToyTensorRt toy(engines, options);
    const talent::PromptTensors prompt = toy.backend->text(sentence(4, 0, 0));
    check_answer(toy.segment(picture.view(), {&prompt}).at(0), expected_answer(picture.view(), sentence(4, 0, 0)),
                 "with the plugin");
  }
}

int check_missing() {
  TemporaryFolder folder;
  const talent::Bundle bundle = toy_engine_bundle(folder.path);
  const std::string major = std::to_string(NV_TENSORRT_MAJOR);
  const std::string name = NV_TENSORRT_MAJOR < 2 ? "libtensorrt_rtx.so.1" : "libnvinfer.so." + major;
  if (dlopen(name.c_str(), RTLD_LAZY) != nullptr) {
    std::fprintf(stderr, "not checked: this machine has %s\n", name.c_str());
    return 0;
  }
  check_refused(std::string(kToyRuntime) + " needs " + name, [&] { talent::open_tensorrt(bundle, kToyRuntime, {}); });
  check_refused("or use the backend onnxruntime", [&] { talent::open_tensorrt(bundle, kToyRuntime, {}); });
  return check::result();
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1) {
    return check_missing();
  }
  check_gpus();
  check_versions();
  check_files();
  check_engines();
  check_advice();
  check_plugin(arguments[0]);
  return check::result();
}
