// Rectified cost aggregation, the operator that carries words into the image features:
//
//     output = act((visual @ text^T) @ weight^T + bias) * visual
//
// B batch, N image tokens, K words (1 for the sentence), D channels. Source: paper arXiv 2604.00609, the RCA equations;
// what it has to compute is `rca_reference` of talent/model/rca.py.
//
// This header knows pointers, sizes and a stream, and neither TensorRT nor PyTorch: both are thin adapters over it.
#pragma once

#include <cstddef>
#include <cstdint>

struct CUstream_st;  // a cudaStream_t points to one, so that this header compiles where no CUDA toolkit is

namespace talent {

enum class RcaType : int32_t { kFloat = 0, kHalf = 1, kBfloat16 = 2 };

enum class RcaActivation : int32_t { kNone = 0, kRelu = 1 };

// kSimt computes with the ordinary FP32 units, kTensorCore with the matrix units (half types, D of 64, 128 or 256
// with K up to 64, D of 512 with K up to 24, compute capability 8.0 on). kAuto takes what is expected to be faster.
// Where addresses are off 16 bytes, or text and weight do not fit into a block's shared memory, both compute with what
// is left.
enum class RcaMethod : int32_t { kAuto = 0, kSimt = 1, kTensorCore = 2 };

// The fewest words for which kTensorCore is expected to be faster: one tile; with less the units multiply mostly zeros.
constexpr int64_t kRcaTensorWords = 8;

// The first compute capability whose matrix units are used: 8.0 has TF32 and BF16.
constexpr int kRcaTensorCapability = 80;

// One call. All tensors are contiguous and of one type; `output` overlaps none of the others.
struct RcaProblem {
  const void* visual;  // [B or 1, N, D]
  const void* text;    // [B, K, D]
  const void* weight;  // [D, K]
  const void* bias;    // [D]
  void* output;        // [B, N, D]
  int64_t visual_batch;  // B, or 1 for one picture with many expressions
  int64_t batch;
  int64_t tokens;
  int64_t words;
  int64_t width;
  RcaType type;
  RcaActivation activation;
};

// Compute it on the device that is current, on `stream`: one launch, no workspace, no synchronisation, safe under graph
// capture, and with the same bits every time. Sums are FP32 in all types. Returns nullptr, or what is wrong (text with
// static storage): a size or pointer that cannot be, or CUDA's own words. An empty output is no error and launches
// nothing.
const char* rca_cost_aggregation(const RcaProblem& problem, RcaMethod method, CUstream_st* stream);

// The same on the host, one element after the other: what the kernels are held against. Returns as above.
const char* rca_reference(const RcaProblem& problem);

// What is wrong with the sizes, the type or the pointers of a problem; nullptr where nothing is.
const char* rca_problem_error(const RcaProblem& problem);

// Whether there is a kernel of kTensorCore for such sizes and types on a device (86 for compute capability 8.6).
bool rca_takes_tensor_cores(const RcaProblem& problem, int capability);

}  // namespace talent
