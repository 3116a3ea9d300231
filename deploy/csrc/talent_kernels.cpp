#include "talent_kernels.h"

#include "rca_kernel.h"

int32_t talent_kernels_interface(void) { return 1; }

const char* talent_rca_cost_aggregation(const void* visual, const void* text, const void* weight, const void* bias,
                                        void* output, int64_t visual_batch, int64_t batch, int64_t tokens, int64_t words,
                                        int64_t width, int32_t type, int32_t activation, int32_t method, void* stream) {
  using namespace talent;
  const RcaProblem problem = {visual, text,   weight, bias,  output, visual_batch,
                              batch,  tokens, words,  width, RcaType{type}, RcaActivation{activation}};
  return rca_cost_aggregation(problem, RcaMethod{method}, static_cast<CUstream_st*>(stream));
}
