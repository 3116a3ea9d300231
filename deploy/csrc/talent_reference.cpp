#include "talent_reference.h"

#include "rca_kernel.h"

const char* talent_rca_reference(const void* visual, const void* text, const void* weight, const void* bias,
                                 void* output, int64_t visual_batch, int64_t batch, int64_t tokens, int64_t words,
                                 int64_t width, int32_t type, int32_t activation) {
  using namespace talent;
  return rca_reference({visual, text, weight, bias, output, visual_batch, batch, tokens, words, width, RcaType{type},
                        RcaActivation{activation}});
}
