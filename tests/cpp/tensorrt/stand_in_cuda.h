// Stands for CUDA's runtime where no GPU is, in the functions that libtalent calls: memory of "the GPU" is memory of
// the host, and what is put into a stream is only done when somebody waits for it, so that a wait that was forgotten
// shows. What real CUDA would refuse, or read and write beyond, is an error here, too.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "export.h"

namespace stand_in {

// Puts work into a stream, or into the graph that is captured from it.
TALENT_EXPORT void enqueue(cudaStream_t stream, std::function<void()> work);

// Whether all of these bytes are in one piece of the GPU's memory.
TALENT_EXPORT bool is_on_gpu(const void* memory, size_t bytes);

// Counts what lives: memory, streams, events, graphs, and what the stand-in for TensorRT makes.
TALENT_EXPORT void count(const char* what, int change);
TALENT_EXPORT int64_t living(const std::string& what);
std::string all_living();  // "2 streams", say; empty where nothing lives

// GPUs that there are; none: there is no driver.
void set_gpus(int count);

// Calls by the function's name since `forget`.
std::map<std::string, int> calls();
void forget();

// The n-th call from now on (0 for the next) fails with this error, and only that one. Functions that free are not
// counted. `failed`: which function it was; empty where it has not come.
void fail(int nth, cudaError_t error);
std::string failed();

// Called at the start of each cudaStreamSynchronize.
void on_synchronize(std::function<void()> call);

// Work that was still in a stream when that was destroyed.
int abandoned();

}  // namespace stand_in
