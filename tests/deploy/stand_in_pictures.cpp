// Plays the kernels for pictures of libtalent_kernels.so on stand_in_cuda.cpp: computed by the C++ runtime's own code
// for the CPU when the stream comes to them.
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "picture_kernel.h"
#include "talent/image.h"
#include "talent_kernels.h"

extern "C" int32_t stand_in_queue(void* stream, int32_t (*callback)(void*), void* data);

namespace {

using Work = std::function<void()>;

std::vector<std::unique_ptr<Work>> kept;  // a captured one runs again and again

const char* queue(void* stream, Work work) {
  kept.push_back(std::make_unique<Work>(std::move(work)));
  const auto run = [](void* data) -> int32_t {
    (*static_cast<Work*>(data))();
    return 0;
  };
  return stand_in_queue(stream, run, kept.back().get()) == 0 ? nullptr : "the stand-in does not queue this";
}

}  // namespace

int32_t talent_kernels_interface(void) { return 1; }

const char* talent_picture_to_input(const void* pixels, int64_t width, int64_t height, int64_t stride, int32_t format,
                                    void* output, int64_t size, int32_t type, void* stream) {
  if (type != 0) {
    return "this stand-in writes float32 only";
  }
  if (const char* wrong = talent::picture_input_error(
          {pixels, width, height, stride, talent::PictureFormat{format}, output, size, talent::PictureType{type}})) {
    return wrong;
  }
  const talent::PhotoView photo = {static_cast<const uint8_t*>(pixels), static_cast<int>(width),
                                   static_cast<int>(height), stride, talent::PixelFormat{format}};
  return queue(stream, [=] { talent::preprocess(photo, static_cast<int>(size), static_cast<float*>(output)); });
}

const char* talent_logits_to_mask(const void* logits, int32_t type, int64_t batch, int64_t grid_width,
                                  int64_t grid_height, int64_t size, int64_t width, int64_t height, float threshold,
                                  uint8_t inside, uint8_t* mask, float* probability, void* totals, void* stream) {
  if (type != 0 || probability != nullptr) {
    return "this stand-in reads float32 only and writes no probability";
  }
  const talent::Letterbox letterbox = {static_cast<int>(width), static_cast<int>(height), static_cast<int>(size)};
  return queue(stream, [=] {
    for (int64_t index = 0; index < batch; ++index) {
      uint8_t* own = mask + index * width * height;
      talent::PictureTotals sums = {};
      try {
        const talent::MaskSummary found =
            talent::mask_on_photo(static_cast<const float*>(logits) + index * grid_width * grid_height,
                                  static_cast<int>(grid_height), static_cast<int>(grid_width), letterbox, threshold, own);
        sums.pixels = static_cast<uint32_t>(found.pixels);
        sums.probability = static_cast<uint64_t>(found.score * static_cast<double>(found.pixels) * 1048576.0 + 0.5);
        if (found.box) {
          sums.before[0] = static_cast<uint32_t>(width - found.box->x0);
          sums.before[1] = static_cast<uint32_t>(height - found.box->y0);
          sums.behind[0] = static_cast<uint32_t>(found.box->x1);
          sums.behind[1] = static_cast<uint32_t>(found.box->y1);
        }
      } catch (const talent::Error&) {  // logits that are not finite
        sums.not_finite = 1;
      }
      for (int64_t pixel = 0; pixel < width * height; ++pixel) {
        own[pixel] = own[pixel] != 0 ? inside : 0;
      }
      std::memcpy(static_cast<talent::PictureTotals*>(totals) + index, &sums, sizeof(sums));
    }
  });
}
