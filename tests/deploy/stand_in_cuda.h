// The machine of stand_in_cuda.cpp: GPUs whose memory is the host's, contexts, streams that are queues, events, graphs.
// Nothing that is queued is done before something waits for it. One file includes this.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

enum Status : int32_t {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kNotInitialized = 3,
  kNoDevice = 100,
  kInvalidDevice = 101,
  kInvalidContext = 201,
  kInvalidHandle = 400,
  kIllegalState = 401,
  kNotReady = 600,
  kIllegalAddress = 700,
  kLaunchFailed = 719,
  kNotPermitted = 800,
  kNotSupported = 801,
  kCaptureUnsupported = 900,
  kCaptureInvalidated = 901,
  kCaptureIsolation = 905,
  kCaptureImplicit = 906,
  kCapturedEvent = 907,
  kCaptureWrongThread = 908,
};

struct ErrorWords {
  const char* name;
  const char* words;
};

const std::map<int32_t, ErrorWords> kErrors = {
    {kSuccess, {"CUDA_SUCCESS", "no error"}},
    {kInvalidValue, {"CUDA_ERROR_INVALID_VALUE", "invalid argument"}},
    {kOutOfMemory, {"CUDA_ERROR_OUT_OF_MEMORY", "out of memory"}},
    {kNotInitialized, {"CUDA_ERROR_NOT_INITIALIZED", "initialization error"}},
    {kNoDevice, {"CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"}},
    {kInvalidDevice, {"CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"}},
    {kInvalidContext, {"CUDA_ERROR_INVALID_CONTEXT", "invalid device context"}},
    {kInvalidHandle, {"CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"}},
    {kIllegalState, {"CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"}},
    {kNotReady, {"CUDA_ERROR_NOT_READY", "device not ready"}},
    {kIllegalAddress, {"CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"}},
    {kLaunchFailed, {"CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"}},
    {kNotPermitted, {"CUDA_ERROR_NOT_PERMITTED", "operation not permitted"}},
    {kNotSupported, {"CUDA_ERROR_NOT_SUPPORTED", "operation not supported"}},
    {kCaptureUnsupported,
     {"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"}},
    {kCaptureInvalidated,
     {"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"}},
    {kCaptureIsolation,
     {"CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"}},
    {kCaptureImplicit,
     {"CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", "operation would make the legacy stream depend on a capturing blocking "
                                            "stream"}},
    {kCapturedEvent, {"CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing "
                                                   "stream"}},
    {kCaptureWrongThread,
     {"CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "attempt to terminate a thread-local capture sequence from another "
                                                "thread"}},
};

using Lock = std::unique_lock<std::mutex>;
using Work = std::function<Status(Lock&)>;  // what a stream does; it may give up the lock for a while
using Address = uint64_t;

constexpr uint32_t kNonBlocking = 1;    // of a stream
constexpr uint32_t kWithoutTiming = 2;  // of an event
constexpr uintptr_t kLegacy = 1, kPerThread = 2;
constexpr int32_t kHostMemory = 1, kDeviceMemory = 2;  // CUmemorytype
enum CaptureMode : int32_t { kGlobal = 0, kThreadLocal = 1, kRelaxed = 2 };

struct Capture {
  int32_t mode;
  std::thread::id thread;
  bool valid = true;
  std::vector<Work> works = {};
};

struct Context;

struct Stream {
  Context* context;
  bool blocking;  // waits for the legacy default stream, and that for it
  std::deque<Work> pending = {};
  uint64_t queued = 0, done = 0;
  std::unique_ptr<Capture> capture = nullptr;
  bool running = false;
  std::thread::id runner = {};
};

struct Context {
  int32_t device;
  bool primary;
  bool alive = true;
  Status failed = kSuccess;  // an error of the GPU itself: every later call gives it
  std::shared_ptr<Stream> legacy = nullptr;
  std::map<std::thread::id, std::shared_ptr<Stream>> per_thread = {};
};

