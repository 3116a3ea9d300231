#include "stand_in_cuda.h"

#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

using Work = std::function<void()>;

struct CUgraph_st {
  std::vector<Work> nodes;
};

struct CUgraphExec_st {
  std::vector<Work> nodes;
};

struct CUstream_st {
  std::deque<Work> queue;
  uint64_t put = 0;
  uint64_t done = 0;
  std::unique_ptr<CUgraph_st> capturing;
  std::thread::id capturer;
  bool broken = false;  // the capture
};

struct CUevent_st {
  CUstream_st* stream = nullptr;
  uint64_t position = 0;
};

namespace stand_in {
namespace {

constexpr int kGarbage = 0xa5;

std::recursive_mutex lock;
std::map<const std::byte*, size_t> gpu_memory, pinned_memory;
std::map<std::string, int64_t> lives;
std::map<std::string, int> called;
std::vector<CUstream_st*> captures;
CUstream_st default_stream;
int gpus = 1;
int until_failure = -1;
cudaError_t failure = cudaSuccess;
std::string failed_call;
std::function<void()> synchronize_call;
int abandoned_work = 0;
thread_local int current_gpu = 0;
thread_local cudaError_t last_error = cudaSuccess;

CUstream_st& own(cudaStream_t stream) { return stream == nullptr ? default_stream : *stream; }

cudaError_t told(cudaError_t error) {
  if (error != cudaSuccess) {
    last_error = error;
  }
  return error;
}

// A call that may be made to fail. `lock` is held.
cudaError_t enter(const char* name) {
  ++called[name];
  if (until_failure >= 0 && until_failure-- == 0) {
    failed_call = name;
    return told(failure);
  }
  return told(gpus == 0 ? cudaErrorInsufficientDriver : cudaSuccess);
}

bool is_inside(const std::map<const std::byte*, size_t>& pieces, const void* memory, size_t bytes) {
  const auto* begin = static_cast<const std::byte*>(memory);
  auto piece = pieces.upper_bound(begin);
  return piece != pieces.begin() && (--piece, begin + bytes <= piece->first + piece->second);
}

void drain(CUstream_st& stream, uint64_t position) {
  while (stream.done < position) {
    const Work work = std::move(stream.queue.front());
    stream.queue.pop_front();
    ++stream.done;
    work();
  }
}

// What must not be called by a thread that captures.
bool breaks_capture() {
  for (CUstream_st* stream : captures) {
    if (stream->capturer == std::this_thread::get_id()) {
      stream->broken = true;
      return true;
    }
  }
  return false;
}

cudaError_t allocate(std::map<const std::byte*, size_t>& pieces, void** memory, size_t bytes, const char* what) {
  if (breaks_capture()) {
    return told(cudaErrorStreamCaptureUnsupported);
  }
  *memory = std::malloc(bytes);
  std::memset(*memory, kGarbage, bytes);
  pieces[static_cast<std::byte*>(*memory)] = bytes;
  count(what, 1);
  return cudaSuccess;
}

cudaError_t release(std::map<const std::byte*, size_t>& pieces, void* memory, const char* what) {
  const std::lock_guard guard(lock);
  if (memory != nullptr && pieces.erase(static_cast<std::byte*>(memory)) == 0) {
    return told(cudaErrorInvalidValue);
  }
  std::free(memory);
  count(what, memory == nullptr ? 0 : -1);
  return cudaSuccess;
}

}  // namespace

void enqueue(cudaStream_t handle, std::function<void()> work) {
  const std::lock_guard guard(lock);
  CUstream_st& stream = own(handle);
  if (stream.capturing != nullptr) {
    stream.capturing->nodes.push_back(std::move(work));
  } else {
    stream.queue.push_back(std::move(work));
    ++stream.put;
  }
}

bool is_on_gpu(const void* memory, size_t bytes) {
  const std::lock_guard guard(lock);
  return is_inside(gpu_memory, memory, bytes);
}

void count(const char* what, int change) {
  const std::lock_guard guard(lock);
  lives[what] += change;
}

int64_t living(const std::string& what) {
  const std::lock_guard guard(lock);
  return lives[what];
}

std::string all_living() {
  const std::lock_guard guard(lock);
  std::string text;
  for (const auto& [what, number] : lives) {
    text += number == 0 ? "" : std::to_string(number) + " " + what + " ";
  }
  return text;
}

void set_gpus(int count) { gpus = count; }

std::map<std::string, int> calls() {
  const std::lock_guard guard(lock);
  return called;
}

void forget() {
  const std::lock_guard guard(lock);
  called.clear();
}

void fail(int nth, cudaError_t error) {
  const std::lock_guard guard(lock);
  until_failure = nth;
  failure = error;
  failed_call.clear();
}

std::string failed() { return failed_call; }

void on_synchronize(std::function<void()> call) { synchronize_call = std::move(call); }

int abandoned() { return abandoned_work; }

}  // namespace stand_in

using namespace stand_in;

extern "C" {

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaErrorOfStandIn";
}

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory" : "an error of the stand-in";
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = gpus == 0 ? 0 : 13000;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  const std::lock_guard guard(lock);
  *count = gpus;
  return enter("cudaGetDeviceCount");
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const std::lock_guard guard(lock);
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 8 : 9;
  return enter("cudaDeviceGetAttribute");
}

