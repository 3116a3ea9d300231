#include "talent/segmenter.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <mutex>
#include <random>
#include <utility>

#include "backend.h"
#include "backends.h"
#include "checked_options.h"
#include "gate.h"
#include "letterbox_check.h"
#include "quote.h"
#include "recent.h"

namespace talent {
namespace {

std::atomic<uint64_t> segmenters = 0;

// The largest float that is not above a threshold which is below 1.
float as_float(double threshold) { return std::min(static_cast<float>(threshold), std::nextafter(1.0f, 0.0f)); }

Bundle load(const std::filesystem::path& path, const Options& options) {
  check_backend(options.backend, backend_kinds());
  return Bundle::load(path);
}

Bundle checked(Bundle bundle, const Options& options) {
  check_device(options);
  check_precision(bundle, options);
  return bundle;
}

size_t pixels_of(int width, int height) { return static_cast<size_t>(width) * static_cast<size_t>(height); }

void check_buffers(const std::vector<MaskBuffer>& buffers, size_t prompts, int width) {
  if (buffers.size() != prompts) {
    refuse("a buffer for each of the " + std::to_string(prompts) + " prompts", std::to_string(buffers.size()));
  }
  for (const MaskBuffer& buffer : buffers) {
    if (buffer.mask == nullptr) {
      refuse("a buffer for the mask", "none");
    }
    if (buffer.stride < width) {
      refuse("a stride of the mask of at least " + std::to_string(width) + " bytes", std::to_string(buffer.stride));
    }
  }
}

// A mask as a backend writes it, without gaps between its rows: in the caller's memory where that has none either, else
// in our own first.
class Gapless {
 public:
  Gapless(const MaskBuffer& buffer, int width, int height) : buffer_(buffer), width_(width), height_(height) {
    if (buffer.stride != width) {
      own_.resize(pixels_of(width, height));
    }
  }

  MaskTarget target() { return {own_.empty() ? buffer_.mask : own_.data(), buffer_.probability}; }

  void hand_over() const {
    for (int y = 0; y < height_ && !own_.empty(); ++y) {
      std::copy_n(own_.data() + int64_t{y} * width_, width_, buffer_.mask + y * buffer_.stride);
    }
  }

 private:
  const MaskBuffer buffer_;
  const int width_;
  const int height_;
  std::vector<uint8_t> own_;
};

std::vector<const Prompt*> addresses(const std::vector<Prompt>& prompts) {
  if (prompts.empty()) {
    refuse("a list of prompts, at least one", "none");
  }
  std::vector<const Prompt*> pointers;
  for (const Prompt& prompt : prompts) {
    pointers.push_back(&prompt);
  }
  return pointers;
}

}  // namespace

Prompt::Prompt(std::string sentence, std::shared_ptr<const PromptTensors> tensors, uint64_t segmenter)
    : sentence_(std::move(sentence)), tensors_(std::move(tensors)), segmenter_(segmenter) {}

std::optional<double> SegmenterStats::prompt_hit_rate() const noexcept {
  const int64_t asked = prompt_hits + prompt_misses;
  return asked == 0 ? std::nullopt : std::optional(static_cast<double>(prompt_hits) / static_cast<double>(asked));
}

struct Segmenter::State {
  using Prompts = std::vector<const Prompt*>;

  State(Bundle of, const Options& options)
      : bundle(checked(std::move(of), options)),
        threshold(checked_threshold(bundle, options)),
        tokenizer(bundle.tokenizer()),
        recent(options.prompts) {}

  void open(OpenedBackend opened) {
    backend = std::move(opened.backend);
    auto_report = std::move(opened.auto_report);
    backend_name = backend->name();
  }

  template <typename Photo>
  std::vector<MaskSummary> segment(const Photo& photo, const Prompts& prompts, const std::vector<MaskBuffer>& into);
  template <typename Photo>
  std::vector<Segmentation> segment(const Photo& photo, const Prompts& prompts, Output output);
  std::vector<const PromptTensors*> tensors_of(const Prompts& prompts) const;

