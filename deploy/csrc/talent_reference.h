/* The operator on the host, for callers that are not C++. */
#pragma once

#include <stdint.h>

#include "export.h"

#ifdef __cplusplus
extern "C" {
#endif

/* `rca_reference` of rca_kernel.h: as talent_rca_cost_aggregation of talent_kernels.h, on pointers of the host. */
TALENT_EXPORT const char* talent_rca_reference(const void* visual, const void* text, const void* weight,
                                               const void* bias, void* output, int64_t visual_batch, int64_t batch,
                                               int64_t tokens, int64_t words, int64_t width, int32_t type,
                                               int32_t activation);

#ifdef __cplusplus
}
#endif