cudaError_t cudaGetDevice(int* device) {
  const std::lock_guard guard(lock);
  *device = current_gpu;
  return enter("cudaGetDevice");
}

cudaError_t cudaSetDevice(int device) {
  const std::lock_guard guard(lock);
  const cudaError_t error = enter("cudaSetDevice");
  if (error == cudaSuccess) {
    current_gpu = device;
  }
  return error;
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  const std::lock_guard guard(lock);
  const cudaError_t error = enter("cudaMalloc");
  ++called["cudaMalloc on GPU " + std::to_string(current_gpu)];
  return error != cudaSuccess ? error : allocate(gpu_memory, memory, bytes, "memory");
}

cudaError_t cudaMallocHost(void** memory, size_t bytes) {
  const std::lock_guard guard(lock);
  const cudaError_t error = enter("cudaMallocHost");
  return error != cudaSuccess ? error : allocate(pinned_memory, memory, bytes, "pinned memory");
}

cudaError_t cudaFree(void* memory) { return release(gpu_memory, memory, "memory"); }
cudaError_t cudaFreeHost(void* memory) { return release(pinned_memory, memory, "pinned memory"); }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  const std::lock_guard guard(lock);
  const cudaError_t error = enter("cudaStreamCreateWithFlags");
  if (error == cudaSuccess) {
    *stream = new CUstream_st;
    count("streams", 1);
  }
  return error;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const std::lock_guard guard(lock);
  abandoned_work += static_cast<int>(stream->queue.size());
  delete stream;
  count("streams", -1);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (synchronize_call) {
    synchronize_call();
  }
  const std::lock_guard guard(lock);
  cudaError_t error = enter("cudaStreamSynchronize");
  if (breaks_capture()) {
    error = told(cudaErrorStreamCaptureUnsupported);
  }
  if (error == cudaSuccess) {
    drain(own(stream), own(stream).put);
  }
  return error;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  const std::lock_guard guard(lock);
  const cudaError_t error = enter("cudaEventCreateWithFlags");
  if (error == cudaSuccess) {
    *event = new CUevent_st;
    count("events", 1);
  }
  return error;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const std::lock_guard guard(lock);
  delete event;
  count("events", -1);
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const std::lock_guard guard(lock);
  const cudaError_t error = enter("cudaEventRecord");
  if (error == cudaSuccess) {
    *event = {&own(stream), own(stream).put};
  }
  return error;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const std::lock_guard guard(lock);
  const cudaError_t error = enter("cudaStreamWaitEvent");
  if (error == cudaSuccess) {
    enqueue(stream, [waited = *event] { drain(*waited.stream, waited.position); });
  }
  return error;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  const std::lock_guard guard(lock);
  const cudaError_t error = enter("cudaMemcpyAsync");
  if (error != cudaSuccess) {
    return error;
  }
  const bool up = kind == cudaMemcpyHostToDevice;
  if (!is_inside(gpu_memory, up ? to : from, bytes) || is_inside(gpu_memory, up ? from : to, bytes) ||
      (!up && !is_inside(pinned_memory, to, bytes))) {
    return told(cudaErrorInvalidValue);
  }
  enqueue(stream, [=] { std::memcpy(to, from, bytes); });
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const std::lock_guard guard(lock);
  const cudaError_t error = enter("cudaStreamBeginCapture");
  if (error == cudaSuccess) {
    stream->capturing = std::make_unique<CUgraph_st>();
    stream->capturer = std::this_thread::get_id();
    stream->broken = false;
    captures.push_back(stream);
  }
  return error;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const std::lock_guard guard(lock);
  *status = stream->capturing == nullptr ? cudaStreamCaptureStatusNone : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const std::lock_guard guard(lock);
  const cudaError_t error = enter("cudaStreamEndCapture");
  std::unique_ptr<CUgraph_st> captured = std::move(stream->capturing);
  for (auto at = captures.begin(); at != captures.end();) {
    at = *at == stream ? captures.erase(at) : at + 1;
  }
  if (error != cudaSuccess || stream->broken) {
    *graph = nullptr;
    return error != cudaSuccess ? error : told(cudaErrorStreamCaptureInvalidated);
  }
  *graph = captured.release();
  count("graphs", 1);
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  const std::lock_guard guard(lock);
  delete graph;
  count("graphs", -1);
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
  const std::lock_guard guard(lock);
  const cudaError_t error = enter("cudaGraphInstantiateWithFlags");
  if (error == cudaSuccess) {
    *made = new CUgraphExec_st{graph->nodes};
    count("graphs that can be launched", 1);
  }
  return error;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  const std::lock_guard guard(lock);
  const cudaError_t error = enter("cudaGraphLaunch");
  if (error == cudaSuccess) {
    enqueue(stream, [nodes = graph->nodes] {
      for (const Work& work : nodes) {
        work();
      }
    });
  }
  return error;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  const std::lock_guard guard(lock);
  delete graph;
  count("graphs that can be launched", -1);
  return cudaSuccess;
}

}  // extern "C"
