// The instructions that multiply a warp's strip of a weight, a stage at a time, with tokens in shared
// memory. Each atom has
//   MultiplyStage(acc, x, num_tokens, operand, used, meanwhile)
// acc += W x. acc[4 o] .. acc[4 o + 3] belong to the tokens 8 o .. 8 o + 7
// as d does in device::MmaBf16; those of octets that hold no token may be anything. x is a swizzled
// sub-tile of gemm_stage.h. operand(j, a) gives the warp's operand of step j, a quarter of the stage; it is asked
// once for each j, in order, and its registers are needed no more when used(j) is called.
// meanwhile() is called once: work that does not need the result.
#pragma once

#include "cuda/device/mbarrier.h"
#include "cuda/device/mma.h"
#include "cuda/device/wgmma.h"
#include "cuda/gemm_stage.h"

namespace jevons::cuda {

// mma.sync: every warp for itself. Octets without a token are left out.
template <int kTokens>
struct MmaSyncAtom {
  static constexpr int kOctets = kTokens / 8;

  template <typename Operand, typename Used, typename Meanwhile>
  __device__ __forceinline__ static void MultiplyStage(float (&acc)[4 * kOctets],
                                                       const unsigned char* x, int num_tokens,
                                                       const Operand& operand, const Used& used,
                                                       const Meanwhile& meanwhile) {
    if constexpr (kOctets == 1) {
      MultiplyOctet(acc, x, operand, used);
    } else {
      MultiplyPairs(acc, x, num_tokens, operand, used);
    }
    meanwhile();
  }

 private:
  // One LdMatrix4 feeds two steps.
  template <typename Operand, typename Used>
  __device__ __forceinline__ static void MultiplyOctet(float (&acc)[4 * kOctets],
                                                       const unsigned char* x,
                                                       const Operand& operand, const Used& used) {
    const int matrix = device::LaneIdx() / 8;
    const int row = device::LaneIdx() % 8;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      uint32_t b[4];
      if (j % 2 == 0) device::LdMatrix4(b, x + SwizzledOffset(row, 2 * j + matrix));
      uint32_t a[4];
      operand(j, a);
      Multiply(acc, 0, a, b[j % 2 * 2], b[j % 2 * 2 + 1]);
      used(j);
    }
  }

  // One LdMatrix4 feeds one step of two octets; the next one is loaded before they are multiplied.
  template <typename Operand, typename Used>
  __device__ __forceinline__ static void MultiplyPairs(float (&acc)[4 * kOctets],
                                                       const unsigned char* x, int num_tokens,
                                                       const Operand& operand, const Used& used) {
    const int matrix = device::LaneIdx() / 8;
    const int row = device::LaneIdx() % 8;
    const unsigned char* const lane_row = x + (matrix / 2 * 8 + row) * kTokenBytes;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      uint32_t a[4];
      operand(j, a);
      const unsigned char* const pair = lane_row + ((2 * j + matrix % 2) ^ row) * 16;
      uint32_t b[2][4];
      device::LdMatrix4(b[0], pair);
#pragma unroll
      for (int o = 0; o < kOctets; o += 2) {
        const bool more = o + 2 < kOctets && 8 * (o + 2) < num_tokens;
        if (more) device::LdMatrix4(b[(o / 2 + 1) % 2], pair + (o + 2) * 8 * kTokenBytes);
        const uint32_t(&now)[4] = b[o / 2 % 2];
        Multiply(acc, o, a, now[0], now[1]);
        Multiply(acc, o + 1, a, now[2], now[3]);
        if (!more) break;
      }
      used(j);
    }
  }

  __device__ __forceinline__ static void Multiply(float (&acc)[4 * kOctets], int octet,
                                                  const uint32_t (&a)[4], uint32_t b0,
                                                  uint32_t b1) {
    const uint32_t b[2] = {b0, b1};
    float d[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) d[i] = acc[4 * octet + i];
    device::MmaBf16(d, a, b);
#pragma unroll
    for (int i = 0; i < 4; ++i) acc[4 * octet + i] = d[i];
  }
};

// wgmma: four warps with a strip each, all of them with the same kColumns rows of x, and all call.
template <int kColumns, bool kFp8>
struct WgmmaAtom {
  template <typename Operand, typename Used, typename Meanwhile>
  __device__ __forceinline__ static void MultiplyStage(float (&acc)[kColumns / 2],
                                                       const unsigned char* x, int num_tokens,
                                                       const Operand& operand, const Used& used,
                                                       const Meanwhile& meanwhile) {
    uint32_t a[4][4];
#pragma unroll
    for (int j = 0; j < 4; ++j) operand(j, a[j]);
    Begin(acc, a, x, true);
    meanwhile();
    device::WgmmaWait<0>(acc);
#pragma unroll
    for (int j = 0; j < 4; ++j) used(j);
  }

  // acc += W x, or = where accumulate is false, which is under way until device::WgmmaWait.
  __device__ __forceinline__ static void Begin(float (&acc)[kColumns / 2],
                                               const uint32_t (&a)[4][4], const unsigned char* x,
                                               bool accumulate) {
    constexpr int kOctetBytes = 8 * kTokenBytes;
    device::WgmmaFence(acc);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint64_t b = device::SmemDescriptor(x + 32 * j, 0, kOctetBytes, device::Swizzle::k128);
      if constexpr (kFp8) {
        device::WgmmaE4m3<kColumns>(acc, a[j], b, accumulate || j > 0);
      } else {
        device::WgmmaBf16<kColumns>(acc, a[j], b, accumulate || j > 0);
      }
    }
    device::WgmmaCommit();
  }
};

}  // namespace jevons::cuda
