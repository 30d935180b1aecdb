// FillRandom writes 16 bytes a thread and round. ReadMemory gives a block rounds of 64 KB: every
// thread asks for eight times 16 bytes before it uses the first. No barriers.
#include "bench/cuda_kernels.h"

#include "cuda/device/copy.h"
#include "cuda/device/launch.h"
#include "cuda/device/numeric.h"
#include "cuda/device/thread.h"

namespace jevons {
namespace {

using cuda::Launch;
using cuda::LaunchShape;

constexpr int kFillThreads = 256;
constexpr int64_t kFillBlocks = 4096;
constexpr int kReadThreads = 512;
constexpr int kLoadsAhead = 8;
static_assert(kReadRoundBytes == int64_t{16} * kReadThreads * kLoadsAhead);

struct FillParams {
  uint4* data;
  int64_t count;
  RandomKind kind;
  float scale;
  uint64_t seed;
};

struct ReadParams {
  const char* data;
  int64_t num_rounds;
  uint32_t* sink;
};

// A bijection of 64 bits that scatters neighbours: the finalizer of SplitMix64 (Steele et al.
// 2014).
__device__ __forceinline__ uint64_t Scatter(uint64_t x) {
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
  x = (x ^ x >> 27) * 0x94D049BB133111EBu;
  return x ^ x >> 31;
}

// Uniform with variance 1 from 16 bits.
__device__ __forceinline__ float Uniform(uint32_t bits) {
  constexpr float kWidth = 3.4641016f;  // sqrt(12)
  return (static_cast<float>(bits & 0xFFFFu) * 0x1p-16f + 0x1p-17f - 0.5f) * kWidth;
}

__device__ __forceinline__ uint32_t RandomWord(const FillParams& p, uint32_t bits) {
  switch (p.kind) {
    case RandomKind::kBf16:
      return device::PackBf16(p.scale * Uniform(bits), p.scale * Uniform(bits >> 16));
    case RandomKind::kF32:
      return device::FloatBits(p.scale * Uniform(bits ^ bits >> 16));
    default:
      // Any sign and mantissa; the exponent fields 5 to 8 are 2^-2 to 2^1.
      return (bits & 0x9F9F9F9Fu) + 0x28282828u;
  }
}

__global__ void __launch_bounds__(kFillThreads) FillKernel(const __grid_constant__ FillParams p) {
  const int64_t step = static_cast<int64_t>(device::GridDimX()) * kFillThreads;
  int64_t i = static_cast<int64_t>(device::BlockIdxX()) * kFillThreads + device::ThreadIdx();
  for (; i < p.count; i += step) {
    const uint64_t first = Scatter(p.seed + 2 * static_cast<uint64_t>(i));
    const uint64_t second = Scatter(p.seed + 2 * static_cast<uint64_t>(i) + 1);
    p.data[i] = make_uint4(RandomWord(p, static_cast<uint32_t>(first)),
                           RandomWord(p, static_cast<uint32_t>(first >> 32)),
                           RandomWord(p, static_cast<uint32_t>(second)),
                           RandomWord(p, static_cast<uint32_t>(second >> 32)));
  }
}

__global__ void __launch_bounds__(kReadThreads) ReadKernel(const __grid_constant__ ReadParams p) {
  uint32_t sum = 0;
  for (int64_t round = device::BlockIdxX(); round < p.num_rounds; round += device::GridDimX()) {
    const char* from = p.data + round * kReadRoundBytes + device::ThreadIdx() * 16;
    uint4 v[kLoadsAhead];
#pragma unroll
    for (int i = 0; i < kLoadsAhead; ++i) {
      v[i] = device::LoadStream16(from + i * (kReadThreads * 16));
    }
#pragma unroll
    for (int i = 0; i < kLoadsAhead; ++i) sum ^= v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
  }
  if (sum == 0x9E3779B9u) *p.sink = sum;
}

__global__ void NothingKernel(int) {}

}  // namespace

int FillRandom(void* data, int64_t bytes, RandomKind kind, float scale, uint64_t seed,
               void* stream) {
  const FillParams p = {static_cast<uint4*>(data), bytes / 16, kind, scale,
                        seed * 0x9E3779B97F4A7C15u};
  LaunchShape shape;
  const int64_t blocks = (p.count + kFillThreads - 1) / kFillThreads;
  shape.grid = dim3(static_cast<unsigned>(blocks < kFillBlocks ? blocks : kFillBlocks));
  shape.block = kFillThreads;
  return Launch(FillKernel, shape, static_cast<cudaStream_t>(stream), p);
}

int ReadMemory(const void* data, int64_t bytes, int32_t num_blocks, uint32_t* sink, void* stream) {
  const ReadParams p = {static_cast<const char*>(data), bytes / kReadRoundBytes, sink};
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(num_blocks));
  shape.block = kReadThreads;
  return Launch(ReadKernel, shape, static_cast<cudaStream_t>(stream), p);
}

int DoNothing(void* stream) {
  LaunchShape shape;
  shape.block = 32;
  return Launch(NothingKernel, shape, static_cast<cudaStream_t>(stream), 0);
}

}  // namespace jevons
