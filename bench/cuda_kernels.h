// The small kernels of the GPU benches: random numbers, a read of memory, nothing at all. Each
// queues work on a cudaStream_t and returns a cudaError_t; the header stands without CUDA's.
#pragma once

#include <cstdint>

namespace jevons {

enum class RandomKind : int32_t {
  kBf16,  // uniform, mean 0, standard deviation `scale`
  kF32,   // the same
  kE4m3,  // finite, magnitudes from 1/4 to 4; `scale` is not used
};

// data 16-byte aligned, bytes a multiple of 16.
int FillRandom(void* data, int64_t bytes, RandomKind kind, float scale, uint64_t seed,
               void* stream);

// Bytes of one round of ReadMemory: it reads whole rounds.
inline constexpr int64_t kReadRoundBytes = 64 << 10;

// Reads the memory once, in `num_blocks` blocks. `sink` u32: written with a chance of 2^-32.
int ReadMemory(const void* data, int64_t bytes, int32_t num_blocks, uint32_t* sink, void* stream);

// One block that does nothing.
int DoNothing(void* stream);

}  // namespace jevons