// Where in a stream an event was recorded.
struct Mark {
  std::shared_ptr<Stream> stream;
  uint64_t position = 0;
  bool captured = false;
  std::chrono::steady_clock::time_point time;
};

struct Event {
  Context* context;
  bool timing;
  std::shared_ptr<Mark> mark;
};

struct Graph {
  Context* context;
  std::vector<Work> works;
};

struct Memory {
  Context* context;  // nullptr: of a pool, which belongs to a device alone
  int32_t device;
  size_t bytes;
  int32_t type;
  bool managed;
  std::shared_ptr<std::vector<char>> storage;
};

struct Failure {
  int64_t countdown;
  Status status;
};

struct State {
  bool initialized = false;
  int32_t devices = 2;
  size_t total_memory = size_t{1} << 30;
  std::vector<std::unique_ptr<Context>> contexts;  // all that ever were
  std::map<int32_t, Context*> primary;
  std::map<int32_t, int64_t> retained;
  std::map<void*, std::shared_ptr<Stream>> streams;
  std::map<void*, std::shared_ptr<Event>> events;
  std::map<void*, std::shared_ptr<Graph>> graphs, executables;
  std::map<Address, Memory> memory;
  std::vector<std::shared_ptr<std::vector<char>>> freed;  // kept, so that who still uses it finds rubbish, not a crash
  std::map<std::string, Failure> failures;
  std::map<std::string, int64_t> calls;
};

std::mutex mutex;
std::condition_variable changed;
State state;
thread_local std::vector<Context*> current;  // innermost last; nullptr: no context

Context* current_context() { return current.empty() ? nullptr : current.back(); }

// One call of an entry point: holds the lock, counts it, and fails where the test or the context says so.
struct Call {
  Lock lock;
  Status status = kSuccess;
  Context* context;

  explicit Call(const char* name, bool needs_context = true) : lock(mutex), context(current_context()) {
    ++state.calls[name];
    auto planned = state.failures.find(name);
    if (planned != state.failures.end() && --planned->second.countdown == 0) {
      status = planned->second.status;
      state.failures.erase(planned);
    } else if (!needs_context) {
      return;
    } else if (!state.initialized) {
      status = kNotInitialized;
    } else if (context == nullptr || !context->alive) {
      status = kInvalidContext;
    } else {
      status = context->failed;
    }
  }

  // For what must not happen while this thread captures, nor while any does so globally: it ends that capture.
  Status unsafe() {
    if (status != kSuccess) return status;
    for (auto& [handle, stream] : state.streams) {
      Capture* capture = stream->capture.get();
      if (capture == nullptr || capture->mode == kRelaxed) continue;
      if (capture->mode == kThreadLocal && capture->thread != std::this_thread::get_id()) continue;
      capture->valid = false;
      status = kCaptureUnsupported;
    }
    return status;
  }
};

// ---- streams

std::shared_ptr<Stream> find_stream(Context* context, void* handle) {
  auto number = reinterpret_cast<uintptr_t>(handle);
  if (number == 0 || number == kLegacy) return context->legacy;
  if (number == kPerThread) {
    auto& stream = context->per_thread[std::this_thread::get_id()];
    if (stream == nullptr) stream.reset(new Stream{context, true});
    return stream;
  }
  auto found = state.streams.find(handle);
  return found == state.streams.end() || found->second->context != context ? nullptr : found->second;
}

// Work a stream off up to a position, in its order; another thread may be at it.
Status run_until(Stream& stream, uint64_t position, Lock& lock) {
  while (stream.done < position) {
    if (stream.running) {
      if (stream.runner == std::this_thread::get_id()) return kNotPermitted;  // work that waits for itself
      changed.wait(lock);
      continue;
    }
    stream.running = true;
    stream.runner = std::this_thread::get_id();
    Work work = std::move(stream.pending.front());
    stream.pending.pop_front();
    Status status = stream.context->failed == kSuccess ? work(lock) : stream.context->failed;
    if (status != kSuccess) stream.context->failed = status;
    ++stream.done;
    stream.running = false;
    changed.notify_all();
  }
  return stream.context->failed;
}

