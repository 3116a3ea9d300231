// A sentence and a picture in, the mask of the object that is meant out; on a robot the picture comes from a camera.
#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "talent/segmenter.h"

namespace {

constexpr const char* kHelp =
    R"(usage: talent_segment [--backend NAME] [--times N] BUNDLE PICTURE SENTENCE MASK

Writes the mask of the object that SENTENCE means.

  BUNDLE          a directory that talent-export wrote
  PICTURE         a PPM or PGM file (P6 or P5, 8 bits): ffmpeg -i photo.jpg photo.ppm
  SENTENCE        "the red mug on the left"
  MASK            the PGM file to write: 255 where the object is, else 0
  --backend NAME  auto (the default), onnxruntime, tensorrt or tensorrt_rtx
  --times N       segment the picture N times (1), and tell what a frame took

example: talent_segment bundle photo.ppm "the red mug on the left" mask.pgm
)";

struct Arguments {
  talent::Options options;
  int times = 1;
  std::vector<std::string> words;
};

Arguments parse(int count, char** texts) {
  Arguments arguments;
  for (int index = 1; index < count; ++index) {
    const std::string text = texts[index];
    if (text != "--backend" && text != "--times") {
      arguments.words.push_back(text);
      continue;
    }
    if (++index == count) {
      throw talent::Error("expected a value behind " + text + ", received none; see talent_segment --help");
    }
    if (text == "--backend") {
      arguments.options.backend = texts[index];
      continue;
    }
    char* end = nullptr;
    const long times = std::strtol(texts[index], &end, 10);
    if (*end != '\0' || times < 1 || times > 1'000'000) {
      throw talent::Error("expected --times from 1 to 1000000, received " + std::string(texts[index]));
    }
    arguments.times = static_cast<int>(times);
  }
  if (arguments.words.size() != 4) {
    throw talent::Error("expected BUNDLE PICTURE SENTENCE MASK, received " + std::to_string(arguments.words.size()) +
                        " of them; see talent_segment --help");
  }
  return arguments;
}

struct Picture {
  std::vector<uint8_t> pixels;
  int width = 0;
  int height = 0;
  int channels = 3;

  talent::PhotoView view() const {
    return {pixels.data(), width, height, int64_t{width} * channels,
            channels == 1 ? talent::PixelFormat::kGrey : talent::PixelFormat::kRgb};
  }
};

// The next number of a header, behind white space and comments; -1 for none.
int next_number(std::istream& file) {
  for (int next = file.peek(); next == '#' || std::isspace(next); next = file.peek()) {
    std::string comment;
    next == '#' ? static_cast<void>(std::getline(file, comment)) : static_cast<void>(file.get());
  }
  int number = -1;
  return file >> number ? number : -1;
}

Picture read_picture(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw talent::Error("cannot read the picture " + path + "; expected a PPM or PGM file");
  }
  std::string kind(2, '\0');
  file.read(kind.data(), 2);
  Picture picture;
  picture.channels = kind == "P5" ? 1 : 3;
  picture.width = next_number(file);
  picture.height = next_number(file);
  const int most = next_number(file);
  file.get();  // the one white space behind the header
  constexpr int kMostSide = 32766;
  if ((kind != "P5" && kind != "P6") || std::min(picture.width, picture.height) < 1 ||
      std::max(picture.width, picture.height) > kMostSide || most != 255 || !file) {
    throw talent::Error("not a picture: " + path + "; expected a PPM or PGM file of 8 bits (P6 or P5)");
  }
  picture.pixels.assign(std::istreambuf_iterator<char>(file), {});
  const size_t expected = static_cast<size_t>(picture.width) * static_cast<size_t>(picture.height) *
                          static_cast<size_t>(picture.channels);
  if (picture.pixels.size() < expected) {
    throw talent::Error(path + " was cut short: expected " + std::to_string(expected) + " bytes of pixels, received " +
                        std::to_string(picture.pixels.size()) + "; make it again");
  }
  return picture;
}

void write_mask(const std::string& path, const std::vector<uint8_t>& mask, const Picture& picture) {
  std::ofstream file(path, std::ios::binary);
  file << "P5\n" << picture.width << ' ' << picture.height << "\n255\n";
  file.write(reinterpret_cast<const char*>(mask.data()), static_cast<std::streamsize>(mask.size()));
  if (!file.flush()) {
    throw talent::Error("cannot write " + path + "; expected a file in a folder that exists");
  }
}

double milliseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

void run(const Arguments& arguments) {
  const Picture picture = read_picture(arguments.words[1]);
  auto start = std::chrono::steady_clock::now();
  talent::Segmenter segmenter(arguments.words[0], arguments.options);
  for (const std::string& reason : segmenter.auto_report()) {
    std::fprintf(stderr, "talent_segment: %s\n", reason.c_str());
  }
  std::printf("loaded in %.1f ms: %s\n", milliseconds_since(start), segmenter.backend_name().c_str());
  segmenter.warmup();
  start = std::chrono::steady_clock::now();
  const talent::Prompt prompt = segmenter.encode(arguments.words[2]);
  std::printf("sentence encoded in %.1f ms\n", milliseconds_since(start));

  std::vector<uint8_t> mask(static_cast<size_t>(picture.width) * static_cast<size_t>(picture.height));
  std::vector<double> took;
  talent::MaskSummary found = {};
  for (int time = 0; time < arguments.times; ++time) {  // a robot's loop: the mask's memory is used again
    start = std::chrono::steady_clock::now();
    found = segmenter.segment(picture.view(), prompt, {mask.data(), picture.width});
    took.push_back(milliseconds_since(start));
  }
  std::nth_element(took.begin(), took.begin() + static_cast<int64_t>(took.size() / 2), took.end());
  std::printf("segmented in %.1f ms (median of %d)\n", took[took.size() / 2], arguments.times);
  if (found.box) {
    const talent::Box box = *found.box;
    std::printf("box %d %d %d %d, score %.3f\n", box.x0, box.y0, box.x1, box.y1, found.score);
  } else {
    std::printf("nothing found\n");
  }
  write_mask(arguments.words[3], mask, picture);
  std::printf("wrote %s: %lld pixels inside\n", arguments.words[3].c_str(), static_cast<long long>(found.pixels));
}

}  // namespace

int main(int count, char** texts) {
  if (count == 2 && (std::string(texts[1]) == "--help" || std::string(texts[1]) == "-h")) {
    std::fputs(kHelp, stdout);
    return 0;
  }
  try {
    run(parse(count, texts));
    return 0;
  } catch (const talent::Error& error) {
    std::fprintf(stderr, "talent_segment: %s\n", error.what());
    return 2;
  }
}
