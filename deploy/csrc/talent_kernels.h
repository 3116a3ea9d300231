/* The kernels for callers that are not C++: Python loads this library with ctypes. */
#pragma once

#include <stdint.h>

#include "export.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Counts up when a call below changes, so that a library of another version is noticed instead of called. */
TALENT_EXPORT int32_t talent_kernels_interface(void);

/* `rca_cost_aggregation` of rca_kernel.h. Pointers are of the current device; type, activation and method are the
   numbers of RcaType, RcaActivation and RcaMethod; stream is a cudaStream_t. NULL, or what is wrong, which is not to be
   freed. */
TALENT_EXPORT const char* talent_rca_cost_aggregation(const void* visual, const void* text, const void* weight,
                                                      const void* bias, void* output, int64_t visual_batch,
                                                      int64_t batch, int64_t tokens, int64_t words, int64_t width,
                                                      int32_t type, int32_t activation, int32_t method, void* stream);

/* `picture_to_input` of picture_kernel.h; format and type are the numbers of PictureFormat and PictureType. */
TALENT_EXPORT const char* talent_picture_to_input(const void* pixels, int64_t width, int64_t height, int64_t stride,
                                                  int32_t format, void* output, int64_t size, int32_t type,
                                                  void* stream);

/* `logits_to_mask` of picture_kernel.h; probability and totals (PictureTotals) may be NULL. */
TALENT_EXPORT const char* talent_logits_to_mask(const void* logits, int32_t type, int64_t batch, int64_t grid_width,
                                                int64_t grid_height, int64_t size, int64_t width, int64_t height,
                                                float threshold, uint8_t inside, uint8_t* mask, float* probability,
                                                void* totals, void* stream);

#ifdef __cplusplus
}
#endif