Work wait_for(std::shared_ptr<Stream> stream, uint64_t position) {
  return [stream, position](Lock& lock) { return run_until(*stream, position, lock); };
}

void push(Stream& stream, Work work) {
  stream.pending.push_back(std::move(work));
  ++stream.queued;
}

std::vector<std::shared_ptr<Stream>> blocking_streams(Context* context) {
  std::vector<std::shared_ptr<Stream>> found;
  for (auto& [handle, stream] : state.streams)
    if (stream->context == context && stream->blocking) found.push_back(stream);
  for (auto& [thread, stream] : context->per_thread) found.push_back(stream);
  return found;
}

Status enqueue(const std::shared_ptr<Stream>& stream, Work work) {
  if (stream->capture != nullptr) {
    if (!stream->capture->valid) return kCaptureInvalidated;
    stream->capture->works.push_back(std::move(work));
    return kSuccess;
  }
  if (stream == stream->context->legacy) {
    for (auto& other : blocking_streams(stream->context)) {
      if (other->capture != nullptr) {
        other->capture->valid = false;
        return kCaptureImplicit;
      }
      push(*stream, wait_for(other, other->queued));
    }
  } else if (stream->blocking) {
    push(*stream, wait_for(stream->context->legacy, stream->context->legacy->queued));
  }
  push(*stream, std::move(work));
  return kSuccess;
}

Status synchronise(Stream& stream, Lock& lock) {
  if (stream.capture != nullptr) {
    stream.capture->valid = false;
    return kCaptureUnsupported;
  }
  return run_until(stream, stream.queued, lock);
}

Status synchronise_all(Context* context, Lock& lock) {
  std::vector<std::shared_ptr<Stream>> all{context->legacy};
  for (auto& [handle, stream] : state.streams)
    if (stream->context == context && stream->capture == nullptr) all.push_back(stream);
  for (auto& [thread, stream] : context->per_thread) all.push_back(stream);
  for (auto& stream : all) run_until(*stream, stream->queued, lock);
  return context->failed;
}

Status create_stream(Call& call, void** handle, uint32_t flags) {
  if (call.status != kSuccess) return call.status;
  std::shared_ptr<Stream> stream(new Stream{call.context, (flags & kNonBlocking) == 0});
  *handle = stream.get();
  state.streams[*handle] = stream;
  return kSuccess;
}

Status destroy_stream(Call& call, void* handle) {
  if (call.status != kSuccess) return call.status;
  return state.streams.erase(handle) == 1 ? kSuccess : kInvalidHandle;
}

Status synchronise_stream(Call& call, void* handle) {
  if (call.status != kSuccess) return call.status;
  std::shared_ptr<Stream> stream = find_stream(call.context, handle);
  return stream == nullptr ? kInvalidHandle : synchronise(*stream, call.lock);
}

// ---- memory

// The block that holds all of [address, address + bytes), or nullptr.
const Memory* find_memory(Address address, size_t bytes) {
  auto after = state.memory.upper_bound(address);
  if (after == state.memory.begin()) return nullptr;
  auto& [start, memory] = *std::prev(after);
  return address + bytes <= start + memory.bytes ? &memory : nullptr;
}

const Memory* find_memory(const void* address, size_t bytes) {
  return find_memory(reinterpret_cast<Address>(address), bytes);
}

size_t used_memory(int32_t device) {
  size_t used = 0;
  for (auto& [address, memory] : state.memory)
    if (memory.device == device && memory.type == kDeviceMemory) used += memory.bytes;
  return used;
}

