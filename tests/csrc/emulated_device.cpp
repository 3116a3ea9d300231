#include "emulated_device.h"

#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "device.h"
#include "number_formats.h"

namespace emulated {
namespace {

using talent::kWarp;

constexpr size_t kStackBytes = 256 * 1024;

enum class State { kReady, kAtWarpBarrier, kAtBlockBarrier, kDone };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state;
};

// What a lane puts before its warp.
struct Operands {
  float value;
  uint32_t left[4];
  uint32_t right[2];
};

struct Block {
  int64_t index;
  int threads;
  char* shared;
  const std::function<void()>* kernel;
  std::vector<Fiber> fibers;
  std::vector<Operands> operands;
  ucontext_t scheduler;
  int running;
};

Block* block = nullptr;

void wait_at(State barrier) {
  Fiber& fiber = block->fibers[static_cast<size_t>(block->running)];
  fiber.state = barrier;
  swapcontext(&fiber.context, &block->scheduler);
}

void run_fiber() {
  (*block->kernel)();
  block->fibers[static_cast<size_t>(block->running)].state = State::kDone;
}

// Let those go on who wait at a barrier that all others who still run have reached.
bool release(size_t begin, size_t end, State barrier) {
  bool waiting = false;
  for (size_t i = begin; i < end; ++i) {
    const State state = block->fibers[i].state;
    if (state != barrier && state != State::kDone) {
      return false;
    }
    waiting = waiting || state == barrier;
  }
  for (size_t i = begin; i < end; ++i) {
    if (block->fibers[i].state == barrier) {
      block->fibers[i].state = State::kReady;
    }
  }
  return waiting;
}

bool release_all() {
  const size_t threads = block->fibers.size();
  bool released = release(0, threads, State::kAtBlockBarrier);
  for (size_t warp = 0; warp < threads; warp += kWarp) {
    released = release(warp, std::min(warp + kWarp, threads), State::kAtWarpBarrier) || released;
  }
  return released;
}

void start(Fiber& fiber) {
  if (!fiber.stack) {
    fiber.stack.reset(new char[kStackBytes]);  // not filled with zeros, which would take longer than most kernels
  }
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = &block->scheduler;
  makecontext(&fiber.context, run_fiber, 0);
  fiber.state = State::kReady;
}

const char* run_block(std::vector<int>& order, bool shuffled, std::mt19937& random) {
  std::for_each(block->fibers.begin(), block->fibers.end(), start);
  do {
    if (shuffled) {
      std::shuffle(order.begin(), order.end(), random);
    }
    for (const int thread : order) {
      if (block->fibers[static_cast<size_t>(thread)].state == State::kReady) {
        block->running = thread;
        swapcontext(&block->scheduler, &block->fibers[static_cast<size_t>(thread)].context);
      }
    }
  } while (release_all());
  for (const Fiber& fiber : block->fibers) {
    if (fiber.state != State::kDone) {
      return "threads wait for each other: a barrier or an operation of a warp was not reached by all of them";
    }
  }
  return nullptr;
}

// Puts this lane's operands before the warp; returns those of its 32 lanes. `finish` when they have been read.
const Operands* exchange_operands(const Operands& mine) {
  block->operands[static_cast<size_t>(block->running)] = mine;
  wait_at(State::kAtWarpBarrier);
  return block->operands.data() + block->running / kWarp * kWarp;
}

void finish() { wait_at(State::kAtWarpBarrier); }

float tf32(uint32_t bits) { return talent::formats::float_of(bits & ~0x1fffu); }  // the unit does not read the rest

}  // namespace

