// A segmenter over a backend that computes on the CPU: answers, prompts, groups, frames that fail, threads, closing.
#include "talent/segmenter.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <future>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "backends.h"
#include "check.h"
#include "temporary_folder.h"
#include "toy_backend.h"

using namespace talent;

namespace {

std::filesystem::path folder;
const char* const kSentences[] = {"r", "g", "b"};

std::unique_ptr<Segmenter> toy(ToyControls& controls, const Options& options = {}) {
  Bundle bundle = Bundle::load(folder);
  auto backend = std::make_unique<ToyBackend>(bundle, controls);
  return segmenter_over(std::move(bundle), std::move(backend), options);
}

bool same(const Segmentation& one, const Segmentation& other) {
  const Box a = one.box.value_or(Box{}), b = other.box.value_or(Box{});
  return one.mask == other.mask && one.score == other.score && one.probability == other.probability &&
         a.x0 == b.x0 && a.y0 == b.y0 && a.x1 == b.x1 && a.y1 == b.y1;
}

template <typename Call>
void check_refused(const std::string& expected, Call call) {
  try {
    call();
    check::that(false, "an error: %s", expected.c_str());
  } catch (const Error& error) {
    check::that(std::string(error.what()).find(expected) != std::string::npos, "\"%s\", received \"%s\"",
                expected.c_str(), error.what());
  }
}

void check_answers() {
  ToyControls controls;
  const auto segmenter = toy(controls);
  const ToyPicture picture;
  for (int c = 0; c < 3; ++c) {
    const Segmentation result = (*segmenter)(kSentences[c], picture.view(), Output::kMaskAndProbability);
    const Box wanted = ToyPicture::rectangle(c);
    int64_t both = 0, either = 0;
    for (int i = 0; i < ToyPicture::kWidth * ToyPicture::kHeight; ++i) {
      const int x = i % ToyPicture::kWidth, y = i / ToyPicture::kWidth;
      const bool ours = result.mask[static_cast<size_t>(i)] == 255;
      const bool inside = x >= wanted.x0 && x < wanted.x1 && y >= wanted.y0 && y < wanted.y1;
      both += ours && inside;
      either += ours || inside;
      check::that(ours == (result.probability[static_cast<size_t>(i)] > 0.35f), "the mask above the threshold");
    }
    check::that(static_cast<double>(both) > 0.8 * static_cast<double>(either), "the rectangle %d, received %ld of %ld",
                c, long{both}, long{either});
    check::that(result.box && std::abs(result.box->x0 - wanted.x0) < 6 && std::abs(result.box->y1 - wanted.y1) < 6,
                "the box around it");
    check::that(result.score > 0.8 && result.score <= 1.0, "a score near 1, received %g", result.score);
    check::that(result.width == ToyPicture::kWidth && result.height == ToyPicture::kHeight, "the photo's size");
    check::that((*segmenter)(kSentences[c], picture.view()).probability.empty(), "no probability that nobody wants");
  }
  const std::vector<uint8_t> black(30 * 40 * 3);
  const Segmentation nothing = (*segmenter)("r", {black.data(), 40, 30, 120, PixelFormat::kRgb});
  check::that(!nothing.box && nothing.score == 0 && nothing.mask == std::vector<uint8_t>(1200), "nothing in the dark");
}

// Into the caller's memory, with gaps between the rows and without.
void check_buffers() {
  ToyControls controls;
  const auto segmenter = toy(controls);
  const ToyPicture picture;
  const Prompt prompt = segmenter->encode("g");
  const Segmentation wanted = segmenter->segment(picture.view(), prompt, Output::kMaskAndProbability);
  for (const int64_t stride : {150, 151, 200}) {
    std::vector<uint8_t> mask(static_cast<size_t>(89 * stride + 150), 7);
    std::vector<float> probability(wanted.probability.size());
    const MaskSummary summary = segmenter->segment(picture.view(), prompt, {mask.data(), stride, probability.data()});
    for (size_t i = 0; i < mask.size(); ++i) {
      const size_t x = i % static_cast<size_t>(stride), y = i / static_cast<size_t>(stride);
      check::that(mask[i] == (x < 150 ? wanted.mask[y * 150 + x] : 7), "the mask, and what lies beside it");
    }
    check::that(probability == wanted.probability && summary.score == wanted.score &&
                    summary.box->x1 == wanted.box->x1,
                "the same answer");
  }
  uint8_t mask[1];
  check_refused("expected a buffer for the mask, received none",
                [&] { segmenter->segment(picture.view(), prompt, {nullptr, 150}); });
  check_refused("expected a stride of the mask of at least 150 bytes, received 149",
                [&] { segmenter->segment(picture.view(), prompt, {mask, 149}); });
  check_refused("expected a buffer for each of the 2 prompts, received 1", [&] {
    segmenter->segment_many(picture.view(), {prompt, prompt}, std::vector<MaskBuffer>{{mask, 150}});
  });
}

// By their words, the last ones first.
void check_prompts() {
  ToyControls controls;
  Options options;
  options.prompts = 2;
  const auto segmenter = toy(controls, options);
  check::that(!segmenter->stats().prompt_hit_rate(), "no rate before the first sentence");
  segmenter->encode("r");
  check::that(segmenter->encode("  R ").sentence() == "  R ", "the sentence as it was given");
  check::that(controls.texts == 1 && segmenter->stats().prompt_hit_rate() == 0.5, "the same words to be known");
  segmenter->encode("g");
  segmenter->encode("r");  // asked for after g
  segmenter->encode("b");  // g goes
  check::that(controls.texts == 3, "three sentences");
  segmenter->encode("r");
  check::that(controls.texts == 3, "r to be kept");
  segmenter->encode("g");
  check::that(controls.texts == 4, "g to have gone");
  const SegmenterStats stats = segmenter->stats();
  check::that(stats.prompt_hits == 3 && stats.prompt_misses == 4, "3 hits and 4 misses, received %ld and %ld",
              long{stats.prompt_hits}, long{stats.prompt_misses});
  check_refused("expected a sentence that names an object, received ' ', which holds no words",
                [&] { segmenter->encode(" "); });

  options.prompts = 0;
  const auto forgetful = toy(controls, options);
  const Prompt first = forgetful->encode("r"), second = forgetful->encode("r");
  check::that(controls.texts == 6, "nothing to be kept");
  const ToyPicture picture;
  check::that(same(forgetful->segment(picture.view(), first), forgetful->segment(picture.view(), second)),
              "a prompt to live as long as somebody holds it");
  check_refused("expected a prompt that this segmenter made, received the prompt 'r' of another one",
                [&] { segmenter->segment(picture.view(), first); });
}

void check_groups() {
  const ToyPicture picture;
  const struct {
    int64_t most;
    std::vector<size_t> groups;
  } cases[] = {{1, {1, 1, 1, 1}}, {3, {3, 1}}, {4, {4}}, {64, {4}}};
  for (const auto& [most, groups] : cases) {
    std::vector<size_t> received;
    ToyControls controls;
    controls.most_expressions = most;
    controls.before = [&](size_t expressions) { received.push_back(expressions); };
    const auto segmenter = toy(controls);
    std::vector<Prompt> prompts = {segmenter->encode("b")};
    for (const char* sentence : kSentences) {
      prompts.push_back(segmenter->encode(sentence));
    }
    const std::vector<Segmentation> results = segmenter->segment_many(picture.view(), prompts,
                                                                      Output::kMaskAndProbability);
    check::that(received == groups, "groups of at most %ld", long{most});
    const SegmenterStats stats = segmenter->stats();
    check::that(stats.frames == static_cast<int64_t>(groups.size()) && stats.expressions == 4, "what was done counted");
    for (size_t index = 0; index < prompts.size(); ++index) {
      check::that(same(results.at(index), segmenter->segment(picture.view(), prompts[index],
                                                             Output::kMaskAndProbability)),
                  "the same as alone");
    }
    check_refused("expected a list of prompts, at least one, received none",
                  [&] { segmenter->segment_many(picture.view(), std::vector<Prompt>()); });
  }
}

// Each of them leaves the segmenter as it was.
void check_bad_frames() {
  ToyControls controls;
  const auto segmenter = toy(controls);
  const ToyPicture picture;
  const Prompt prompt = segmenter->encode("r");
  const Segmentation wanted = segmenter->segment(picture.view(), prompt);
  const uint8_t* pixels = picture.pixels.data();
  const struct {
    PhotoView photo;
    const char* expected;
  } cases[] = {
      {{pixels, 0, 90, 450, PixelFormat::kRgb}, "sides from 1 to 32766 pixels, received 0 x 90"},
      {{pixels, 150, 0, 450, PixelFormat::kRgb}, "received 150 x 0"},
      {{pixels, -5, 90, 450, PixelFormat::kRgb}, "received -5 x 90"},
      {{pixels, 40'000, 1, 120'000, PixelFormat::kRgb}, "received 40000 x 1"},
      {{nullptr, 150, 90, 450, PixelFormat::kRgb}, "expected a picture, received no pixels"},
      {{pixels, 150, 90, 449, PixelFormat::kRgb}, "a stride of at least 450 bytes, received 449"},
      {{pixels, 150, 90, 450, PixelFormat{9}}, "a pixel format of RGB, BGR, RGBA, BGRA or grey, received 9"}};
  for (const auto& [photo, expected] : cases) {
    check_refused(expected, [&, photo = photo] { segmenter->segment(photo, prompt); });
    check::that(same(segmenter->segment(picture.view(), prompt), wanted), "the next frame to be right");
  }
  check_refused("received one on the GPU, which the backend onnxruntime does not read", [&] {
    segmenter->segment(DevicePhotoView{pixels, 150, 90, 450, PixelFormat::kRgb, nullptr}, prompt);
  });
  controls.overflows = true;
  check_refused("the fp16 network gave logits that are not finite, which FP16 overflow does; export the bundle again "
                "with talent-export --fp32",
                [&] { segmenter->segment(picture.view(), prompt); });
  controls.overflows = false;
  check::that(same(segmenter->segment(picture.view(), prompt), wanted), "the next frame to be right");
}

void check_warmup() {
  int frames = 0;
  ToyControls controls;
  controls.before = [&](size_t) { ++frames; };
  const auto segmenter = toy(controls);
  segmenter->warmup(2);
  const SegmenterStats stats = segmenter->stats();
  check::that(frames == 2 && controls.texts == 2 && stats.frames == 0 && stats.prompt_misses == 0,
              "two runs of both graphs that are not counted");
}

void check_threads() {
  ToyControls controls;
  const auto segmenter = toy(controls);
  std::vector<ToyPicture> pictures(8);
  std::vector<Segmentation> wanted;
  for (size_t index = 0; index < pictures.size(); ++index) {
    std::vector<uint8_t>& pixels = pictures[index].pixels;
    std::rotate(pixels.begin(), pixels.begin() + static_cast<int64_t>(30 * index), pixels.end());
    for (const char* sentence : kSentences) {
      wanted.push_back((*segmenter)(sentence, pictures[index].view()));
    }
  }
  std::vector<std::thread> threads;
  std::atomic<int> right = 0;
  for (size_t index = 0; index < pictures.size(); ++index) {
    threads.emplace_back([&, index] {
      for (int round = 0; round < 4; ++round) {
        for (size_t sentence = 0; sentence < 3; ++sentence) {
          right += same((*segmenter)(kSentences[sentence], pictures[index].view()), wanted[3 * index + sentence]);
        }
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  check::that(right == 96, "96 answers as one thread gives them, received %d", int{right});
  const SegmenterStats stats = segmenter->stats();
  check::that(stats.frames == 24 + 96 && stats.prompt_hits + stats.prompt_misses == 24 + 96, "each of them counted");
}

template <typename Call>
void check_closed(Call call) {
  try {
    call();
    check::that(false, "a closed segmenter to say so");
  } catch (const std::runtime_error& error) {
    const std::string received = error.what();
    check::that(received == "this segmenter is closed", "that it is closed, received %s", received.c_str());
  }
}

// While a frame is under way, nobody comes in any more and nothing is freed.
void check_closing() {
  std::promise<void> started, may_go_on;
  std::shared_future<void> going_on = may_go_on.get_future().share();
  std::atomic<bool> blocks = false, was_there = false;
  ToyControls controls;
  controls.before = [&](size_t) {
    if (blocks) {
      started.set_value();
      going_on.wait();
      was_there = !controls.gone;
    }
  };
  const auto segmenter = toy(controls);
  const ToyPicture picture;
  const Prompt prompt = segmenter->encode("r");
  const Segmentation wanted = segmenter->segment(picture.view(), prompt);
  blocks = true;
  auto frame = std::async(std::launch::async, [&] { return segmenter->segment(picture.view(), prompt); });
  started.get_future().wait();
  auto closing = std::async(std::launch::async, [&] { segmenter->close(); });
  for (bool open = true; open;) {
    try {
      segmenter->encode("r");
      std::this_thread::yield();
    } catch (const std::runtime_error&) {
      open = false;
    }
  }
  check::that(closing.wait_for(std::chrono::seconds(0)) == std::future_status::timeout, "closing to wait");
  may_go_on.set_value();
  check::that(same(frame.get(), wanted) && was_there, "the frame under way to be finished");
  closing.get();
  check::that(controls.gone, "the backend to be freed");
  segmenter->close();
  check_closed([&] { segmenter->encode("r"); });
  check_closed([&] { segmenter->segment(picture.view(), prompt); });
  check_closed([&] { segmenter->warmup(); });
  check::that(segmenter->backend_name() == "onnxruntime" && segmenter->stats().frames == 2, "what is known to stay");
}

}  // namespace

int main() {
  const TemporaryFolder temporary;
  folder = temporary.path;
  toy_bundle(folder);
  check_answers();
  check_buffers();
  check_prompts();
  check_groups();
  check_bad_frames();
  check_warmup();
  check_threads();
  check_closing();
  return check::result();
}
