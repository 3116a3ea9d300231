/* A C99 program's calls of libtalent. */
#include "talent_c_calls.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures;

static void check_that(int holds, const char* expected) {
  if (!holds) {
    ++failures;
    fprintf(stderr, "expected %s; the last error: %s\n", expected, talent_last_error());
  }
}

static void check_refused(talent_status status, const char* message) {
  if (status != TALENT_BAD_INPUT || strcmp(talent_last_error(), message) != 0) {
    ++failures;
    fprintf(stderr, "expected \"%s\", received \"%s\" (%d)\n", message, talent_last_error(), (int)status);
  }
}

static talent_photo photo_of(const uint8_t* rgb, int32_t width, int32_t height) {
  talent_photo photo = {rgb, 3 * (int64_t)width, width, height, TALENT_RGB};
  return photo;
}

int check_calls(talent_segmenter* segmenter, const uint8_t* rgb, int32_t width, int32_t height) {
  const talent_photo photo = photo_of(rgb, width, height);
  const size_t area = (size_t)width * (size_t)height;
  uint8_t* masks = malloc(3 * area);
  float* probability = malloc(area * sizeof *probability);
  const char* sentences[] = {"r", "g", "r"};
  talent_prompt* prompts[3] = {NULL, NULL, NULL};
  talent_answer answers[3];
  talent_answer alone;
  talent_stats stats = {sizeof stats, 0, 0, 0, 0};
  size_t index;
  size_t above = 0;
  failures = 0;
  check_that(masks != NULL && probability != NULL, "memory");
  check_that(strlen(talent_version()) >= 5, "a version");
  check_that(strcmp(talent_backend_name(segmenter), "onnxruntime") == 0, "the name of the backend");
  check_that(strcmp(talent_auto_report(segmenter), "") == 0, "nothing to report");
  check_that(talent_warmup(segmenter, 1) == TALENT_OK, "a warm start");
  memset(answers, 0, sizeof answers);
  memset(&alone, 0, sizeof alone);
  for (index = 0; index < 3; ++index) {
    check_that(talent_encode(segmenter, sentences[index], &prompts[index]) == TALENT_OK, "a prompt");
    answers[index].mask = masks + index * area;
    answers[index].mask_stride = width;
  }
  check_that(talent_segment_many(segmenter, &photo, (const talent_prompt* const*)prompts, 3, answers) == TALENT_OK,
             "three answers");
  check_that(memcmp(masks, masks + 2 * area, area) == 0 && memcmp(masks, masks + area, area) != 0,
             "one answer for each sentence");
  alone.mask = masks + 2 * area;
  alone.mask_stride = width;
  alone.probability = probability;
  memset(alone.mask, 9, area);
  check_that(talent_segment(segmenter, &photo, prompts[1], &alone) == TALENT_OK, "one answer");
  check_that(memcmp(masks + area, alone.mask, area) == 0, "the same mask alone");
  check_that(alone.score == answers[1].score && alone.pixels == answers[1].pixels && alone.x0 == answers[1].x0 &&
                 alone.y1 == answers[1].y1 && alone.x0 < alone.x1 && alone.y0 < alone.y1 && alone.score > 0.8,
             "the same numbers alone");
  for (index = 0; index < area; ++index) {
    above += probability[index] > 0.35f;
  }
  check_that(above > 0 && (int64_t)above == alone.pixels, "as many pixels above the threshold as in the mask");
  check_that(talent_get_stats(segmenter, &stats) == TALENT_OK, "stats");
  check_that(stats.size == sizeof stats && stats.frames == 2 && stats.expressions == 4 && stats.prompt_hits == 1 &&
                 stats.prompt_misses == 2,
             "what was done");
  check_that(talent_close(segmenter) == TALENT_OK && talent_close(segmenter) == TALENT_OK, "to close it, twice");
  check_that(talent_segment(segmenter, &photo, prompts[1], &alone) == TALENT_FAILED &&
                 strcmp(talent_last_error(), "this segmenter is closed") == 0,
             "a closed segmenter to say so");
  for (index = 0; index < 3; ++index) {
    talent_free_prompt(prompts[index]);
  }
  free(masks);
  free(probability);
  return failures;
}