const char* launch(int64_t blocks, int threads, int shared_bytes, Order order, const std::function<void()>& kernel) {
  const size_t vectors = static_cast<size_t>((shared_bytes + 15) / 16);
  Block current = {};
  current.threads = threads;
  current.kernel = &kernel;
  current.fibers.resize(static_cast<size_t>(threads));
  current.operands.resize(static_cast<size_t>(threads));
  block = &current;
  std::mt19937 random(0);
  std::vector<int> turns(static_cast<size_t>(threads));
  std::iota(turns.begin(), turns.end(), 0);
  if (order == Order::kBackward) {
    std::reverse(turns.begin(), turns.end());
  }
  const char* wrong = nullptr;
  for (int64_t index = 0; index < blocks && wrong == nullptr; ++index) {
    const auto shared = std::make_unique<talent::Vector[]>(vectors);  // of its own, so that a sanitizer sees its ends
    memset(shared.get(), 0xff, vectors * sizeof(talent::Vector));
    current.index = index;
    current.shared = reinterpret_cast<char*>(shared.get());
    wrong = run_block(turns, order == Order::kShuffled, random);
  }
  block = nullptr;
  return wrong;
}

}  // namespace emulated

namespace talent::device {

using emulated::block;

int thread() { return block->running; }
int threads() { return block->threads; }
int64_t block_index() { return block->index; }
char* shared_memory() { return block->shared; }
void synchronize_block() { emulated::wait_at(emulated::State::kAtBlockBarrier); }
void synchronize_warp() { emulated::wait_at(emulated::State::kAtWarpBarrier); }

float exchange(float value, int mask) {
  const emulated::Operands* lanes = emulated::exchange_operands({value, {}, {}});
  const float result = lanes[(block->running % kWarp) ^ mask].value;
  emulated::finish();
  return result;
}

uint32_t exchange(uint32_t value, int mask) {
  const emulated::Operands* lanes = emulated::exchange_operands({0.0f, {value}, {}});
  const uint32_t result = lanes[(block->running % kWarp) ^ mask].left[0];
  emulated::finish();
  return result;
}

uint32_t to_tf32(float value) {
  const uint32_t bits = formats::bits_of(value);
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & ~0x1fffu;
}

template <bool kBfloat16>
void multiply_halves(float (&sums)[4], const uint32_t (&left)[4], const uint32_t (&right)[2]) {
  using Number = std::conditional_t<kBfloat16, Bfloat16, Half>;
  const emulated::Operands* lanes =
      emulated::exchange_operands({0.0f, {left[0], left[1], left[2], left[3]}, {right[0], right[1]}});
  const int g = block->running % kWarp / 4;
  const int t = block->running % 4;
  const auto number = [](uint32_t pair, int k) {
    return to_float(Number{static_cast<uint16_t>(pair >> (k % 2 * 16))});
  };
  for (int i = 0; i < 4; ++i) {
    const int row = g + i / 2 * 8;
    const int column = 2 * t + i % 2;
    for (int k = 0; k < 16; ++k) {
      const uint32_t a = lanes[row % 8 * 4 + k % 8 / 2].left[row / 8 + k / 8 * 2];
      const uint32_t b = lanes[column * 4 + k % 8 / 2].right[k / 8];
      sums[i] += number(a, k) * number(b, k);
    }
  }
  emulated::finish();
}

template void multiply_halves<false>(float (&)[4], const uint32_t (&)[4], const uint32_t (&)[2]);
template void multiply_halves<true>(float (&)[4], const uint32_t (&)[4], const uint32_t (&)[2]);

void multiply_tf32(float (&sums)[4], const uint32_t (&left)[4], const uint32_t (&right)[2]) {
  const emulated::Operands* lanes =
      emulated::exchange_operands({0.0f, {left[0], left[1], left[2], left[3]}, {right[0], right[1]}});
  const int g = block->running % kWarp / 4;
  const int t = block->running % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g + i / 2 * 8;
    const int column = 2 * t + i % 2;
    for (int k = 0; k < 8; ++k) {
      const uint32_t a = lanes[row % 8 * 4 + k % 4].left[row / 8 + k / 4 * 2];
      const uint32_t b = lanes[column * 4 + k % 4].right[k / 4];
      sums[i] += emulated::tf32(a) * emulated::tf32(b);
    }
  }
  emulated::finish();
}

}  // namespace talent::device
