// A sentence and a picture in, the mask of the object that is meant out.
//
//   talent::Segmenter segmenter("bundle");
//   const talent::Prompt prompt = segmenter.encode("the red mug on the left");     // once per sentence
//   const talent::Segmentation result = segmenter.segment(photo, prompt);          // once per frame
//   const auto results = segmenter.segment_many(photo, {prompt, another});         // several about one frame
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "talent/bundle.h"
#include "talent/errors.h"
#include "talent/export.h"
#include "talent/image.h"

namespace talent {

class Backend;
struct PromptTensors;

// A photo in the memory of the GPU: as PhotoView has it. stream: a cudaStream_t, or nullptr for the default stream;
// what was put into it before the call is done before the photo is read.
struct DevicePhotoView {
  // With all six, so that a photo whose fields stand between braces is one or the other.
  DevicePhotoView(const uint8_t* pixels, int width, int height, int64_t stride, PixelFormat format, void* stream)
      : pixels(pixels), width(width), height(height), stride(stride), format(format), stream(stream) {}

  const uint8_t* pixels;
  int width;
  int height;
  int64_t stride;
  PixelFormat format;
  void* stream;
};

// How a bundle is run.
struct Options {
  std::string backend = "auto";  // or "onnxruntime", "tensorrt", "tensorrt_rtx"
  std::string precision;         // refuse a bundle that is in another one than this; empty for any
  int device = 0;                // which GPU
  int threads = 0;               // for ONNX Runtime, in each operator; 0 for one per core
  std::optional<double> threshold;  // none for the bundle's
  size_t prompts = 64;              // sentences whose prompt tensors are kept
  bool cuda_graphs = true;          // launch what TensorRT does for a frame as one
  std::string plugin;  // path of libtalent_plugin.so; empty: beside libtalent, or wherever the loader finds it
};

// A sentence, and everything that the vision graph needs of it. Good for any number of pictures and for any thread,
// with the segmenter that made it; a copy costs a pointer and the sentence.
class TALENT_API Prompt {
 public:
  const std::string& sentence() const noexcept { return sentence_; }

 private:
  friend class Segmenter;
  Prompt(std::string sentence, std::shared_ptr<const PromptTensors> tensors, uint64_t segmenter);

  std::string sentence_;
  std::shared_ptr<const PromptTensors> tensors_;
  uint64_t segmenter_;  // number of the one that made it
};

// The answer, in the photo's own pixels.
struct Segmentation {
  std::vector<uint8_t> mask;  // [H, W]: 255 where the object is, else 0
  int width = 0;
  int height = 0;
  std::optional<Box> box;          // the smallest one around the mask; none where it is empty
  double score = 0;                // mean probability inside the mask, 0 where it is empty
  std::vector<float> probability;  // [H, W] in 0 to 1 where it was asked for, else empty
};

// What a Segmentation holds: the probability takes longer than the mask, and most programs need no more.
enum class Output { kMask, kMaskAndProbability };

// Memory of the caller's for an answer: the mask, uint8 [H, W] with rows `stride` bytes apart, at least W (where it
// is W, nothing is copied; bytes between rows are left as they are), and the probability, float32 [H, W] without gaps
// between rows, or nullptr.
struct MaskBuffer {
  uint8_t* mask;
  int64_t stride;
  float* probability = nullptr;
};

// What a segmenter has done: pictures that the vision graph saw, masks that came of them, and sentences that were
// encoded already (hits), or had to be (misses).
struct TALENT_API SegmenterStats {
  int64_t frames = 0;
  int64_t expressions = 0;
  int64_t prompt_hits = 0;
  int64_t prompt_misses = 0;

  // The share of sentences that were encoded already; none before the first.
  std::optional<double> prompt_hit_rate() const noexcept;
};

// A loaded bundle. Threads may share it: each call is one by itself, and `close` waits for those under way. After it,
// calls throw std::runtime_error.
class TALENT_API Segmenter {
 public:
  // Options::backend "auto" takes the first TensorRT that libtalent was built with, finds a GPU and has an engine in
  // the bundle, else ONNX Runtime (`auto_report` says why). Throws Error for a bad bundle, an unknown backend or
  // precision, a backend that cannot run here, and a bad threshold.
  explicit Segmenter(const std::filesystem::path& bundle, const Options& options = {});
  explicit Segmenter(Bundle bundle, const Options& options = {});
  ~Segmenter();  // closes it
  Segmenter(const Segmenter&) = delete;
  Segmenter& operator=(const Segmenter&) = delete;

  // Run the text graph, or take what it gave for these words before. Throws Error for a sentence without words.
  Prompt encode(std::string_view sentence);

  // One photo and an encoded sentence. Throws Error for a photo that cannot be, for a prompt that this segmenter did
  // not make, and where the network's logits are not finite: an FP16 overflow must not pass for "nothing found". The
  // next call works. A photo on the GPU is never copied to the host; it needs a TensorRT backend.
  Segmentation segment(const PhotoView& photo, const Prompt& prompt, Output output = Output::kMask);
  Segmentation segment(const DevicePhotoView& photo, const Prompt& prompt, Output output = Output::kMask);

  // The same into memory of the caller's, for a loop that makes none of its own. After an error, what stands there is
  // of no use.
  MaskSummary segment(const PhotoView& photo, const Prompt& prompt, const MaskBuffer& into);
  MaskSummary segment(const DevicePhotoView& photo, const Prompt& prompt, const MaskBuffer& into);

  // Several sentences about one photo: what does not depend on the words is computed once for as many as the graph or
  // engine takes. Throws Error as `segment` does, where there is no prompt, and for another number of buffers.
  std::vector<Segmentation> segment_many(const PhotoView& photo, const std::vector<Prompt>& prompts,
                                         Output output = Output::kMask);
  std::vector<Segmentation> segment_many(const DevicePhotoView& photo, const std::vector<Prompt>& prompts,
                                         Output output = Output::kMask);
  std::vector<MaskSummary> segment_many(const PhotoView& photo, const std::vector<Prompt>& prompts,
                                        const std::vector<MaskBuffer>& into);
  std::vector<MaskSummary> segment_many(const DevicePhotoView& photo, const std::vector<Prompt>& prompts,
                                        const std::vector<MaskBuffer>& into);

  // A sentence and one photo, in one go.
  Segmentation operator()(std::string_view sentence, const PhotoView& photo, Output output = Output::kMask);
  Segmentation operator()(std::string_view sentence, const DevicePhotoView& photo, Output output = Output::kMask);

  // Run both graphs on noise, so that the first frame takes no longer than the others. Not counted in `stats`.
  void warmup(int runs = 3);

  SegmenterStats stats() const;
  const std::string& backend_name() const noexcept;              // "onnxruntime", "tensorrt" or "tensorrt_rtx"
  const std::vector<std::string>& auto_report() const noexcept;  // why "auto" took no TensorRT; empty where it did
  std::string notes() const;  // what goes another way than was asked for: that CUDA graphs are off, say; or empty
  const Bundle& bundle() const noexcept;
  double threshold() const noexcept;

  // Free the backend, once the calls under way are done; later ones throw. Twice is fine.
  void close();

 private:
  struct State;
  explicit Segmenter(std::unique_ptr<State> state);
  friend std::unique_ptr<Segmenter> segmenter_over(Bundle bundle, std::unique_ptr<Backend> backend,
                                                   const Options& options);

  std::unique_ptr<State> state_;
};

}  // namespace talent
