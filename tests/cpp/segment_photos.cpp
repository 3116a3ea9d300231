// Answers of a segmenter about many photos, for tests/deploy/test_cpp_segmenter.py.
//
//   segment_photos <bundle> <backend> <photos> <answers> [<times> | together]
//
// photos: for each width, height, stride, format and size of its sentence as int32, the sentence, and the pixels
// [height, stride]. stdout: "opened", the backend and why no other was taken; for each photo "ok", x0, y0, x1, y1 (-1
// where the mask is empty), score, or "error" and the message; then frames, prompt hits and prompt misses. answers: for
// each that is "ok" the mask uint8 [height, width] and the probability float32 [height, width]. Words are separated by
// tabs. times: goes through the photos as often, writes the last answers, and tells last how many KiB of memory the
// process had after a tenth of the times and after all. together: asks all sentences about the first photo, at once.
//
// Exit code 2, with the message on stderr, where the segmenter cannot be opened.
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "talent/errors.h"
#include "talent/segmenter.h"

namespace {

struct Question {
  std::string sentence;
  std::string pixels;
  talent::PhotoView photo;
};

std::vector<Question> read_questions(const char* path) {
  std::ifstream input(path, std::ios::binary);
  const std::string content{std::istreambuf_iterator<char>(input), {}};
  std::vector<Question> questions;
  for (size_t place = 0; place < content.size();) {
    int32_t numbers[5];
    std::memcpy(numbers, content.data() + place, sizeof numbers);
    const auto [width, height, stride, format, size] = numbers;
    place += sizeof numbers;
    const auto bytes = static_cast<size_t>(int64_t{height} * stride);
    questions.push_back({content.substr(place, static_cast<size_t>(size)),
                         content.substr(place + static_cast<size_t>(size), bytes),
                         {nullptr, width, height, stride, static_cast<talent::PixelFormat>(format)}});
    place += static_cast<size_t>(size) + bytes;
  }
  for (Question& question : questions) {
    question.photo.pixels = reinterpret_cast<const uint8_t*>(question.pixels.data());
  }
  return questions;
}

// "ok" and the numbers of an answer; its pixels into `output`.
std::string tell(const talent::Segmentation& answer, std::ostream& output) {
  const talent::Box box = answer.box.value_or(talent::Box{-1, -1, -1, -1});
  char line[200];
  std::snprintf(line, sizeof line, "ok\t%d\t%d\t%d\t%d\t%.9g\n", box.x0, box.y0, box.x1, box.y1, answer.score);
  output.write(reinterpret_cast<const char*>(answer.mask.data()), static_cast<std::streamsize>(answer.mask.size()));
  output.write(reinterpret_cast<const char*>(answer.probability.data()),
               static_cast<std::streamsize>(answer.probability.size() * sizeof(float)));
  return line;
}

// One round: a line for each photo.
std::string ask(talent::Segmenter& segmenter, const std::vector<Question>& questions, std::ostream& output) {
  std::string lines;
  for (const Question& question : questions) {
    try {
      lines += tell(segmenter(question.sentence, question.photo, talent::Output::kMaskAndProbability), output);
    } catch (const talent::Error& error) {
      lines += std::string("error\t") + error.what() + "\n";
    }
  }
  return lines;
}

std::string ask_together(talent::Segmenter& segmenter, const std::vector<Question>& questions, std::ostream& output) {
  std::vector<talent::Prompt> prompts;
  for (const Question& question : questions) {
    prompts.push_back(segmenter.encode(question.sentence));
  }
  std::string lines;
  for (const talent::Segmentation& answer :
       segmenter.segment_many(questions.front().photo, prompts, talent::Output::kMaskAndProbability)) {
    lines += tell(answer, output);
  }
  return lines;
}

long memory_in_kib() {
  std::ifstream statm("/proc/self/statm");
  long total = 0, resident = 0;
  statm >> total >> resident;
  return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 5 && count != 6) {
    std::fprintf(stderr, "usage: segment_photos <bundle> <backend> <photos> <answers> [<times> | together]\n");
    return 1;
  }
  try {
    talent::Options options;
    options.backend = arguments[2];
    options.threads = 1;
    talent::Segmenter segmenter(arguments[1], options);
    std::printf("opened\t%s", segmenter.backend_name().c_str());
    for (const std::string& reason : segmenter.auto_report()) {
      std::printf("\t%s", reason.c_str());
    }
    const std::vector<Question> questions = read_questions(arguments[3]);
    const std::string how = count == 6 ? arguments[5] : "1";
    const bool together = how == "together";
    const long times = together ? 1 : std::stol(how);
    long before = 0;
    std::ofstream nowhere;
    for (long time = 1; time < times; ++time) {
      ask(segmenter, questions, nowhere);
      before = time == times / 10 ? memory_in_kib() : before;
    }
    std::ofstream output(arguments[4], std::ios::binary);
    std::printf("\n%s", (together ? ask_together : ask)(segmenter, questions, output).c_str());
    const talent::SegmenterStats stats = segmenter.stats();
    std::printf("%ld\t%ld\t%ld\n%ld\t%ld\n", long{stats.frames}, long{stats.prompt_hits}, long{stats.prompt_misses},
                before, memory_in_kib());
    return output.flush() ? 0 : 1;
  } catch (const talent::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
