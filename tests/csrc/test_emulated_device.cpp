// The emulated device itself: it must find what a GPU would not forgive.
#include "emulated_device.h"

#include <cmath>
#include <vector>

#include "check.h"
#include "device.h"

using namespace talent;
using emulated::Order;

namespace {

// Every thread hands its number to the next one through shared memory.
std::vector<int> neighbours(Order order, bool with_barrier) {
  std::vector<int> result(64, -1);
  const char* wrong = emulated::launch(1, 64, 64 * 4, order, [&] {
    auto* shared = reinterpret_cast<int*>(device::shared_memory());
    shared[device::thread()] = device::thread();
    if (with_barrier) {
      device::synchronize_block();
    }
    result[static_cast<size_t>(device::thread())] = shared[(device::thread() + 1) % 64];
  });
  check::that(wrong == nullptr, "no error, received %s", wrong);
  return result;
}

void check_order() {
  const std::vector<int> expected = neighbours(Order::kForward, true);
  check::that(expected[5] == 6 && expected[63] == 0, "each thread to read its neighbour's number");
  check::that(neighbours(Order::kBackward, true) == expected, "the order of threads not to matter after a barrier");
  check::that(neighbours(Order::kShuffled, true) == expected, "the order of threads not to matter after a barrier");
  check::that(neighbours(Order::kForward, false) != neighbours(Order::kBackward, false), "a race to show in the order");
}

void check_deadlock() {
  const char* wrong = emulated::launch(1, 32, 0, Order::kForward, [] {
    if (device::thread() != 7) {
      device::exchange(1.0f, 1);
    } else {
      device::synchronize_block();
    }
  });
  check::that(wrong != nullptr, "an operation that one lane of a warp leaves out to be an error");
  wrong = emulated::launch(1, 64, 0, Order::kForward, [] {
    if (device::thread() < 32) {  // a warp that has ended waits for nobody, as on a GPU
      device::synchronize_block();
    }
  });
  check::that(wrong == nullptr, "a warp that has ended to hold up nobody, received %s", wrong);
}

void check_warp() {
  std::vector<float> sums(64);
  emulated::launch(1, 64, 0, Order::kShuffled, [&] {
    auto sum = static_cast<float>(device::thread());
    for (int mask = 16; mask > 0; mask /= 2) {
      sum += device::exchange(sum, mask);
    }
    sums[static_cast<size_t>(device::thread())] = sum;
  });
  for (int i = 0; i < 64; ++i) {
    const float expected = i < 32 ? 496.0f : 1520.0f;
    check::that(sums[static_cast<size_t>(i)] == expected, "lane %d to hold %g, received %g", i, expected,
                sums[static_cast<size_t>(i)]);
  }
}

void check_tf32() {
  check::that(device::to_tf32(1.0f + 0x1p-11f) == 0x3f802000u, "a tie to round away from zero");
  check::that(device::to_tf32(1.0f + 0x1p-12f) == 0x3f800000u, "less than a tie to round down");
  check::that(device::to_tf32(HUGE_VALF) == 0x7f800000u, "infinity to stay");
}

}  // namespace

int main() {
  check_order();
  check_deadlock();
  check_warp();
  check_tf32();
  return check::result();
}
