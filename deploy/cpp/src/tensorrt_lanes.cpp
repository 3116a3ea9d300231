#include "tensorrt_lanes.h"

#include <algorithm>

namespace talent {

std::unique_ptr<TensorRtLane> TensorRtLanes::take(const std::function<bool(const TensorRtLane&)>& prefers) {
  {
    const std::lock_guard lock(lock_);
    if (!idle_.empty()) {
      auto chosen = std::find_if(idle_.begin(), idle_.end(), [&](const auto& lane) { return prefers(*lane); });
      if (chosen == idle_.end()) {
        chosen = idle_.begin();  // unused for longest: what it holds is needed least
      }
      std::unique_ptr<TensorRtLane> lane = std::move(*chosen);
      idle_.erase(chosen);
      return lane;
    }
  }
  return std::make_unique<TensorRtLane>(model_);
}

}  // namespace talent
