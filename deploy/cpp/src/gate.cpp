#include "gate.h"

#include <stdexcept>
#include <utility>

namespace talent {

Gate::Gate(std::string what) : what_(std::move(what)) {}

Gate::Inside::Inside(Gate& gate) : gate_(gate) {
  const std::lock_guard<std::mutex> guard(gate_.lock_);
  if (!gate_.open_) {
    throw std::runtime_error(gate_.what_ + " is closed");
  }
  ++gate_.inside_;
}

Gate::Inside::~Inside() {
  const std::lock_guard<std::mutex> guard(gate_.lock_);  // also while it tells: the gate may go as soon as it is free
  --gate_.inside_;
  gate_.changed_.notify_all();
}

void Gate::close() {
  std::unique_lock<std::mutex> guard(lock_);
  open_ = false;
  changed_.wait(guard, [this] { return inside_ == 0; });
}

}  // namespace talent
