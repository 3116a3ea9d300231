#include "cuda_graph.h"

#include <exception>

namespace talent {

CudaGraphExec capture(cudaStream_t stream, const std::function<void()>& work) {
  // Other threads go on allocating memory meanwhile.
  check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin the capture of a graph");
  std::exception_ptr failure;
  try {
    work();
  } catch (...) {
    failure = std::current_exception();
  }
  cudaGraph_t captured = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream, &captured);  // whatever happened
  const CudaGraph graph(captured);
  if (failure != nullptr) {
    cudaGetLastError();  // what ended the capture has been told
    std::rethrow_exception(failure);
  }
  check_cuda(ended, "end the capture of a graph");
  cudaGraphExec_t made = nullptr;
  check_cuda(cudaGraphInstantiateWithFlags(&made, graph.get(), 0), "instantiate a graph");
  return CudaGraphExec(made);
}

void CudaGraphs::give_up(const std::string& reason) {
  const std::lock_guard lock(lock_);
  if (on_.exchange(false)) {
    notes_ = "CUDA graphs are off, each frame is launched kernel by kernel: " + reason;
  }
}

std::string CudaGraphs::notes() const {
  const std::lock_guard lock(lock_);
  return notes_;
}

}  // namespace talent
