// A device that runs the kernels of deploy/csrc on the host, one block after the other, so that their very code is
// tested where no GPU is: the threads of a block are fibers that change over at each barrier, and the operations of a
// warp are computed from what its 32 lanes hold, in the layouts of the PTX instruction set. Timing means nothing here.
#pragma once

#include <cstdint>
#include <functional>

namespace emulated {

// The order in which the threads of a block run between two barriers. A result that depends on it is a race.
enum class Order : int32_t { kForward = 0, kBackward = 1, kShuffled = 2 };

// Run `kernel` in every thread of `blocks` blocks. Shared memory is exactly `shared_bytes`, and NaN before each block.
// Returns nullptr, or what is wrong: threads that wait for each other forever, as they would on a GPU.
const char* launch(int64_t blocks, int threads, int shared_bytes, Order order, const std::function<void()>& kernel);

}  // namespace emulated
