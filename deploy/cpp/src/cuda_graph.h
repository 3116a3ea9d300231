// CUDA graphs: what was put into a stream once, launched as one from then on.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <functional>
#include <mutex>
#include <string>

#include "cuda_memory.h"

namespace talent {

// What `work` puts into a stream; nothing of it is run. Throws Error where that cannot be captured, after which the
// stream is as it was before.
CudaGraphExec capture(cudaStream_t stream, const std::function<void()>& work);

// Whether graphs are captured. Given up once, it is given up for good. Threads may share it.
class CudaGraphs {
 public:
  explicit CudaGraphs(bool on) : on_(on) {}

  bool on() const noexcept { return on_; }
  void give_up(const std::string& reason);
  std::string notes() const;  // why it was given up; empty where it was not

 private:
  std::atomic<bool> on_;
  mutable std::mutex lock_;
  std::string notes_;
};

}  // namespace talent
