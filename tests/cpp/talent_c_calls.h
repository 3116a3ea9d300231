/* What test_talent_c.cpp asks of talent_c_calls.c. */
#ifndef TALENT_C_CALLS_H
#define TALENT_C_CALLS_H

#include "talent/talent_c.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Both return how many of their checks failed, and say which. */
int check_calls(talent_segmenter* segmenter, const uint8_t* rgb, int32_t width, int32_t height);
int check_refusals(talent_segmenter* segmenter, const char* bundle, const uint8_t* rgb, int32_t width, int32_t height);

#ifdef __cplusplus
}
#endif

#endif /* TALENT_C_CALLS_H */