int check_refusals(talent_segmenter* segmenter, const char* bundle, const uint8_t* rgb, int32_t width,
                   int32_t height) {
  talent_photo photo = photo_of(rgb, width, height);
  talent_options options = TALENT_OPTIONS;
  talent_stats stats = {0, 0, 0, 0, 0};
  talent_segmenter* none = segmenter;
  talent_prompt* prompt = NULL;
  talent_prompt* other = NULL;
  const talent_prompt* no_prompt = NULL;
  talent_answer answer;
  memset(&answer, 0, sizeof answer);
  failures = 0;
  check_refused(talent_load(NULL, NULL, &none), "expected the directory of a bundle, received NULL");
  check_that(none == NULL, "no segmenter after an error");
  check_refused(talent_load(bundle, NULL, NULL), "expected a place for the segmenter, received NULL");
  check_refused(talent_load("no/such", NULL, &none),
                "no such bundle: no/such; expected a directory that talent-export wrote");
  options.backend = "tensort";
  check_refused(talent_load(bundle, &options, &none), "unknown backend 'tensort'; did you mean 'tensorrt'?");
  options.backend = NULL;
  options.threshold = 1.5;
  check_refused(talent_load(bundle, &options, &none), "expected a threshold from 0 to below 1, received 1.5");
  options.size = sizeof options + 8;
  check_that(talent_load(bundle, &options, &none) == TALENT_BAD_INPUT &&
                 strncmp(talent_last_error(), "expected the size of talent_options to be from ", 47) == 0,
             "a structure of another size to be refused");
  check_refused(talent_encode(NULL, "r", &prompt), "expected a segmenter, received NULL");
  check_refused(talent_encode(segmenter, NULL, &prompt), "expected a sentence, received NULL");
  check_refused(talent_encode(segmenter, "r", NULL), "expected a place for the prompt, received NULL");
  check_refused(talent_encode(segmenter, "", &prompt),
                "expected a sentence that names an object, received '', which holds no words");
  check_that(talent_encode(segmenter, "r", &prompt) == TALENT_OK && prompt != NULL, "a prompt");
  other = prompt;
  check_that(talent_encode(segmenter, "", &other) == TALENT_BAD_INPUT && other == NULL, "no prompt after an error");
  check_refused(talent_segment(NULL, &photo, prompt, &answer), "expected a segmenter, received NULL");
  check_refused(talent_segment(segmenter, NULL, prompt, &answer), "expected a photo, received NULL");
  check_refused(talent_segment(segmenter, &photo, NULL, &answer), "expected a prompt, received NULL");
  check_refused(talent_segment(segmenter, &photo, prompt, NULL), "expected answers, received NULL");
  check_refused(talent_segment(segmenter, &photo, prompt, &answer), "expected a buffer for the mask, received none");
  check_refused(talent_segment_many(segmenter, &photo, NULL, 1, &answer), "expected prompts, received NULL");
  check_refused(talent_segment_many(segmenter, &photo, &no_prompt, 1, &answer), "expected a prompt, received NULL");
  check_refused(talent_segment_many(segmenter, &photo, &no_prompt, 0, &answer),
                "expected a list of prompts, at least one, received none");
  photo.width = 40000;
  check_refused(talent_segment(segmenter, &photo, prompt, &answer),
                "expected a picture with sides from 1 to 32766 pixels, received 40000 x 90");
  check_refused(talent_get_stats(segmenter, NULL), "expected a place for the stats, received NULL");
  check_that(talent_get_stats(segmenter, &stats) == TALENT_BAD_INPUT, "a size that nobody set to be refused");
  check_refused(talent_close(NULL), "expected a segmenter, received NULL");
  check_refused(talent_warmup(NULL, 1), "expected a segmenter, received NULL");
  check_that(talent_backend_name(NULL) == NULL && talent_auto_report(NULL) == NULL, "no name without a segmenter");
  talent_free(NULL);
  talent_free_prompt(NULL);
  talent_free_prompt(prompt);
  return failures;
}
