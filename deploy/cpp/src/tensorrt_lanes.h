// As many lanes as there are callers at once.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "tensorrt_lane.h"

namespace talent {

class TensorRtLanes {
 public:
  explicit TensorRtLanes(TensorRtModel& model) : model_(model) {}

  // What `work` does in a lane of its own: one of those that nobody uses, first of those that `prefers` likes, or else
  // a new one. A lane that throws is never used again.
  template <typename Work, typename Prefers>
  auto in_one(const Prefers& prefers, const Work& work) {
    std::unique_ptr<TensorRtLane> lane = take(prefers);
    auto result = work(*lane);
    const std::lock_guard lock(lock_);
    idle_.push_back(std::move(lane));
    return result;
  }

 private:
  std::unique_ptr<TensorRtLane> take(const std::function<bool(const TensorRtLane&)>& prefers);

  TensorRtModel& model_;
  std::mutex lock_;
  std::vector<std::unique_ptr<TensorRtLane>> idle_;  // the one that was used last at the end
};

}  // namespace talent
