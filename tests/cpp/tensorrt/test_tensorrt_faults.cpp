// Every call to CUDA and to TensorRT that a frame makes fails once: an error with the words of who failed, the next
// frame is right, and nothing is left behind.
#include <set>

#include "toy_frames.h"

namespace {

const Tokens kSentence = sentence(4, 0, 0);

// What may fail without an error: graphs are given up, with a note.
const std::set<std::string> kHarmless = {"cudaStreamBeginCapture", "cudaStreamEndCapture",
                                         "cudaGraphInstantiateWithFlags"};

void check_error(const talent::Error& error, const std::string& failed) {
  const std::string said = error.what();
  check::that(said.find("out of memory") != said.npos && said.find("expected CUDA to ") == 0,
              "an error with CUDA's words for %s, received %s", failed.c_str(), said.c_str());
}

// `call` after `frames` good ones, with its n-th call to CUDA failing, for each n; how many there are.
template <typename Call>
int fail_each(const char* what, int frames, const Call& call) {
  for (int nth = 0;; ++nth) {
    ToyTensorRt toy;
    const talent::PromptTensors prompt = toy.backend->text(kSentence);
    for (int frame = 0; frame < frames; ++frame) {
      call(toy, prompt);
    }
    stand_in::fail(nth, cudaErrorMemoryAllocation);
    bool refused = false;
    try {
      call(toy, prompt);
    } catch (const talent::Error& error) {
      refused = true;
      check_error(error, stand_in::failed());
    }
    const std::string failed = stand_in::failed();
    stand_in::fail(-1, cudaSuccess);
    if (failed.empty()) {
      check::that(!refused, "%s: no error without a failure", what);
      return nth;
    }
    check::that(refused == (kHarmless.count(failed) == 0), "%s: %s to be %s", what, failed.c_str(),
                refused ? "harmless" : "an error");
    check::that(refused == toy.backend->notes().empty(), "%s: a note about %s", what, failed.c_str());
    check::that(cudaGetLastError() == cudaSuccess, "%s: no error of %s for others to find", what, failed.c_str());
    call(toy, prompt);
    call(toy, prompt);
    toy.backend.reset();
    check_nothing_is_left((std::string(what) + ": " + failed).c_str());
  }
}

void check_cuda_failures() {
  const Picture picture(20, 13, talent::PixelFormat::kRgb, 1);
  const Answer expected = expected_answer(picture.view(), kSentence);
  const auto frame = [&](ToyTensorRt& toy, const talent::PromptTensors& prompt) {
    check_answer(toy.segment(picture.view(), {&prompt}, true).at(0), expected, "a frame");
  };
  const int first = fail_each("the first frame", 0, frame);
  const int second = fail_each("the second frame", 1, frame);
  const int third = fail_each("the third frame", 2, frame);
  check::that(first > second && second > third && third >= 5, "memory in the first frame and a graph in the second, "
              "received %d, %d and %d calls", first, second, third);

  const auto text = [&](ToyTensorRt& toy, const talent::PromptTensors&) {
    const talent::PromptTensors made = toy.backend->text(kSentence);
    check_answer(toy.segment(picture.view(), {&made}).at(0), expected, "a sentence and a frame");
  };
  fail_each("a sentence and a frame", 1, text);

  void* memory = nullptr;
  cudaMalloc(&memory, picture.bytes());
  cudaMemcpyAsync(memory, picture.view().pixels, picture.bytes(), cudaMemcpyHostToDevice, nullptr);
  cudaStreamSynchronize(nullptr);
  const talent::DevicePhotoView photo = {static_cast<const uint8_t*>(memory), 20, 13, picture.view().stride,
                                         picture.view().format, nullptr};
  ToyTensorRt toy;
  for (int nth = 0; nth < 4; ++nth) {
    const talent::PromptTensors prompt = toy.backend->text(kSentence);
    stand_in::fail(nth + 1, cudaErrorMemoryAllocation);  // behind cudaGetDevice
    check_refused("out of memory", [&] { toy.segment(photo, {&prompt}); });
    check_answer(toy.segment(photo, {&prompt}).at(0), expected, "a photo on the GPU, after " + stand_in::failed());
  }
  toy.backend.reset();
  cudaFree(memory);
  check_nothing_is_left("a photo on the GPU");
}

void check_tensorrt_failures() {
  const Picture picture(20, 13, talent::PixelFormat::kRgb, 1);
  for (const char* function : {"createExecutionContext", "setInputShape", "enqueueV3"}) {
    ToyTensorRt toy;
    const talent::PromptTensors prompt = toy.backend->text(kSentence);
    setenv("STAND_IN_REFUSES", function, 1);
    check_refused(std::string(function) + " is refused", [&] { toy.segment(picture.view(), {&prompt}); });
    unsetenv("STAND_IN_REFUSES");
    const Answer expected = expected_answer(picture.view(), kSentence);
    check_answer(toy.segment(picture.view(), {&prompt}).at(0), expected, std::string("after ") + function);
    toy.backend.reset();
    check_nothing_is_left(function);
  }
}

// Opening it, too.
void check_opening() {
  TemporaryFolder folder;
  const talent::Bundle bundle = toy_engine_bundle(folder.path);
  for (int nth = 0;; ++nth) {
    stand_in::fail(nth, cudaErrorMemoryAllocation);
    try {
      talent::open_tensorrt(bundle, kToyRuntime, {});
    } catch (const talent::Error& error) {
      check_error(error, stand_in::failed());
    }
    const bool done = stand_in::failed().empty();
    stand_in::fail(-1, cudaSuccess);
    check_nothing_is_left("opening it");
    if (done) {
      check::that(nth >= 3, "%d calls of CUDA to open it", nth);
      return;
    }
  }
}

}  // namespace

int main() {
  check_cuda_failures();
  check_tensorrt_failures();
  check_opening();
  return check::result();
}