Status allocate(Call& call, Address* address, size_t bytes, int32_t type, bool managed = false, bool pooled = false) {
  if (call.unsafe() != kSuccess) return call.status;
  if (bytes == 0) return kInvalidValue;
  int32_t device = call.context->device;
  if (type == kDeviceMemory && bytes > state.total_memory - used_memory(device)) return kOutOfMemory;
  auto storage = std::make_shared<std::vector<char>>(bytes + 256, char(0xCD));
  *address = (reinterpret_cast<Address>(storage->data()) + 255) / 256 * 256;  // as CUDA aligns it
  state.memory[*address] = {pooled ? nullptr : call.context, device, bytes, type, managed, storage};
  return kSuccess;
}

Status release(Call& call, Address address, int32_t type) {
  if (call.unsafe() != kSuccess) return call.status;
  if (address == 0) return kSuccess;
  auto found = state.memory.find(address);
  if (found == state.memory.end() || found->second.type != type) return kInvalidValue;
  if (type == kDeviceMemory) {  // freeing it waits for the GPU
    Status status = synchronise_all(call.context, call.lock);
    if (status != kSuccess) return status;
  }
  auto& storage = *found->second.storage;
  std::fill(storage.begin(), storage.end(), char(0xDD));
  state.freed.push_back(found->second.storage);
  if (state.freed.size() > 256) state.freed.erase(state.freed.begin());
  state.memory.erase(found);
  return kSuccess;
}

// Copy when the stream comes to it. What is freed until then is an error of the GPU.
Status copy(Call& call, const std::shared_ptr<Stream>& stream, void* target, const void* source, size_t bytes,
            bool to_device, bool from_device) {
  if (call.status != kSuccess) return call.status;
  if (stream == nullptr) return kInvalidHandle;
  if (bytes == 0) return kSuccess;
  if (target == nullptr || source == nullptr) return kInvalidValue;
  auto registered = [bytes](const void* address) { return find_memory(address, bytes) != nullptr; };
  if ((to_device && !registered(target)) || (from_device && !registered(source))) return kInvalidValue;
  bool check_target = registered(target), check_source = registered(source), capturing = stream->capture != nullptr;
  std::shared_ptr<std::vector<char>> staged;  // pageable memory is read at once, into the driver's own
  if (!check_source && !capturing) {
    auto begin = static_cast<const char*>(source);
    staged = std::make_shared<std::vector<char>>(begin, begin + bytes);
  }
  Status status = enqueue(stream, [=](Lock&) {
    if ((check_target && find_memory(target, bytes) == nullptr) ||
        (check_source && find_memory(source, bytes) == nullptr))
      return kIllegalAddress;
    std::memmove(target, staged != nullptr ? staged->data() : source, bytes);
    return kSuccess;
  });
  if (status != kSuccess || check_target || capturing) return status;
  return synchronise(*stream, call.lock);  // pageable memory is written before the call returns
}

Status copy_now(Call& call, void* target, const void* source, size_t bytes, bool to_device, bool from_device) {
  if (call.unsafe() != kSuccess) return call.status;
  Status status = copy(call, call.context->legacy, target, source, bytes, to_device, from_device);
  return status == kSuccess ? synchronise(*call.context->legacy, call.lock) : status;
}

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

// ---- contexts

Context* make_context(int32_t device, bool primary) {
  state.contexts.emplace_back(new Context{device, primary});
  Context* context = state.contexts.back().get();
  context->legacy.reset(new Stream{context, false});
  return context;
}

Context* find_context(void* handle) {
  for (auto& context : state.contexts)
    if (context.get() == handle) return context.get();
  return nullptr;
}

template <typename Handles>
void lose(Handles& handles, Context* context) {
  for (auto it = handles.begin(); it != handles.end();)
    it = it->second->context == context ? handles.erase(it) : std::next(it);
}

// All that a context has ends with it. Of a sound one it stays, for the test to see what was not given back.
void lose(Context* context) {
  lose(state.streams, context);
  lose(state.events, context);
  lose(state.graphs, context);
  lose(state.executables, context);
  for (auto it = state.memory.begin(); it != state.memory.end();)
    it = it->second.context == context ? state.memory.erase(it) : std::next(it);
}

bool has_device(int32_t device) { return device >= 0 && device < state.devices; }

}  // namespace
