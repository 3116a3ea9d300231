// A library with the interface of deploy/csrc/talent_kernels.h that computes with the reference on the host and keeps
// what it was called with: test_rca_kernels.py holds Python's side of the interface against it where no GPU is.
#include "talent_kernels.h"
#include "talent_reference.h"

extern "C" {

struct Call {
  const void* pointers[5];
  int64_t sizes[5];
  int32_t numbers[3];
  void* stream;
};

Call last_call;

int32_t talent_kernels_interface(void) { return INTERFACE; }
}

const char* talent_rca_cost_aggregation(const void* visual, const void* text, const void* weight, const void* bias,
                                        void* output, int64_t visual_batch, int64_t batch, int64_t tokens, int64_t words,
                                        int64_t width, int32_t type, int32_t activation, int32_t method, void* stream) {
  last_call = {{visual, text, weight, bias, output}, {visual_batch, batch, tokens, words, width},
               {type, activation, method}, stream};
  if (words == 0) return "expected at least one word";  // in words that the test knows
  return talent_rca_reference(visual, text, weight, bias, output, visual_batch, batch, tokens, words, width, type,
                              activation);
}
