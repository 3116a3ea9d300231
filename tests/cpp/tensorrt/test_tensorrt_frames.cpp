// Frames through the TensorRT backend on stand-ins that compute: the masks are right, and nothing is done twice.
#include <condition_variable>
#include <mutex>
#include <thread>

#include "toy_frames.h"

using talent::PixelFormat;

namespace {

const Tokens kSentences[] = {sentence(4, 0, 0), sentence(0, 5, 0), sentence(3, 0, 6)};

int calls_of(const std::string& function) { return stand_in::calls()[function]; }

void check_prompts() {
  ToyTensorRt toy;
  const Picture picture(30, 20, PixelFormat::kRgb, 1);
  auto prompt = std::make_unique<talent::PromptTensors>(toy.backend->text(kSentences[0]));
  const auto copies = [&](const talent::PromptTensors& one, const Tokens& tokens) {
    stand_in::forget();
    check_answer(toy.segment(picture.view(), {&one}).at(0), expected_answer(picture.view(), tokens), "a prompt");
    return calls_of("cudaMemcpyAsync");
  };
  constexpr int kPhotoAndMask = 2;
  check::that(copies(*prompt, kSentences[0]) == kPhotoAndMask + 2, "%s to be copied at first", "a prompt");
  check::that(copies(*prompt, kSentences[0]) == kPhotoAndMask, "%s not to be copied again", "a prompt");
  const talent::PromptTensors copy = *prompt;
  check::that(copies(copy, kSentences[0]) == kPhotoAndMask, "a copy of %s to be recognised", "a prompt");
  *prompt = toy.backend->text(kSentences[1]);  // at the same address
  check::that(copies(*prompt, kSentences[1]) == kPhotoAndMask + 2, "another one in %s place to be copied", "its");
  prompt->id = 0;
  for (const char* time : {"first", "second"}) {
    check::that(copies(*prompt, kSentences[1]) == kPhotoAndMask + 2, "one without a number to be copied a %s time",
                time);
  }
  const talent::PromptTensors other = toy.backend->text(kSentences[2]);
  toy.segment(picture.view(), {&other, &copy});
  stand_in::forget();
  toy.segment(picture.view(), {&other, prompt.get()});
  check::that(calls_of("cudaMemcpyAsync") == kPhotoAndMask + 2, "only what %s to be copied", "changed");
  talent::PromptTensors wrong = other;
  wrong.id = 0;
  wrong.tensors[1].name = "other";
  check_refused("expected a prompt with the tensor 'bias' of 4 bytes", [&] { toy.segment(picture.view(), {&wrong}); });
  check_refused("expected 1 to 4 prompts", [&] { toy.segment(picture.view(), {}); });
  check_refused("expected a sentence of 8 tokens, received 2", [&] { toy.backend->text({1, 2}); });
  check::that(copies(other, kSentences[2]) > 0, "the next %s to work", "frame");
}

// Lets those who come wait until there are two, once.
class Pair {
 public:
  void wait() {
    std::unique_lock guard(lock_);
    ++here_;
    changed_.notify_all();
    check::that(changed_.wait_for(guard, std::chrono::seconds(20), [&] { return here_ >= 2; }), "%s at once", "two");
  }

