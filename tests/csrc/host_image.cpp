// deploy/cpp's pictures for ctypes: an Error comes back as its words, which hold until the next call.
#include <algorithm>
#include <string>

#include "talent/image.h"

namespace {

std::string words;

template <typename Call>
const char* words_of(Call call) {
  try {
    call();
    return nullptr;
  } catch (const talent::Error& error) {
    words = error.what();
    return words.c_str();
  }
}

}  // namespace

extern "C" TALENT_API const char* talent_preprocess(const uint8_t* pixels, int32_t width, int32_t height,
                                                    int64_t stride, int32_t format, int32_t size, float* input) {
  return words_of([&] {
    talent::preprocess({pixels, width, height, stride, talent::PixelFormat{format}}, size, input);
  });
}

// `summary` receives: pixels, score, x0, y0, x1, y1.
extern "C" TALENT_API const char* talent_mask_on_photo(const float* logits, int32_t grid_height, int32_t grid_width,
                                                       int32_t width, int32_t height, int32_t size, float threshold,
                                                       uint8_t* mask, float* probability, double* summary) {
  return words_of([&] {
    const talent::MaskSummary found =
        talent::mask_on_photo(logits, grid_height, grid_width, {width, height, size}, threshold, mask, probability);
    const talent::Box box = found.box.value_or(talent::Box{0, 0, 0, 0});
    const double values[] = {static_cast<double>(found.pixels), found.score,
                             static_cast<double>(box.x0),       static_cast<double>(box.y0),
                             static_cast<double>(box.x1),       static_cast<double>(box.y1)};
    std::copy_n(values, 6, summary);
  });
}