  const Bundle bundle;
  const double threshold;
  const Tokenizer tokenizer;
  const uint64_t number = ++segmenters;
  Gate gate{"this segmenter"};
  Recent<std::vector<int64_t>, std::shared_ptr<const PromptTensors>> recent;
  std::atomic<int64_t> frames = 0;
  std::atomic<int64_t> expressions = 0;
  std::vector<std::string> auto_report;
  std::string backend_name;
  std::mutex closing;
  std::unique_ptr<Backend> backend;
};

std::vector<const PromptTensors*> Segmenter::State::tensors_of(const Prompts& prompts) const {
  std::vector<const PromptTensors*> tensors;
  for (const Prompt* prompt : prompts) {
    if (prompt->segmenter_ != number || prompt->tensors_ == nullptr) {
      refuse("a prompt that this segmenter made", "the prompt " + in_quotes(prompt->sentence_) +
             " of another one; encode the sentence with this one");
    }
    tensors.push_back(prompt->tensors_.get());
  }
  return tensors;
}

template <typename Photo>
std::vector<MaskSummary> Segmenter::State::segment(const Photo& photo, const Prompts& prompts,
                                                   const std::vector<MaskBuffer>& into) {
  const Gate::Inside inside(gate);
  check_letterbox({photo.width, photo.height, 1});
  check_buffers(into, prompts.size(), photo.width);
  const std::vector<const PromptTensors*> tensors = tensors_of(prompts);
  const auto most = static_cast<size_t>(std::max<int64_t>(backend->most_expressions(), 1));
  std::vector<MaskSummary> summaries;
  for (size_t start = 0; start < tensors.size(); start += most) {
    std::vector<const PromptTensors*> group;
    std::vector<Gapless> masks;
    std::vector<MaskTarget> targets;
    for (size_t index = start; index < std::min(start + most, tensors.size()); ++index) {
      group.push_back(tensors[index]);
      masks.emplace_back(into[index], photo.width, photo.height);
    }
    for (Gapless& mask : masks) {
      targets.push_back(mask.target());
    }
    const std::vector<MaskSummary> made = backend->segment(photo, group, as_float(threshold), targets);
    summaries.insert(summaries.end(), made.begin(), made.end());
    for (const Gapless& mask : masks) {
      mask.hand_over();
    }
    ++frames;
    expressions += static_cast<int64_t>(group.size());
  }
  return summaries;
}

template <typename Photo>
std::vector<Segmentation> Segmenter::State::segment(const Photo& photo, const Prompts& prompts, Output output) {
  check_letterbox({photo.width, photo.height, 1});  // before memory of that size is asked for
  std::vector<Segmentation> results(prompts.size());
  std::vector<MaskBuffer> buffers;
  for (Segmentation& result : results) {
    result.width = photo.width;
    result.height = photo.height;
    result.mask.resize(pixels_of(photo.width, photo.height));
    result.probability.resize(output == Output::kMaskAndProbability ? result.mask.size() : 0);
    buffers.push_back({result.mask.data(), photo.width,
                       output == Output::kMaskAndProbability ? result.probability.data() : nullptr});
  }
  const std::vector<MaskSummary> summaries = segment(photo, prompts, buffers);
  for (size_t index = 0; index < results.size(); ++index) {
    results[index].box = summaries[index].box;
    results[index].score = summaries[index].score;
  }
  return results;
}

Segmenter::Segmenter(const std::filesystem::path& bundle, const Options& options)
    : Segmenter(load(bundle, options), options) {}

Segmenter::Segmenter(Bundle bundle, const Options& options) {
  const std::vector<BackendKind> kinds = backend_kinds();
  check_backend(options.backend, kinds);
  state_ = std::make_unique<State>(std::move(bundle), options);
  state_->open(open_backend(state_->bundle, options, kinds));
}

Segmenter::Segmenter(std::unique_ptr<State> state) : state_(std::move(state)) {}

std::unique_ptr<Segmenter> segmenter_over(Bundle bundle, std::unique_ptr<Backend> backend, const Options& options) {
  auto state = std::make_unique<Segmenter::State>(std::move(bundle), options);
  state->open({std::move(backend), {}});
  return std::unique_ptr<Segmenter>(new Segmenter(std::move(state)));
}

Segmenter::~Segmenter() { close(); }

Prompt Segmenter::encode(std::string_view sentence) {
  const Gate::Inside inside(state_->gate);
  const std::vector<int64_t> tokens = state_->tokenizer.encode(sentence);
  auto tensors = state_->recent.get(tokens, [&] {
    return std::make_shared<const PromptTensors>(state_->backend->text(tokens));
  });
  return Prompt(std::string(sentence), std::move(tensors), state_->number);
}

Segmentation Segmenter::segment(const PhotoView& photo, const Prompt& prompt, Output output) {
  return std::move(state_->segment(photo, {&prompt}, output).front());
}

Segmentation Segmenter::segment(const DevicePhotoView& photo, const Prompt& prompt, Output output) {
  return std::move(state_->segment(photo, {&prompt}, output).front());
}

MaskSummary Segmenter::segment(const PhotoView& photo, const Prompt& prompt, const MaskBuffer& into) {
  return state_->segment(photo, {&prompt}, std::vector<MaskBuffer>{into}).front();
}

MaskSummary Segmenter::segment(const DevicePhotoView& photo, const Prompt& prompt, const MaskBuffer& into) {
  return state_->segment(photo, {&prompt}, std::vector<MaskBuffer>{into}).front();
}

std::vector<Segmentation> Segmenter::segment_many(const PhotoView& photo, const std::vector<Prompt>& prompts,
                                                  Output output) {
  return state_->segment(photo, addresses(prompts), output);
}

std::vector<Segmentation> Segmenter::segment_many(const DevicePhotoView& photo, const std::vector<Prompt>& prompts,
                                                  Output output) {
  return state_->segment(photo, addresses(prompts), output);
}

std::vector<MaskSummary> Segmenter::segment_many(const PhotoView& photo, const std::vector<Prompt>& prompts,
                                                 const std::vector<MaskBuffer>& into) {
  return state_->segment(photo, addresses(prompts), into);
}

std::vector<MaskSummary> Segmenter::segment_many(const DevicePhotoView& photo, const std::vector<Prompt>& prompts,
                                                 const std::vector<MaskBuffer>& into) {
  return state_->segment(photo, addresses(prompts), into);
}

Segmentation Segmenter::operator()(std::string_view sentence, const PhotoView& photo, Output output) {
  return segment(photo, encode(sentence), output);
}

Segmentation Segmenter::operator()(std::string_view sentence, const DevicePhotoView& photo, Output output) {
  return segment(photo, encode(sentence), output);
}

void Segmenter::warmup(int runs) {
  const Gate::Inside inside(state_->gate);
  const auto side = static_cast<int>(state_->bundle.image_size());
  std::vector<uint8_t> noise(3 * pixels_of(side, side)), mask(pixels_of(side, side));
  std::mt19937 random;
  std::generate(noise.begin(), noise.end(), [&] { return static_cast<uint8_t>(random()); });
  const PhotoView photo = {noise.data(), side, side, int64_t{3} * side, PixelFormat::kRgb};
  const std::vector<int64_t> tokens = state_->tokenizer.encode("warm up");
  for (int run = 0; run < runs; ++run) {
    const PromptTensors tensors = state_->backend->text(tokens);
    state_->backend->segment(photo, {&tensors}, as_float(state_->threshold), {{mask.data(), nullptr}});
  }
}

SegmenterStats Segmenter::stats() const {
  const auto [hits, misses] = state_->recent.hits_and_misses();
  return {state_->frames, state_->expressions, hits, misses};
}

const std::string& Segmenter::backend_name() const noexcept { return state_->backend_name; }

const std::vector<std::string>& Segmenter::auto_report() const noexcept { return state_->auto_report; }

std::string Segmenter::notes() const {
  const Gate::Inside inside(state_->gate);
  return state_->backend->notes();
}

const Bundle& Segmenter::bundle() const noexcept { return state_->bundle; }

double Segmenter::threshold() const noexcept { return state_->threshold; }

void Segmenter::close() {
  state_->gate.close();
  const std::lock_guard<std::mutex> guard(state_->closing);
  state_->backend.reset();
}

}  // namespace talent