 private:
  std::mutex lock_;
  std::condition_variable changed_;
  int here_ = 0;
};

void check_threads() {
  ToyTensorRt toy;
  const Picture pictures[] = {Picture(30, 20, PixelFormat::kRgb, 1), Picture(25, 31, PixelFormat::kBgra, 2)};
  std::vector<talent::PromptTensors> prompts = {toy.backend->text(kSentences[0]), toy.backend->text(kSentences[1])};
  check::that(stand_in::living("streams") == 1, "one lane for %s", "one caller");
  Pair pair;
  stand_in::on_synchronize([&] { pair.wait(); });
  const auto run = [&](size_t index) {
    check_answer(toy.segment(pictures[index].view(), {&prompts[index]}).at(0),
                 expected_answer(pictures[index].view(), kSentences[index]), "a thread of two");
  };
  std::thread other(run, 1);
  run(0);
  other.join();
  stand_in::on_synchronize({});
  check::that(stand_in::living("streams") == 2, "two lanes for two callers, received %d",
              static_cast<int>(stand_in::living("streams")));
  for (const int index : {1, 0, 0, 1}) {
    stand_in::forget();
    run(static_cast<size_t>(index));
    check::that(calls_of("cudaMemcpyAsync") == 2, "the lane with the prompt to be taken for %d", index);
  }
  check::that(stand_in::living("streams") == 2, "no third lane for %s", "one caller at a time");
  toy.backend.reset();
  check_nothing_is_left("two threads");
}

void check_graphs() {
  const Picture picture(30, 20, PixelFormat::kRgb, 1);
  const auto frames = [&](ToyTensorRt& toy, size_t expressions, int count) {
    const talent::PromptTensors prompt = toy.backend->text(kSentences[0]);
    stand_in::forget();
    for (int frame = 0; frame < count; ++frame) {
      const auto answers = toy.segment(picture.view(), std::vector(expressions, &prompt));
      check_answer(answers.back(), expected_answer(picture.view(), kSentences[0]), "a frame of several");
    }
    return std::pair(calls_of("cudaStreamBeginCapture"), calls_of("cudaGraphLaunch"));
  };
  ToyTensorRt toy;
  check::that(frames(toy, 1, 1) == std::pair(0, 0), "the first frame to run %s", "plain");
  check::that(frames(toy, 1, 1) == std::pair(1, 1), "the second frame to be %s", "captured");
  check::that(frames(toy, 1, 2) == std::pair(0, 2), "the next ones to be %s", "launched");
  check::that(frames(toy, 3, 3) == std::pair(1, 2), "three expressions to have %s", "a graph of their own");
  check::that(frames(toy, 1, 1) == std::pair(0, 1), "the graph of one expression to be %s", "kept");
  check::that(toy.backend->notes().empty(), "%s to note", "nothing");

  talent::Options options;
  options.cuda_graphs = false;
  ToyTensorRt plain({}, options);
  check::that(frames(plain, 1, 3) == std::pair(0, 0) && plain.backend->notes().empty(), "no graphs %s", "unasked");

  ToyTensorRt refused;
  setenv("STAND_IN_REFUSES", "capture", 1);
  check::that(frames(refused, 1, 3) == std::pair(1, 0), "one attempt, and %s from then on", "plain frames");
  unsetenv("STAND_IN_REFUSES");
  check::that(frames(refused, 1, 2) == std::pair(0, 0), "graphs to be off %s", "for good");
  const std::string notes = refused.backend->notes();
  check::that(notes.find("CUDA graphs are off") == 0 && notes.find("capture is refused") != notes.npos,
              "a note about that, received \"%s\"", notes.c_str());
}

void check_photos_on_the_gpu() {
  ToyTensorRt toy;
  const Picture picture(30, 20, PixelFormat::kBgra, 1);
  const talent::PromptTensors prompt = toy.backend->text(kSentences[0]);
  void* memory = nullptr;
  cudaStream_t own = nullptr;
  cudaMalloc(&memory, picture.bytes());
  cudaStreamCreateWithFlags(&own, cudaStreamNonBlocking);
  for (const cudaStream_t stream : {own, cudaStream_t{nullptr}}) {
    toy.segment(picture.view(), {&prompt});
    stand_in::enqueue(own, [&] { std::memset(memory, 0, picture.bytes()); });
    cudaStreamSynchronize(own);
    cudaMemcpyAsync(memory, picture.view().pixels, picture.bytes(), cudaMemcpyHostToDevice, stream);  // under way
    stand_in::forget();
    const talent::DevicePhotoView photo = {static_cast<const uint8_t*>(memory), 30, 20, picture.view().stride,
                                           PixelFormat::kBgra, stream};
    check_answer(toy.segment(photo, {&prompt}, true).at(0), expected_answer(picture.view(), kSentences[0]),
                 "a photo on the GPU");
    check::that(calls_of("cudaMemcpyAsync") == 2, "nothing but the answer to be copied, received %d copies",
                calls_of("cudaMemcpyAsync"));
  }
  const talent::DevicePhotoView none = {nullptr, 30, 20, 120, PixelFormat::kBgra, own};
  check_refused("expected a picture, received no pixels", [&] { toy.segment(none, {&prompt}); });
  cudaFree(memory);
  cudaStreamDestroy(own);
  toy.backend.reset();
  check_nothing_is_left("photos on the GPU");
}

// They are refused in the words of the CPU's way, and the next frame works.
void check_bad_frames() {
  ToyTensorRt toy;
  const Picture picture(30, 20, PixelFormat::kRgb, 1);
  const talent::PromptTensors prompt = toy.backend->text(kSentences[0]);
  std::vector<float> input(3 * 16 * 16);
  const talent::PhotoView& good = picture.view();
  for (const talent::PhotoView& bad :
       {talent::PhotoView{good.pixels, 0, 20, 100, good.format}, {good.pixels, 30, -1, 100, good.format},
        {good.pixels, 40000, 1, 120000, good.format}, {nullptr, 30, 20, 95, good.format},
        {good.pixels, 30, 20, 89, good.format}, {good.pixels, 30, 20, 200, static_cast<PixelFormat>(9)}}) {
    std::string words;
    try {
      talent::preprocess(bad, 16, input.data());
    } catch (const talent::Error& error) {
      words = error.what();
    }
    check::that(!words.empty(), "the CPU to refuse a frame of width %d", bad.width);
    uint8_t mask = 0;
    check_refused(words, [&] { toy.backend->segment(bad, {&prompt}, kThreshold, {{&mask, nullptr}}); });
    check_answer(toy.segment(good, {&prompt}).at(0), expected_answer(good, kSentences[0]), "after a bad frame");
  }
  for (const float threshold : {-0.1f, 1.0f, std::nanf("")}) {
    check_refused("expected a threshold from 0 to below 1",
                  [&] { toy.backend->segment(good, {&prompt}, threshold, {{nullptr, nullptr}}); });
  }
  const talent::PromptTensors overflow = toy.backend->text(sentence(toy::kOverflow, 0, 0));
  check_refused("the fp16 network gave logits that are not finite", [&] { toy.segment(good, {&prompt, &overflow}); });
  check_answer(toy.segment(good, {&prompt}).at(0), expected_answer(good, kSentences[0]), "after an overflow");
  check::that(stand_in::living("streams") == 1, "the lane to be used %s", "again");
}

// The caller's GPU stays the current one.
void check_other_gpu() {
  stand_in::set_gpus(2);
  cudaSetDevice(1);
  stand_in::forget();
  {
    ToyTensorRt toy;
    const Picture picture(30, 20, PixelFormat::kRgb, 1);
    const talent::PromptTensors prompt = toy.backend->text(kSentences[0]);
    check_answer(toy.segment(picture.view(), {&prompt}).at(0), expected_answer(picture.view(), kSentences[0]), "GPU 0");
    check_refused("gave logits", [&] {
      const talent::PromptTensors overflow = toy.backend->text(sentence(toy::kOverflow, 0, 0));
      toy.segment(picture.view(), {&overflow});
    });
  }
  check::that(calls_of("cudaMalloc on GPU 0") > 0 && calls_of("cudaMalloc on GPU 1") == 0, "memory of %s alone",
              "GPU 0");
  int current = -1;
  cudaGetDevice(&current);
  check::that(current == 1, "GPU 1 to be current still, received %d", current);
  cudaSetDevice(0);
  stand_in::set_gpus(1);
  check_nothing_is_left("work on another GPU");
}

}  // namespace

int main() {
  check_prompts();
  check_threads();
  check_graphs();
  check_photos_on_the_gpu();
  check_bad_frames();
  check_other_gpu();
  return check::result();
}
