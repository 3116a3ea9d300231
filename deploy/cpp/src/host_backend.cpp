#include "host_backend.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <utility>

#include "letterbox_check.h"
#include "picture_math.h"
#include "talent/errors.h"

namespace talent {
namespace {

// As an int, which the checks of a letterbox look at.
int checked_size(int64_t image_size) {
  const int size = static_cast<int>(std::min<int64_t>(image_size, std::numeric_limits<int>::max()));
  check_letterbox({1, 1, size});
  return size;
}

}  // namespace

void refuse_logits(const std::string& precision) {
  throw Error("the " + precision + " network gave logits that are not finite, which FP16 overflow does; export the "
              "bundle again with talent-export --fp32");
}

// What one call needs: kept for the next one, so that a frame makes no large memory.
struct HostBackend::Lane {
  std::vector<float> input;  // [3, S, S]
  Logits logits;
};

// A lane for the length of a call.
class HostBackend::Borrowed {
 public:
  explicit Borrowed(HostBackend& backend) : backend_(backend) {
    {
      const std::lock_guard<std::mutex> guard(backend_.lock_);
      if (!backend_.idle_.empty()) {
        lane_ = std::move(backend_.idle_.back());
        backend_.idle_.pop_back();
        return;
      }
      backend_.idle_.reserve(static_cast<size_t>(++backend_.lanes_));  // so that giving one back cannot fail
    }
    lane_ = std::make_unique<Lane>();
    lane_->input.resize(size_t{3} * static_cast<size_t>(backend_.size_) * static_cast<size_t>(backend_.size_));
  }
  ~Borrowed() {
    const std::lock_guard<std::mutex> guard(backend_.lock_);
    backend_.idle_.push_back(std::move(lane_));
  }
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;

  Lane* operator->() const { return lane_.get(); }

 private:
  HostBackend& backend_;
  std::unique_ptr<Lane> lane_;
};

HostBackend::HostBackend(const Bundle& bundle)
    : size_(checked_size(bundle.image_size())), precision_(bundle.precision()) {}

HostBackend::~HostBackend() = default;

std::vector<MaskSummary> HostBackend::segment(const PhotoView& photo, const std::vector<const PromptTensors*>& prompts,
                                              float threshold, const std::vector<MaskTarget>& targets) {
  const Borrowed lane(*this);
  const Letterbox letterbox = preprocess(photo, size_, lane->input.data());
  vision(lane->input.data(), size_, prompts, lane->logits);
  const Logits& logits = lane->logits;
  const int64_t area = int64_t{logits.height} * logits.width;
  if (logits.count != static_cast<int64_t>(prompts.size()) || logits.count != static_cast<int64_t>(targets.size()) ||
      static_cast<int64_t>(logits.values.size()) < logits.count * area) {
    throw std::logic_error("expected the logits of " + std::to_string(targets.size()) + " expressions, received " +
                           std::to_string(logits.count));
  }
  if (!std::all_of(logits.values.begin(), logits.values.begin() + logits.count * area, picture::is_finite)) {
    refuse_logits(precision_);
  }
  std::vector<MaskSummary> summaries;
  summaries.reserve(targets.size());
  for (const MaskTarget& target : targets) {
    const float* own = logits.values.data() + static_cast<int64_t>(summaries.size()) * area;
    summaries.push_back(mask_on_photo(own, logits.height, logits.width, letterbox, threshold, target.mask,
                                      target.probability));
  }
  return summaries;
}

std::vector<MaskSummary> HostBackend::segment(const DevicePhotoView&, const std::vector<const PromptTensors*>&, float,
                                              const std::vector<MaskTarget>&) {
  throw Error("expected a photo in the memory of the host, received one on the GPU, which the backend " + name() +
              " does not read; copy it to the host, or use the backend tensorrt");
}

}  // namespace talent
