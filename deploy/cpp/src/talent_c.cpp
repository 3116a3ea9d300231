#include "talent/talent_c.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "talent/segmenter.h"
#include "talent_c_handle.h"

namespace {

constexpr size_t kLongestError = 4096;

// Without memory that has to be made: "no memory" is one of the errors.
thread_local char last_error[kLongestError] = "";

talent_status failed(talent_status status, const char* message) noexcept {
  const size_t size = std::min(std::strlen(message), kLongestError - 1);
  std::memcpy(last_error, message, size);
  last_error[size] = '\0';
  return status;
}

// Runs `call` and turns what it throws into a status.
template <typename Call>
talent_status guarded(Call call) noexcept {
  try {
    call();
    return TALENT_OK;
  } catch (const talent::Error& error) {
    return failed(TALENT_BAD_INPUT, error.what());
  } catch (const std::bad_alloc&) {
    return failed(TALENT_FAILED, "there is not enough memory");
  } catch (const std::exception& error) {
    return failed(TALENT_FAILED, error.what());
  } catch (...) {
    return failed(TALENT_FAILED, "an exception of unknown kind");
  }
}

void require(const void* pointer, const char* what) {
  if (pointer == nullptr) {
    throw talent::Error(std::string("expected ") + what + ", received NULL");
  }
}

// The size of a structure that may have grown since the program was compiled, checked. least: of its first version.
size_t checked_size(size_t size, size_t least, size_t most, const char* name) {
  if (size < least || size > most) {
    throw talent::Error(std::string("expected the size of ") + name + " to be from " + std::to_string(least) + " to " +
                        std::to_string(most) + ", received " + std::to_string(size) + "; set it with sizeof, and run "
                        "the program with the libtalent that it was compiled for or a newer one");
  }
  return size;
}

talent::Options options_of(const talent_options* given) {
  talent_options known = TALENT_OPTIONS;
  if (given != nullptr) {
    constexpr size_t kLeast = offsetof(talent_options, cuda_graphs) + sizeof(int32_t);
    std::memcpy(&known, given, checked_size(given->size, kLeast, sizeof known, "talent_options"));
  }
  const auto text = [](const char* value, const char* otherwise) { return value == nullptr ? otherwise : value; };
  talent::Options options;
  options.backend = text(known.backend, "auto");
  options.precision = text(known.precision, "");
  options.plugin = text(known.plugin, "");
  if (!(known.threshold < 0)) {
    options.threshold = known.threshold;
  }
  options.prompts = known.prompts;
  options.device = known.device;
  options.threads = known.threads;
  options.cuda_graphs = known.cuda_graphs != 0;
  return options;
}

// Photo: PhotoView, or DevicePhotoView with its stream.
template <typename Photo, typename... Stream>
talent_status segment(talent_segmenter* segmenter, const talent_photo* photo, const talent_prompt* const* prompts,
                      size_t count, talent_answer* answers, Stream... stream) noexcept {
  return guarded([&] {
    require(segmenter, "a segmenter");
    require(photo, "a photo");
    require(prompts, "prompts");
    require(answers, "answers");
    std::vector<talent::Prompt> encoded;
    std::vector<talent::MaskBuffer> into;
    for (size_t index = 0; index < count; ++index) {
      require(prompts[index], "a prompt");
      encoded.push_back(prompts[index]->prompt);
      into.push_back({answers[index].mask, answers[index].mask_stride, answers[index].probability});
    }
    const Photo view = {photo->pixels, photo->width, photo->height, photo->stride,
                        static_cast<talent::PixelFormat>(photo->format), stream...};
    const std::vector<talent::MaskSummary> summaries = segmenter->segmenter->segment_many(view, encoded, into);
    for (size_t index = 0; index < count; ++index) {
      const talent::MaskSummary& summary = summaries[index];
      const talent::Box box = summary.box.value_or(talent::Box{0, 0, 0, 0});
      talent_answer& answer = answers[index];
      answer.score = summary.score;
      answer.pixels = summary.pixels;
      answer.x0 = box.x0;
      answer.y0 = box.y0;
      answer.x1 = box.x1;
      answer.y1 = box.y1;
    }
  });
}

}  // namespace

const char* talent_version(void) { return TALENT_VERSION; }

const char* talent_last_error(void) { return last_error; }

talent_status talent_load(const char* bundle, const talent_options* options, talent_segmenter** segmenter) {
  return guarded([&] {
    require(segmenter, "a place for the segmenter");
    *segmenter = nullptr;
    require(bundle, "the directory of a bundle");
    *segmenter = new talent_segmenter(std::make_unique<talent::Segmenter>(bundle, options_of(options)));
  });
}

void talent_free(talent_segmenter* segmenter) { delete segmenter; }

talent_status talent_close(talent_segmenter* segmenter) {
  return guarded([&] {
    require(segmenter, "a segmenter");
    segmenter->segmenter->close();
  });
}

const char* talent_backend_name(const talent_segmenter* segmenter) {
  return segmenter == nullptr ? nullptr : segmenter->segmenter->backend_name().c_str();
}

const char* talent_auto_report(const talent_segmenter* segmenter) {
  return segmenter == nullptr ? nullptr : segmenter->auto_report.c_str();
}

talent_status talent_warmup(talent_segmenter* segmenter, int32_t runs) {
  return guarded([&] {
    require(segmenter, "a segmenter");
    segmenter->segmenter->warmup(runs);
  });
}

talent_status talent_encode(talent_segmenter* segmenter, const char* sentence, talent_prompt** prompt) {
  return guarded([&] {
    require(prompt, "a place for the prompt");
    *prompt = nullptr;
    require(segmenter, "a segmenter");
    require(sentence, "a sentence");
    *prompt = new talent_prompt{segmenter->segmenter->encode(sentence)};
  });
}

void talent_free_prompt(talent_prompt* prompt) { delete prompt; }

talent_status talent_segment(talent_segmenter* segmenter, const talent_photo* photo, const talent_prompt* prompt,
                             talent_answer* answer) {
  return segment<talent::PhotoView>(segmenter, photo, &prompt, 1, answer);
}

talent_status talent_segment_many(talent_segmenter* segmenter, const talent_photo* photo,
                                  const talent_prompt* const* prompts, size_t count, talent_answer* answers) {
  return segment<talent::PhotoView>(segmenter, photo, prompts, count, answers);
}

talent_status talent_segment_device(talent_segmenter* segmenter, const talent_photo* photo, void* stream,
                                    const talent_prompt* const* prompts, size_t count, talent_answer* answers) {
  return segment<talent::DevicePhotoView>(segmenter, photo, prompts, count, answers, stream);
}

talent_status talent_get_stats(const talent_segmenter* segmenter, talent_stats* stats) {
  return guarded([&] {
    require(segmenter, "a segmenter");
    require(stats, "a place for the stats");
    constexpr size_t kLeast = offsetof(talent_stats, prompt_misses) + sizeof(int64_t);
    const size_t size = checked_size(stats->size, kLeast, sizeof(talent_stats), "talent_stats");
    const talent::SegmenterStats done = segmenter->segmenter->stats();
    const talent_stats known = {size, done.frames, done.expressions, done.prompt_hits, done.prompt_misses};
    std::memcpy(stats, &known, size);
  });
}
