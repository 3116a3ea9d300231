// Plays libcuda.so.1 and libcudart.so on the memory of the host, where no GPU is, and stricter than they are: a stream
// is a queue that nobody works off before something waits for it, so that a wait that is missing shows as wrong data.
// What a call may do, and which error it gives, follows the documentation of CUDA 13. test_cuda.py holds
// deploy/runtime/cuda.py against it; stand_in_cuda.py is Python's side.
#include "stand_in_cuda.h"

extern "C" {

// ---- what the tests ask for

void stand_in_reset(int32_t devices, size_t total_memory) {
  Lock lock(mutex);
  auto contexts = std::move(state.contexts);  // threads may still have them on their stacks
  for (auto& context : contexts) context->alive = false;
  state = State();
  state.contexts = std::move(contexts);
  state.devices = devices;
  state.total_memory = total_memory;
  current.clear();
}

// What is not given back yet. "contexts": how often primary contexts are retained; "pinned": page-locked memory.
int64_t stand_in_live(const char* what) {
  Lock lock(mutex);
  std::string name = what;
  int64_t contexts = 0, device = 0, pinned = 0;
  for (auto& [index, count] : state.retained) contexts += count;
  for (auto& [address, memory] : state.memory) ++(memory.type == kDeviceMemory ? device : pinned);
  if (name == "contexts") return contexts;
  if (name == "allocations") return device;
  if (name == "pinned") return pinned;
  if (name == "streams") return static_cast<int64_t>(state.streams.size());
  if (name == "events") return static_cast<int64_t>(state.events.size());
  if (name == "graphs") return static_cast<int64_t>(state.graphs.size() + state.executables.size());
  return -1;
}

// How deep the stack of contexts of this thread is.
int64_t stand_in_depth(void) { return static_cast<int64_t>(current.size()); }

int64_t stand_in_calls(const char* name) {
  Lock lock(mutex);
  return state.calls[name];
}

// Let the nth call from now of an entry point (1: the next one; named without _v2) give an error.
void stand_in_fail(const char* name, int64_t nth, int32_t status) {
  Lock lock(mutex);
  state.failures[name] = {nth, static_cast<Status>(status)};
}

// Queue a callback, as a kernel would be: captured, it runs at each launch. Other than 0: the kernel failed.
int32_t stand_in_queue(void* handle, int32_t (*callback)(void*), void* data) {
  Call call("stand_in_queue");
  if (call.status != kSuccess) return call.status;
  std::shared_ptr<Stream> stream = find_stream(call.context, handle);
  if (stream == nullptr) return kInvalidHandle;
  return enqueue(stream, [callback, data](Lock& lock) {
    lock.unlock();
    int32_t failed = callback(data);
    lock.lock();
    return failed == 0 ? kSuccess : kLaunchFailed;
  });
}

// ---- the driver: libcuda.so.1

int32_t cuGetErrorName(int32_t status, const char** name) {
  auto found = kErrors.find(status);
  *name = found == kErrors.end() ? nullptr : found->second.name;
  return *name == nullptr ? kInvalidValue : kSuccess;
}

int32_t cuGetErrorString(int32_t status, const char** words) {
  auto found = kErrors.find(status);
  *words = found == kErrors.end() ? nullptr : found->second.words;
  return *words == nullptr ? kInvalidValue : kSuccess;
}

int32_t cuInit(uint32_t) {
  Call call("cuInit", false);
  if (call.status != kSuccess) return call.status;
  state.initialized = true;
  return state.devices == 0 ? kNoDevice : kSuccess;
}

int32_t cuDriverGetVersion(int32_t* version) {
  *version = 13000;
  return kSuccess;
}

int32_t cuDeviceGetCount(int32_t* count) {
  Call call("cuDeviceGetCount", false);
  *count = state.devices;
  return call.status;
}

int32_t cuDeviceGet(int32_t* device, int32_t index) {
  Call call("cuDeviceGet", false);
  if (call.status != kSuccess) return call.status;
  *device = index;
  return has_device(index) ? kSuccess : kInvalidDevice;
}

int32_t cuDeviceGetName(char* name, int32_t size, int32_t device) {
  Call call("cuDeviceGetName", false);
  if (!has_device(device)) return kInvalidDevice;
  std::strncpy(name, ("Stand-in " + std::to_string(device)).c_str(), static_cast<size_t>(size));
  return call.status;
}

int32_t cuDeviceGetAttribute(int32_t* value, int32_t attribute, int32_t device) {
  Call call("cuDeviceGetAttribute", false);
  if (!has_device(device)) return kInvalidDevice;
  *value = attribute == 75 ? 8 : attribute == 76 ? 6 + device : 0;  // compute capability 8.6, and 8.7 for the second
  return call.status;
}

int32_t cuDevicePrimaryCtxRetain(void** context, int32_t device) {
  Call call("cuDevicePrimaryCtxRetain", false);
  if (call.status != kSuccess) return call.status;
  if (!has_device(device)) return kInvalidDevice;
  if (state.retained[device]++ == 0) state.primary[device] = make_context(device, true);
  *context = state.primary[device];
  return kSuccess;
}

int32_t cuDevicePrimaryCtxRelease_v2(int32_t device) {
  Call call("cuDevicePrimaryCtxRelease", false);
  if (call.status != kSuccess) return call.status;
  if (!has_device(device)) return kInvalidDevice;
  if (state.retained[device] == 0) return kInvalidContext;
  if (--state.retained[device] == 0) {
    state.primary[device]->alive = false;
    if (state.primary[device]->failed != kSuccess) lose(state.primary[device]);
  }
  return kSuccess;
}

int32_t cuCtxCreate_v2(void** context, uint32_t, int32_t device) {
  Call call("cuCtxCreate", false);
  if (!has_device(device)) return kInvalidDevice;
  current.push_back(make_context(device, false));
  *context = current.back();
  return kSuccess;
}

int32_t cuCtxCreate_v4(void** context, void*, uint32_t flags, int32_t device) {
  return cuCtxCreate_v2(context, flags, device);
}

int32_t cuCtxDestroy_v2(void* handle) {
  Call call("cuCtxDestroy", false);
  Context* context = find_context(handle);
  if (context == nullptr || context->primary || !context->alive) return kInvalidContext;
  context->alive = false;
  if (current_context() == context) current.pop_back();
  return kSuccess;
}

int32_t cuCtxDetach(void* handle) { return cuCtxDestroy_v2(handle); }

int32_t cuCtxPushCurrent_v2(void* handle) {
  Call call("cuCtxPushCurrent", false);
  if (call.status != kSuccess) return call.status;
  Context* context = find_context(handle);
  if (context == nullptr || !context->alive) return kInvalidContext;
  current.push_back(context);
  return kSuccess;
}

int32_t cuCtxPopCurrent_v2(void** context) {
  Call call("cuCtxPopCurrent", false);
  if (call.status != kSuccess) return call.status;
  if (current.empty()) return kInvalidContext;
  if (context != nullptr) *context = current.back();
  current.pop_back();
  return kSuccess;
}

int32_t cuCtxGetCurrent(void** context) {
  Call call("cuCtxGetCurrent", false);
  *context = current_context();
  return call.status;
}

int32_t cuCtxSetCurrent(void* handle) {
  Call call("cuCtxSetCurrent", false);
  if (handle != nullptr && find_context(handle) == nullptr) return kInvalidContext;
  if (!current.empty()) current.pop_back();
  if (handle != nullptr) current.push_back(find_context(handle));
  return call.status;
}

int32_t cuCtxGetDevice(int32_t* device) {
  Call call("cuCtxGetDevice");
  if (call.status == kSuccess) *device = call.context->device;
  return call.status;
}

int32_t cuCtxSynchronize(void) {
  Call call("cuCtxSynchronize");
  return call.unsafe() == kSuccess ? synchronise_all(call.context, call.lock) : call.status;
}

int32_t cuMemGetInfo_v2(size_t* available, size_t* total) {
  Call call("cuMemGetInfo");
  if (call.status != kSuccess) return call.status;
  *total = state.total_memory;
  *available = state.total_memory - used_memory(call.context->device);
  return kSuccess;
}

int32_t cuMemAlloc_v2(Address* address, size_t bytes) {
  Call call("cuMemAlloc");
  return allocate(call, address, bytes, kDeviceMemory);
}

int32_t cuMemAllocManaged(Address* address, size_t bytes, uint32_t) {
  Call call("cuMemAllocManaged");
  return allocate(call, address, bytes, kDeviceMemory, true);
}

int32_t cuMemAllocAsync(Address* address, size_t bytes, void*) {
  Call call("cuMemAllocAsync");
  return allocate(call, address, bytes, kDeviceMemory, false, true);
}

int32_t cuMemFree_v2(Address address) {
  Call call("cuMemFree");
  return release(call, address, kDeviceMemory);
}

int32_t cuMemHostAlloc(void** address, size_t bytes, uint32_t) {
  Call call("cuMemHostAlloc");
  Address number = 0;
  Status status = allocate(call, &number, bytes, kHostMemory);
  *address = pointer(number);
  return status;
}

int32_t cuMemFreeHost(void* address) {
  Call call("cuMemFreeHost");
  return release(call, reinterpret_cast<Address>(address), kHostMemory);
}

int32_t cuMemcpyHtoDAsync_v2(Address target, const void* source, size_t bytes, void* stream) {
  Call call("cuMemcpyHtoDAsync");
  if (call.status != kSuccess) return call.status;
  return copy(call, find_stream(call.context, stream), pointer(target), source, bytes, true, false);
}

int32_t cuMemcpyDtoHAsync_v2(void* target, Address source, size_t bytes, void* stream) {
  Call call("cuMemcpyDtoHAsync");
  if (call.status != kSuccess) return call.status;
  return copy(call, find_stream(call.context, stream), target, pointer(source), bytes, false, true);
}

int32_t cuMemcpyDtoDAsync_v2(Address target, Address source, size_t bytes, void* stream) {
  Call call("cuMemcpyDtoDAsync");
  if (call.status != kSuccess) return call.status;
  return copy(call, find_stream(call.context, stream), pointer(target), pointer(source), bytes, true, true);
}

int32_t cuMemcpyHtoD_v2(Address target, const void* source, size_t bytes) {
  Call call("cuMemcpyHtoD");
  return copy_now(call, pointer(target), source, bytes, true, false);
}

int32_t cuMemcpyDtoH_v2(void* target, Address source, size_t bytes) {
  Call call("cuMemcpyDtoH");
  return copy_now(call, target, pointer(source), bytes, false, true);
}

int32_t cuPointerGetAttributes(uint32_t count, const int32_t* attributes, void** data, Address address) {
  Call call("cuPointerGetAttributes");
  if (call.status != kSuccess) return call.status;
  const Memory* memory = find_memory(address, 1);
  for (uint32_t i = 0; i < count; ++i) {  // zero for what CUDA does not know
    switch (attributes[i]) {
      case 1: *static_cast<void**>(data[i]) = memory == nullptr ? nullptr : memory->context; break;
      case 2: *static_cast<uint32_t*>(data[i]) = memory == nullptr ? 0 : static_cast<uint32_t>(memory->type); break;
      case 3: *static_cast<Address*>(data[i]) = memory == nullptr ? 0 : address; break;
      case 8: *static_cast<uint32_t*>(data[i]) = memory != nullptr && memory->managed; break;
      case 9: *static_cast<int32_t*>(data[i]) = memory == nullptr ? -2 : memory->device; break;
      default: return kInvalidValue;
    }
  }
  return kSuccess;
}

int32_t cuStreamCreate(void** stream, uint32_t flags) {
  Call call("cuStreamCreate");
  return create_stream(call, stream, flags);
}

int32_t cuStreamDestroy_v2(void* stream) {
  Call call("cuStreamDestroy");
  return destroy_stream(call, stream);
}

int32_t cuStreamSynchronize(void* stream) {
  Call call("cuStreamSynchronize");
  return synchronise_stream(call, stream);
}

int32_t cuStreamQuery(void* handle) {
  Call call("cuStreamQuery");
  if (call.status != kSuccess) return call.status;
  std::shared_ptr<Stream> stream = find_stream(call.context, handle);
  if (stream == nullptr) return kInvalidHandle;
  return stream->done == stream->queued ? kSuccess : kNotReady;
}

int32_t cuStreamWaitEvent(void* handle, void* event, uint32_t) {
  Call call("cuStreamWaitEvent");
  if (call.status != kSuccess) return call.status;
  std::shared_ptr<Stream> stream = find_stream(call.context, handle);
  auto found = state.events.find(event);
  if (stream == nullptr || found == state.events.end()) return kInvalidHandle;
  std::shared_ptr<Mark> mark = found->second->mark;
  if (mark == nullptr) return kSuccess;  // never recorded
  if (mark->captured) return mark->stream == stream ? kSuccess : kNotSupported;  // no graphs of several streams here
  if (stream->capture != nullptr) {
    stream->capture->valid = false;
    return kCaptureIsolation;
  }
  return enqueue(stream, wait_for(mark->stream, mark->position));
}

int32_t cuEventCreate(void** handle, uint32_t flags) {
  Call call("cuEventCreate");
  if (call.status != kSuccess) return call.status;
  std::shared_ptr<Event> event(new Event{call.context, (flags & kWithoutTiming) == 0, nullptr});
  *handle = event.get();
  state.events[*handle] = event;
  return kSuccess;
}

int32_t cuEventDestroy_v2(void* event) {
  Call call("cuEventDestroy");
  if (call.status != kSuccess) return call.status;
  return state.events.erase(event) == 1 ? kSuccess : kInvalidHandle;
}

int32_t cuEventRecord(void* event, void* handle) {
  Call call("cuEventRecord");
  if (call.status != kSuccess) return call.status;
  std::shared_ptr<Stream> stream = find_stream(call.context, handle);
  auto found = state.events.find(event);
  if (stream == nullptr || found == state.events.end() || found->second->context != call.context)
    return kInvalidHandle;
  auto mark = std::make_shared<Mark>();
  Status status = enqueue(stream, [mark](Lock&) {
    mark->time = std::chrono::steady_clock::now();
    return kSuccess;
  });
  mark->stream = stream;
  mark->position = stream->queued;
  mark->captured = stream->capture != nullptr;
  found->second->mark = mark;
  return status;
}

int32_t cuEventSynchronize(void* event) {
  Call call("cuEventSynchronize");
  if (call.status != kSuccess) return call.status;
  auto found = state.events.find(event);
  if (found == state.events.end()) return kInvalidHandle;
  std::shared_ptr<Mark> mark = found->second->mark;
  if (mark == nullptr) return kSuccess;
  if (mark->captured) return kCapturedEvent;
  return run_until(*mark->stream, mark->position, call.lock);
}

int32_t cuEventElapsedTime(float* milliseconds, void* start, void* end) {
  Call call("cuEventElapsedTime");
  if (call.status != kSuccess) return call.status;
  std::shared_ptr<Mark> marks[2];
  void* handles[2] = {start, end};
  for (int i = 0; i < 2; ++i) {
    auto found = state.events.find(handles[i]);
    if (found == state.events.end() || !found->second->timing || found->second->mark == nullptr)
      return kInvalidHandle;
    marks[i] = found->second->mark;
    if (marks[i]->captured || marks[i]->stream->done < marks[i]->position) return kNotReady;
  }
  *milliseconds = std::chrono::duration<float, std::milli>(marks[1]->time - marks[0]->time).count();
  return kSuccess;
}

int32_t cuEventElapsedTime_v2(float* milliseconds, void* start, void* end) {
  return cuEventElapsedTime(milliseconds, start, end);
}

int32_t cuStreamBeginCapture_v2(void* handle, int32_t mode) {
  Call call("cuStreamBeginCapture");
  if (call.status != kSuccess) return call.status;
  std::shared_ptr<Stream> stream = find_stream(call.context, handle);
  if (stream == nullptr) return kInvalidHandle;
  if (stream == call.context->legacy) return kCaptureUnsupported;
  if (stream->capture != nullptr) return kIllegalState;
  stream->capture.reset(new Capture{mode, std::this_thread::get_id()});
  return kSuccess;
}

int32_t cuStreamEndCapture(void* handle, void** graph) {
  Call call("cuStreamEndCapture");
  *graph = nullptr;
  std::shared_ptr<Stream> stream = call.context == nullptr ? nullptr : find_stream(call.context, handle);
  if (stream == nullptr) return kInvalidHandle;
  if (stream->capture == nullptr) return kIllegalState;
  if (stream->capture->mode != kRelaxed && stream->capture->thread != std::this_thread::get_id())
    return kCaptureWrongThread;
  std::unique_ptr<Capture> capture = std::move(stream->capture);  // ended, however it ended
  if (call.status != kSuccess) return call.status;
  if (!capture->valid) return kCaptureInvalidated;
  auto made = std::make_shared<Graph>(Graph{call.context, std::move(capture->works)});
  *graph = made.get();
  state.graphs[*graph] = made;
  return kSuccess;
}

int32_t cuStreamIsCapturing(void* handle, int32_t* status) {
  Call call("cuStreamIsCapturing");
  if (call.status != kSuccess) return call.status;
  std::shared_ptr<Stream> stream = find_stream(call.context, handle);
  if (stream == nullptr) return kInvalidHandle;
  *status = stream->capture == nullptr ? 0 : stream->capture->valid ? 1 : 2;
  return kSuccess;
}

int32_t cuGraphInstantiateWithFlags(void** executable, void* graph, uint64_t) {
  Call call("cuGraphInstantiate");
  if (call.status != kSuccess) return call.status;
  auto found = state.graphs.find(graph);
  if (found == state.graphs.end()) return kInvalidValue;
  auto made = std::make_shared<Graph>(*found->second);
  *executable = made.get();
  state.executables[*executable] = made;
  return kSuccess;
}

int32_t cuGraphLaunch(void* executable, void* handle) {
  Call call("cuGraphLaunch");
  if (call.status != kSuccess) return call.status;
  std::shared_ptr<Stream> stream = find_stream(call.context, handle);
  auto found = state.executables.find(executable);
  if (stream == nullptr || found == state.executables.end()) return kInvalidHandle;
  return enqueue(stream, [graph = found->second](Lock& lock) {
    for (auto& work : graph->works)
      if (Status status = work(lock); status != kSuccess) return status;
    return kSuccess;
  });
}

int32_t cuGraphDestroy(void* graph) {
  Call call("cuGraphDestroy");
  if (call.status != kSuccess) return call.status;
  return state.graphs.erase(graph) == 1 ? kSuccess : kInvalidValue;
}

int32_t cuGraphExecDestroy(void* executable) {
  Call call("cuGraphExecDestroy");
  if (call.status != kSuccess) return call.status;
  return state.executables.erase(executable) == 1 ? kSuccess : kInvalidValue;
}

// ---- the runtime: libcudart.so. The real one makes the primary context current where none is; here that is an error.

thread_local int32_t last_error = kSuccess;  // what the next check after a kernel's launch would take for its own

int32_t cudaGetLastError(void) { return std::exchange(last_error, kSuccess); }

int32_t cudaMalloc(void** address, size_t bytes) {
  Call call("cudaMalloc");
  Address number = 0;
  last_error = allocate(call, &number, bytes, kDeviceMemory);
  *address = pointer(number);
  return last_error;
}

int32_t cudaFree(void* address) {
  Call call("cudaFree");
  return last_error = release(call, reinterpret_cast<Address>(address), kDeviceMemory);
}

int32_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, int32_t kind, void* stream) {
  Call call("cudaMemcpyAsync");
  if (call.status != kSuccess) return last_error = call.status;
  bool to_device = kind == 1 || kind == 3, from_device = kind == 2 || kind == 3;
  return last_error = copy(call, find_stream(call.context, stream), target, source, bytes, to_device, from_device);
}

int32_t cudaMemcpy(void* target, const void* source, size_t bytes, int32_t kind) {
  Call call("cudaMemcpy");
  return last_error = copy_now(call, target, source, bytes, kind == 1 || kind == 3, kind == 2 || kind == 3);
}

int32_t cudaStreamCreate(void** stream) {
  Call call("cudaStreamCreate");
  return last_error = create_stream(call, stream, 0);
}

int32_t cudaStreamDestroy(void* stream) {
  Call call("cudaStreamDestroy");
  return last_error = destroy_stream(call, stream);
}

int32_t cudaStreamSynchronize(void* stream) {
  Call call("cudaStreamSynchronize");
  return last_error = synchronise_stream(call, stream);
}

}  // extern "C"
