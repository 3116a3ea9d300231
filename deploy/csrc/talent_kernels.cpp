#include "talent_kernels.h"

#include "picture_kernel.h"
#include "rca_kernel.h"

int32_t talent_kernels_interface(void) { return 1; }

const char* talent_rca_cost_aggregation(const void* visual, const void* text, const void* weight, const void* bias,
                                        void* output, int64_t visual_batch, int64_t batch, int64_t tokens,
                                        int64_t words, int64_t width, int32_t type, int32_t activation, int32_t method,
                                        void* stream) {
  using namespace talent;
  const RcaProblem problem = {visual, text,   weight, bias,  output, visual_batch,
                              batch,  tokens, words,  width, RcaType{type}, RcaActivation{activation}};
  return rca_cost_aggregation(problem, RcaMethod{method}, static_cast<CUstream_st*>(stream));
}

const char* talent_picture_to_input(const void* pixels, int64_t width, int64_t height, int64_t stride, int32_t format,
                                    void* output, int64_t size, int32_t type, void* stream) {
  using namespace talent;
  return picture_to_input({pixels, width, height, stride, PictureFormat{format}, output, size, PictureType{type}},
                          static_cast<CUstream_st*>(stream));
}

const char* talent_logits_to_mask(const void* logits, int32_t type, int64_t batch, int64_t grid_width,
                                  int64_t grid_height, int64_t size, int64_t width, int64_t height, float threshold,
                                  uint8_t inside, uint8_t* mask, float* probability, void* totals, void* stream) {
  using namespace talent;
  const PictureMask problem = {logits, PictureType{type}, batch,       grid_width, grid_height, size,
                               width,  height,            threshold,   inside,     mask,        probability,
                               static_cast<PictureTotals*>(totals)};
  return logits_to_mask(problem, static_cast<CUstream_st*>(stream));
}
