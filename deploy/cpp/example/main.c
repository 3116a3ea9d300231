/* What main.cpp does, through the C interface: talent_segment_c BUNDLE PICTURE SENTENCE MASK, with a PPM file (P6, 8
 * bits, no comments). */
#include <stdio.h>
#include <stdlib.h>

#include "talent/talent_c.h"

enum { MOST_SIDE = 32766, BAD_INPUT = 2 };

static int fail(const char* message) {
  fprintf(stderr, "talent_segment_c: %s\n", message);
  return BAD_INPUT;
}

/* uint8 [height, width, 3], to be freed; NULL where it cannot be read. */
static uint8_t* read_picture(const char* path, int32_t* width, int32_t* height) {
  FILE* file = fopen(path, "rb");
  uint8_t* pixels = NULL;
  int columns = 0, rows = 0;
  if (file == NULL) {
    return NULL;
  }
  if (fscanf(file, "P6 %d %d 255", &columns, &rows) == 2 && fgetc(file) != EOF && columns > 0 && rows > 0 &&
      columns <= MOST_SIDE && rows <= MOST_SIDE) {
    const size_t bytes = 3 * (size_t)columns * (size_t)rows;
    pixels = malloc(bytes);
    if (pixels != NULL && fread(pixels, 1, bytes, file) != bytes) {
      free(pixels);
      pixels = NULL;
    }
  }
  fclose(file);
  *width = columns;
  *height = rows;
  return pixels;
}

static int write_mask(const char* path, const uint8_t* mask, int32_t width, int32_t height) {
  FILE* file = fopen(path, "wb");
  const size_t area = (size_t)width * (size_t)height;
  int written;
  if (file == NULL) {
    return 0;
  }
  fprintf(file, "P5\n%d %d\n255\n", (int)width, (int)height);
  written = fwrite(mask, 1, area, file) == area;
  return fclose(file) == 0 && written;
}

int main(int count, char** arguments) {
  talent_segmenter* segmenter = NULL;
  talent_prompt* prompt = NULL;
  talent_photo photo = {NULL, 0, 0, 0, TALENT_RGB};
  talent_answer answer = {NULL, 0, NULL, 0, 0, 0, 0, 0, 0};
  uint8_t *pixels, *mask;
  int code = 0;
  if (count != 5) {
    return fail("usage: talent_segment_c BUNDLE PICTURE SENTENCE MASK");
  }
  pixels = read_picture(arguments[2], &photo.width, &photo.height);
  if (pixels == NULL) {
    return fail("expected a PPM file (P6, 8 bits) as PICTURE");
  }
  mask = malloc((size_t)photo.width * (size_t)photo.height);
  photo.pixels = pixels;
  photo.stride = 3 * (int64_t)photo.width;
  answer.mask = mask;
  answer.mask_stride = photo.width;
  if (talent_load(arguments[1], NULL, &segmenter) != TALENT_OK ||
      talent_encode(segmenter, arguments[3], &prompt) != TALENT_OK ||
      talent_segment(segmenter, &photo, prompt, &answer) != TALENT_OK) {
    code = fail(talent_last_error());
  } else if (!write_mask(arguments[4], mask, photo.width, photo.height)) {
    code = fail("cannot write MASK");
  } else {
    printf("box %d %d %d %d, score %.3f: %s\n", (int)answer.x0, (int)answer.y0, (int)answer.x1, (int)answer.y1,
           answer.score, arguments[4]);
  }
  talent_free_prompt(prompt);
  talent_free(segmenter);
  free(mask);
  free(pixels);
  return code;
}
