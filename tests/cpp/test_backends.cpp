// Which backend runs a bundle, and what is refused before one is opened: names, precisions, thresholds, graphs that do
// not fit.
#include "backends.h"

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "interface.h"
#include "temporary_folder.h"
#include "toy_backend.h"

using namespace talent;

namespace {

std::filesystem::path folder;
ToyControls controls;

template <typename Call>
void check_refused(const std::string& expected, Call call) {
  try {
    call();
    check::that(false, "an error: %s", expected.c_str());
  } catch (const Error& error) {
    check::that(expected == error.what(), "\"%s\", received \"%s\"", expected.c_str(), error.what());
  }
}

std::unique_ptr<Backend> works(const Bundle& bundle, const Options&) {
  return std::make_unique<ToyBackend>(bundle, controls);
}

std::unique_ptr<Backend> fails(const Bundle&, const Options& options) {
  throw Error("no GPU " + std::to_string(options.device));
}

// "auto" takes the first that can be had.
void check_choice() {
  const Bundle bundle = Bundle::load(folder);
  const struct {
    std::vector<BackendKind> kinds;
    std::vector<std::string> report;
  } cases[] = {
      {{{"tensorrt", "", works}, {"onnxruntime", "", works}}, {}},
      {{{"tensorrt", "", fails}, {"onnxruntime", "", works}}, {"no GPU 0"}},
      {{{"tensorrt", ""}, {"tensorrt_rtx", "", fails}, {"onnxruntime", "", works}},
       {"libtalent was built without tensorrt", "no GPU 0"}}};
  for (const auto& [kinds, report] : cases) {
    const OpenedBackend opened = open_backend(bundle, {}, kinds);
    check::that(opened.backend != nullptr && opened.auto_report == report, "the first that works, and why no other");
  }
  const std::vector<BackendKind> none = {{"tensorrt", "", fails}, {"onnxruntime", "build it"}};
  const std::string where = folder.string();
  check_refused("no backend can run " + where + " here: no GPU 0; libtalent was built without onnxruntime; build it",
                [&] { open_backend(bundle, {}, none); });
  Options options;
  options.backend = "onnxruntime";
  check_refused("libtalent was built without onnxruntime; build it", [&] { open_backend(bundle, options, none); });
  options.backend = "tensorrt";
  options.device = 3;
  check_refused("no GPU 3", [&] { open_backend(bundle, options, none); });
  const std::vector<BackendKind> broken = {{"tensorrt", ""}, {"onnxruntime", "", fails}};
  check_refused("no GPU 0", [&] { open_backend(bundle, {}, broken); });  // the last one says it itself
}

// This libtalent, which runs nothing.
void check_built_without() {
  Options options;
  const std::string advice = "build libtalent again with a release of ONNX Runtime: cmake -B build "
                             "-DONNXRUNTIME_ROOT=DIRECTORY";
  check_refused("no backend can run " + folder.string() + " here: libtalent was built without tensorrt; libtalent was "
                "built without tensorrt_rtx; libtalent was built without onnxruntime; " + advice,
                [&] { Segmenter(folder, options); });
  options.backend = "onnxruntime";
  check_refused("libtalent was built without onnxruntime; " + advice, [&] { Segmenter(folder, options); });
  options.backend = "onnxruntim";
  check_refused("unknown backend 'onnxruntim'; did you mean 'onnxruntime'?", [&] { Segmenter("nowhere", options); });
}

void check_options() {
  const auto with = [](const Options& options) {
    Bundle bundle = Bundle::load(folder);
    auto backend = works(bundle, options);
    return segmenter_over(std::move(bundle), std::move(backend), options);
  };
  Options options;
  check::that(with(options)->threshold() == 0.35, "the bundle's threshold");
  const ToyPicture picture;
  int64_t before = picture.kWidth * picture.kHeight;
  for (const double threshold : {0.1, 0.9, 0.99999999999}) {  // the last of which is 1 as a float
    options.threshold = threshold;
    const auto segmenter = with(options);
    const Segmentation answer = (*segmenter)("r", picture.view());
    const int64_t pixels = std::count(answer.mask.begin(), answer.mask.end(), 255);
    check::that(segmenter->threshold() == threshold && pixels < before, "fewer pixels above %g, received %ld",
                threshold, long{pixels});
    before = pixels;
  }
  for (const auto& [threshold, shown] : {std::pair(1.0, "1.0"), std::pair(-0.25, "-0.25"), std::pair(-1e-7, "-1e-07"),
                                         std::pair(100000.0, "100000.0"), std::pair(1e22, "1e+22"),
                                         std::pair(std::numeric_limits<double>::quiet_NaN(), "nan")}) {
    options.threshold = threshold;
    check_refused(std::string("expected a threshold from 0 to below 1, received ") + shown, [&] { with(options); });
  }
  options = {};
  options.device = -1;
  check_refused("expected the number of a GPU, 0 or more, as device, received -1", [&] { with(options); });
  options = {};
  options.precision = "fp16";
  with(options);
  options.precision = "int8";
  check_refused("expected an int8 bundle, received " + folder.string() + ", which is fp16: the precision is in its "
                "ONNX files, and its accuracy was measured with it; export another bundle: talent-export CHECKPOINT "
                "--int8 -o BUNDLE",
                [&] { with(options); });
  options.precision = "int4";
  check_refused("unknown precision 'int4'; did you mean 'int8'?", [&] { with(options); });
}

void check_graphs_that_do_not_fit() {
  const GraphInterface text = {{{"tokens", "i"}}, {{"colour", "f"}, {"bias", "f"}}};
  const GraphInterface vision = {{{"image", "f"}, {"colour", "f"}, {"bias", "f"}}, {{"logits", "f"}}};
  check_graphs("here", text, vision);
  const std::string again = "; export the bundle again with talent-export";
  const struct {
    GraphInterface text;
    GraphInterface vision;
    std::string expected;
  } cases[] = {
      {{{{"words", "i"}}, text.outputs}, vision,
       "expected text(tokens) and vision(image, ...) -> logits, received text(words) and vision(image, colour, bias) "
       "-> logits"},
      {text, {{{"picture", "f"}}, vision.outputs},
       "expected text(tokens) and vision(image, ...) -> logits, received text(tokens) and vision(picture) -> logits"},
      {text, {vision.inputs, {{"mask", "f"}}},
       "expected text(tokens) and vision(image, ...) -> logits, received text(tokens) and vision(image, colour, bias) "
       "-> mask"},
      {{text.inputs, {{"colour", "f"}}}, vision,
       "vision expects the prompt tensor 'bias', which text does not make (it makes colour)"},
      {{text.inputs, {{"colour", "f"}, {"bias", "h"}}}, vision, "vision expects 'bias' as f, text makes h"},
      {{text.inputs, {{"more", "f"}, {"colour", "f"}, {"bias", "f"}, {"image", "f"}}}, vision,
       "text makes prompt tensors that vision does not take: image, more"}};
  for (const auto& [one, other, expected] : cases) {
    check_refused("here: " + expected + again, [&, one = one, other = other] { check_graphs("here", one, other); });
  }
}

}  // namespace

int main() {
  const TemporaryFolder temporary;
  folder = temporary.path;
  toy_bundle(folder);
  check_choice();
  check_built_without();
  check_options();
  check_graphs_that_do_not_fit();
  return check::result();
}
