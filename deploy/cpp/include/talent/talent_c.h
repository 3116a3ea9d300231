/* libtalent for C, and for whatever calls C: the calls of talent/segmenter.h.
 *
 *   talent_segmenter* segmenter = NULL;
 *   talent_prompt* prompt = NULL;
 *   if (talent_load("bundle", NULL, &segmenter) != TALENT_OK ||
 *       talent_encode(segmenter, "the red mug on the left", &prompt) != TALENT_OK) {
 *     fprintf(stderr, "%s\n", talent_last_error());
 *   }
 *   talent_answer answer = {.mask = memory, .mask_stride = photo.width};
 *   talent_segment(segmenter, &photo, prompt, &answer);    (once per frame; nothing is to be freed)
 *   talent_free_prompt(prompt);
 *   talent_free(segmenter);
 *
 * Threads may share a segmenter, and its prompts. No C++ exception leaves these functions. A pointer that must not be
 * NULL is refused as bad input.
 *
 * The binary interface: names, numbers and the fields of structures stay what they are. talent_options and talent_stats
 * may grow at their end, and begin with the size that the program was compiled with, so that an older program goes on
 * working with a newer library; the other way round, what the library does not know is refused. Texts are UTF-8 and end
 * with a zero byte.
 */
#ifndef TALENT_TALENT_C_H
#define TALENT_TALENT_C_H

#include <stddef.h>
#include <stdint.h>

#include "talent/export.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct talent_segmenter talent_segmenter; /* a loaded bundle */
typedef struct talent_prompt talent_prompt;       /* an encoded sentence */

/* What a call came to. What the others mean is in talent_last_error. */
typedef int32_t talent_status;
enum {
  TALENT_OK = 0,
  TALENT_BAD_INPUT = 1, /* what was given cannot be; the message says what to do */
  TALENT_FAILED = 2     /* anything else: a segmenter that was closed, no memory */
};

/* The bytes of a pixel in their order. A is not looked at, and grey stands for all three colours. */
enum { TALENT_RGB = 0, TALENT_BGR = 1, TALENT_RGBA = 2, TALENT_BGRA = 3, TALENT_GREY = 4 };

/* How a bundle is run. NULL stands for what TALENT_OPTIONS says. */
typedef struct talent_options {
  size_t size;           /* sizeof(talent_options) */
  const char* backend;   /* "auto", "onnxruntime", "tensorrt" or "tensorrt_rtx"; NULL: "auto" */
  const char* precision; /* refuse a bundle that is in another one than this; NULL: any */
  const char* plugin;    /* path of libtalent_plugin.so; NULL: beside libtalent, or wherever the loader finds it */
  double threshold;      /* below 0: the bundle's */
  size_t prompts;        /* sentences whose prompt tensors are kept */
  int32_t device;        /* which GPU */
  int32_t threads;       /* for ONNX Runtime, in each operator; 0: one per core */
  int32_t cuda_graphs;   /* launch what TensorRT does for a frame as one; 0: do not */
} talent_options;

/* What to begin with: talent_options options = TALENT_OPTIONS; */
#define TALENT_OPTIONS {sizeof(talent_options), NULL, NULL, NULL, -1.0, 64, 0, 0, 1}

/* A photo that somebody else holds: uint8 [height, width, bytes of a pixel], rows `stride` bytes apart. */
typedef struct talent_photo {
  const uint8_t* pixels;
  int64_t stride;
  int32_t width;
  int32_t height;
  int32_t format; /* TALENT_RGB, ... */
} talent_photo;

/* Memory of the caller's for an answer, and what the mask adds up to. */
typedef struct talent_answer {
  uint8_t* mask;       /* [height, width] of the photo: receives 255 where the object is, else 0 */
  int64_t mask_stride; /* bytes between rows of the mask, at least the width of the photo */
  float* probability;  /* [height, width] without gaps between rows, or NULL */
  double score;        /* receives the mean probability inside the mask, 0 where it is empty */
  int64_t pixels;      /* receives how many are inside; the box is of no use where none is */
  int32_t x0;          /* receives the smallest box around the mask, in pixels of the photo, ends excluded */
  int32_t y0;
  int32_t x1;
  int32_t y1;
} talent_answer;

/* What a segmenter has done: pictures that the vision graph saw, masks that came of them, and sentences that were
 * encoded already (hits), or had to be (misses). */
typedef struct talent_stats {
  size_t size; /* sizeof(talent_stats) */
  int64_t frames;
  int64_t expressions;
  int64_t prompt_hits;
  int64_t prompt_misses;
} talent_stats;

/* "0.1.0", say: of the library that runs. */
TALENT_API const char* talent_version(void);

/* Why the last call of this thread that did not return TALENT_OK failed, in one line; "" before the first. It stands
 * until the next one fails. */
TALENT_API const char* talent_last_error(void);

/* Load a bundle. options: NULL for TALENT_OPTIONS. *segmenter receives what talent_free frees, or NULL after an
 * error. */
TALENT_API talent_status talent_load(const char* bundle, const talent_options* options, talent_segmenter** segmenter);

/* Waits for the calls under way, and frees. NULL is fine. No thread may use the segmenter any more. */
TALENT_API void talent_free(talent_segmenter* segmenter);

/* Waits for the calls under way, and frees what the backend holds; later calls return TALENT_FAILED. */
TALENT_API talent_status talent_close(talent_segmenter* segmenter);

/* "onnxruntime", "tensorrt" or "tensorrt_rtx"; NULL without a segmenter. Lives as long as the segmenter. */
TALENT_API const char* talent_backend_name(const talent_segmenter* segmenter);

/* Why "auto" took no TensorRT, a line for each reason; "" where it did, NULL without a segmenter. */
TALENT_API const char* talent_auto_report(const talent_segmenter* segmenter);

/* Run both graphs on noise, so that the first frame takes no longer than the others. */
TALENT_API talent_status talent_warmup(talent_segmenter* segmenter, int32_t runs);

/* A sentence, once. *prompt receives what talent_free_prompt frees, or NULL after an error. It may outlive the
 * segmenter, but is good for no other. */
TALENT_API talent_status talent_encode(talent_segmenter* segmenter, const char* sentence, talent_prompt** prompt);

/* NULL is fine. */
TALENT_API void talent_free_prompt(talent_prompt* prompt);

/* One photo and an encoded sentence. */
TALENT_API talent_status talent_segment(talent_segmenter* segmenter, const talent_photo* photo,
                                        const talent_prompt* prompt, talent_answer* answer);

/* `count` sentences about one photo: what does not depend on the words is computed once. prompts, answers: [count]. */
TALENT_API talent_status talent_segment_many(talent_segmenter* segmenter, const talent_photo* photo,
                                             const talent_prompt* const* prompts, size_t count,
                                             talent_answer* answers);

/* The same for a photo in the memory of the GPU. stream: a cudaStream_t, or NULL for the default stream; what was
 * put into it before the call is done before the photo is read. The answers are in the memory of the host. */
TALENT_API talent_status talent_segment_device(talent_segmenter* segmenter, const talent_photo* photo, void* stream,
                                               const talent_prompt* const* prompts, size_t count,
                                               talent_answer* answers);

/* stats->size is set by the caller. */
TALENT_API talent_status talent_get_stats(const talent_segmenter* segmenter, talent_stats* stats);

#ifdef __cplusplus
}
#endif

#endif /* TALENT_TALENT_C_H */
