// Tokens on their way to the tensor cores: rows of x, gathered, into swizzled shared memory.
#pragma once

#include "cuda/device/copy.h"
#include "cuda/device/numeric.h"
#include "cuda/gemm.h"
#include "ops/fp8_entry.h"

namespace jevons::cuda {

// A token's columns of a stage in shared memory, 64 of bf16 or 128 of e4m3: 128 bytes, whose eight pieces of 16 are permuted by the
// token's lowest three bits. So eight tokens' pieces of the same columns lie in different banks.
constexpr int kTokenBytes = kStageColumns * 2;

__device__ __forceinline__ int SwizzledOffset(int token, int piece) {
  return token * kTokenBytes + ((piece ^ (token & 7)) * 16);
}

// Copies `bytes` in pieces of kSize, zeroes the rest of 16.
template <int kSize>
__device__ __forceinline__ void CopyPieces(unsigned char* to, const void* from, int bytes) {
  const unsigned char* const first = static_cast<const unsigned char*>(from);
#pragma unroll
  for (int i = 0; i < 16; i += kSize) {
    device::CpAsync<kSize>(to + i, first + i, Min(Max(bytes - i, 0), kSize));
  }
}

__device__ __forceinline__ void CopySingles(unsigned char* to, const device::Bf16* from, int num) {
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t low = 2 * i < num ? from[2 * i].bits : 0u;
    const uint32_t high = 2 * i + 1 < num ? from[2 * i + 1].bits : 0u;
    pairs[i] = low | high << 16;
  }
  *reinterpret_cast<uint4*>(to) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

// Columns [column, column + 8) of a row of x to 16 bytes of shared memory, zeroes past k; zeroes
// alone where `row` is null. `alignment` is what every row of x has, in bytes.
__device__ __forceinline__ void CopyToken(unsigned char* to, const device::Bf16* row, int column,
                                          int k, int alignment, const void* aligned) {
  const int num = row == nullptr ? 0 : Min(Max(k - column, 0), 8);
  if (alignment == 16 || num == 0) {
    device::CpAsync<16>(to, num == 0 ? aligned : row + column, 2 * num);
  } else if (alignment == 8) {
    CopyPieces<8>(to, row + column, 2 * num);
  } else if (alignment == 4) {
    CopyPieces<4>(to, row + column, 2 * num);
  } else {
    CopySingles(to, row + column, num);
  }
}

// The same of 16 columns of a row of FP8, which is filled up with zeros to a multiple of 16.
__device__ __forceinline__ void CopyFp8Token(unsigned char* to, const uint8_t* row, int column,
                                             int k, const void* aligned) {
  const bool there = row != nullptr && column < k;
  device::CpAsync<16>(to, there ? row + column : aligned, there ? 16 : 0);
}

// The scale of such a row in a stage; 0 where there is no row: nobody asks for what it gives.
__device__ __forceinline__ void CopyTokenScale(float* to, const uint8_t* row, int stage, int k,
                                               const void* aligned) {
  const bool there = row != nullptr;
  device::CpAsync<4>(to, there ? row + Fp8Entry{k, 0}.scales() + 4 * stage : aligned,
                     there ? 4 : 0);
}

// NaN as bf16 and as e4m3.
__device__ __forceinline__ void FillNan(unsigned char* to) {
  constexpr uint32_t kNanPair = 0x7FC07FC0u;
  *reinterpret_cast<uint4*>(to) = make_uint4(kNanPair, kNanPair, kNanPair, kNanPair);
}

}  // namespace jevons::cuda
