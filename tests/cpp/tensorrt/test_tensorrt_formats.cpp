// Pictures of all formats and engines of all types through the TensorRT backend, with the picture kernels' own code:
// the masks are the CPU's.
#include "toy_frames.h"

using talent::PixelFormat;

namespace {

const Tokens kSentences[] = {sentence(4, 0, 0), sentence(0, 5, 0), sentence(3, 0, 6)};

void check_formats() {
  const std::pair<const char*, toy::Plan> plans[] = {{"toy vision", {true}},
                                                     {"toy vision logits=half", {true, 16, false, false, true}},
                                                     {"toy vision image=half prompt=half logits=half size=32",
                                                      {true, 32, true, true, true}}};
  for (const auto& [text, plan] : plans) {
    ToyEngines engines;
    engines.vision = text;
    engines.text = plan.prompt_half ? "toy text prompt=half" : "toy text";
    engines.image_size = plan.size;
    ToyTensorRt toy(engines);
    check::that(toy.backend->name() == kToyRuntime && toy.backend->most_expressions() == 4 &&
                    toy.backend->notes().empty(),
                "%s to be %s", text, kToyRuntime);
    std::vector<talent::PromptTensors> prompts;
    for (const Tokens& tokens : kSentences) {
      prompts.push_back(toy.backend->text(tokens));
    }
    std::vector<PixelFormat> formats = {PixelFormat::kRgb};
    if (!plan.logits_half) {
      formats = {PixelFormat::kRgb, PixelFormat::kBgr, PixelFormat::kRgba, PixelFormat::kBgra, PixelFormat::kGrey};
    }
    for (const PixelFormat format : formats) {
      const int wide = 30 + 9 * static_cast<int>(format);
      const Picture picture(wide, 70 - wide, format, 7);
      const std::string what = std::string(text) + ", format " + std::to_string(static_cast<int>(format));
      check_answer(toy.segment(picture.view(), {&prompts[0]}).at(0),
                   expected_answer(picture.view(), kSentences[0], plan), what);
      const auto answers = toy.segment(picture.view(), {&prompts[2], &prompts[0], &prompts[1]}, true);
      for (const int index : {0, 1, 2}) {
        check_answer(answers.at(static_cast<size_t>(index)),
                     expected_answer(picture.view(), kSentences[(index + 2) % 3], plan), what + ", of three");
      }
    }
  }
  check_nothing_is_left("frames of all formats");
}

}  // namespace

int main() {
  check_formats();
  return check::result();
}
