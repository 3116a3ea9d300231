// What a kernel asks of its device. nvcc maps each onto the instruction; other compilers leave them to an emulation of
// the device on the host (tests/csrc/emulated_device.cpp), so that the very code of a kernel is tested where no GPU is.
#pragma once

#include <cstdint>
#include <cstring>

// Keywords cannot be constexpr: what kernels call, what the host calls as well, and a loop whose arrays are registers.
#ifdef __CUDACC__
#define TALENT_UNROLL _Pragma("unroll")
#define TALENT_DEVICE __device__ __forceinline__
#define TALENT_BOTH __host__ __device__ __forceinline__
#else
#define TALENT_UNROLL
#define TALENT_DEVICE inline
#define TALENT_BOTH inline
#endif

namespace talent {

constexpr int kWarp = 32;

// What one load or store moves at most.
struct alignas(16) Vector {
  uint32_t words[4];
};

namespace device {

#ifdef __CUDACC__

extern __shared__ Vector shared_vectors[];

TALENT_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
TALENT_DEVICE int threads() { return static_cast<int>(blockDim.x); }
TALENT_DEVICE int64_t block_index() { return blockIdx.x; }
TALENT_DEVICE char* shared_memory() { return reinterpret_cast<char*>(shared_vectors); }
TALENT_DEVICE void synchronize_block() { __syncthreads(); }
TALENT_DEVICE void synchronize_warp() { __syncwarp(); }

// To global memory that this kernel does not read, at a multiple of 16 bytes. (nvcc splits an ordinary store at times.)
TALENT_DEVICE void write(void* to, const Vector& vector) {
  asm volatile("st.global.v4.b32 [%0], {%1,%2,%3,%4};" ::"l"(__cvta_generic_to_global(to)), "r"(vector.words[0]),
               "r"(vector.words[1]), "r"(vector.words[2]), "r"(vector.words[3]));
}

// The value of the lane whose number differs in the bits of `mask`. Called by whole warps.
TALENT_DEVICE float exchange(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

TALENT_DEVICE uint32_t exchange(uint32_t value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

// Atomic on global memory: to add, and to replace what is smaller.
TALENT_DEVICE void add_to(uint32_t* sum, uint32_t value) { atomicAdd(sum, value); }
TALENT_DEVICE void add_to(uint64_t* sum, uint64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(sum), static_cast<unsigned long long>(value));
}
TALENT_DEVICE void raise_to(uint32_t* largest, uint32_t value) { atomicMax(largest, value); }

// FP32 rounded to TF32 (10 bits of fraction), as the bits that the matrix unit reads.
TALENT_DEVICE uint32_t to_tf32(float value) {
#if __CUDA_ARCH__ >= 800
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
#else
  __trap();  // a library without code for this GPU was compiled for it from older PTX
  return 0;
#endif
}

// sums [16, 8] += left [16, 16] @ right [16, 8] of half types by one warp, with FP32 sums. In lane 4 g + t:
//   sums   (g, 2t) (g, 2t+1) (g+8, 2t) (g+8, 2t+1)
//   left   pairs (g, 2t) (g+8, 2t) (g, 2t+8) (g+8, 2t+8), right  pairs (2t, g) (2t+8, g)
// where a pair goes along the inner size.
template <bool kBfloat16>
TALENT_DEVICE void multiply_halves(float (&sums)[4], const uint32_t (&left)[4], const uint32_t (&right)[2]) {
#if __CUDA_ARCH__ >= 800
  if constexpr (kBfloat16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
  } else {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
  }
#else
  __trap();
#endif
}

// sums [16, 8] += left [16, 8] @ right [8, 8] in TF32 by one warp. In lane 4 g + t:
//   sums   as above, left  (g, t) (g+8, t) (g, t+4) (g+8, t+4), right  (t, g) (t+4, g)
TALENT_DEVICE void multiply_tf32(float (&sums)[4], const uint32_t (&left)[4], const uint32_t (&right)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
#else
  __trap();
#endif
}

#else

int thread();
int threads();
int64_t block_index();
char* shared_memory();
void synchronize_block();
void synchronize_warp();
inline void write(void* to, const Vector& vector) { *static_cast<Vector*>(to) = vector; }
float exchange(float value, int mask);
uint32_t exchange(uint32_t value, int mask);
inline void add_to(uint32_t* sum, uint32_t value) { *sum += value; }
inline void add_to(uint64_t* sum, uint64_t value) { *sum += value; }
inline void raise_to(uint32_t* largest, uint32_t value) { *largest = *largest > value ? *largest : value; }
uint32_t to_tf32(float value);
template <bool kBfloat16>
void multiply_halves(float (&sums)[4], const uint32_t (&left)[4], const uint32_t (&right)[2]);
void multiply_tf32(float (&sums)[4], const uint32_t (&left)[4], const uint32_t (&right)[2]);

#endif

}  // namespace device
}  // namespace talent
