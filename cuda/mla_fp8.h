// Tiles of FP8 entries: how they come to shared memory as they are, and how they become the bf16
// tile that everything after them reads.
#pragma once

#include <cstdint>

#include "cuda/device/numeric.h"
#include "cuda/mla_load.h"

namespace jevons::cuda::mla {

// Entries [first, first + kKeys) of the sequence, by kThreads threads, of which this is `thread`:
// zero from the item's last key on, all bits set where the block table is wrong, which reads as
// NaN.
template <int kKeys, int kThreads, int kRawBytes>
__device__ __forceinline__ void LoadEntries(const AttentionParams& args, const MlaItem& item,
                                            int first, int thread, uint8_t (&raw)[kRawBytes]) {
  constexpr int kEntryBytes = kRawBytes / kKeys;
  const MlaAttentionParams& p = args.p;
  const int32_t* table = p.block_tables + item.seq * p.table_stride;
  const int entry_bytes = args.plan.entry_bytes;
  const int lane_bytes = thread % kLanesPerRow * 16;
  for (int row = thread / kLanesPerRow; row < kKeys; row += kThreads / kLanesPerRow) {
    const int key = first + row;
    const bool real = key < item.end_key;
    const int32_t block = real ? table[key / p.block_size] : 0;
    uint8_t* to = raw + row * kEntryBytes;
    if (!real || block < 0 || block >= p.num_blocks) {
      const uint32_t bits = real ? 0xFFFFFFFFu : 0u;
      for (int at = lane_bytes; at < entry_bytes; at += kLanesPerRow * 16) {
        *reinterpret_cast<uint4*>(to + at) = make_uint4(bits, bits, bits, bits);
      }
      continue;
    }
    const int64_t entry = static_cast<int64_t>(block) * p.block_size + key % p.block_size;
    const uint8_t* from = static_cast<const uint8_t*>(p.cache) + entry * entry_bytes;
#pragma unroll
    for (int line = 0; line < kEntryBytes; line += kLanesPerRow * 16) {
      const int at = line + lane_bytes;
      if (at < entry_bytes) device::CpAsync<16>(to + at, from + at, 16);
    }
  }
}

// Two e4m3 in the upper bytes of both halves as a pair of bf16 times `scale`, a pair of powers of
// two: exponent and mantissa move to where bf16 has them, and the product with 2^120 mends the bias
// and the subnormals. Both products are exact; 2^120 * scale might not be finite.
__device__ __forceinline__ uint32_t ScaleE4m3(uint32_t pair, uint32_t scale) {
  constexpr uint32_t kBias = 0x7B807B80u;  // 2^120, twice
  const uint32_t bits = (pair & 0x80008000u) | (pair >> 4 & 0x07F007F0u);
  return device::MulBf16(device::MulBf16(bits, kBias), scale);
}
__device__ __forceinline__ uint4 ScaleE4m3(uint2 eight, uint32_t scale) {
  constexpr uint32_t kLow = 0x1404;  // 0, byte 0, 0, byte 1
  constexpr uint32_t kHigh = 0x3424;
  return make_uint4(ScaleE4m3(device::PermuteBytes(eight.x, 0, kLow), scale),
                    ScaleE4m3(device::PermuteBytes(eight.x, 0, kHigh), scale),
                    ScaleE4m3(device::PermuteBytes(eight.y, 0, kLow), scale),
                    ScaleE4m3(device::PermuteBytes(eight.y, 0, kHigh), scale));
}

// The tile's entries as bf16: latents in columns [0, latent), keys from column kLatent on, zeros
// elsewhere; chunk i of eight columns goes to place(row, i). Sixteen lanes take the 128 bytes of a
// group, whose scale is one.
template <int kLatent, int kKeys, int kThreads, int kRawBytes, typename Place>
__device__ __forceinline__ void ConvertEntries(const AttentionParams& args,
                                               const uint8_t (&raw)[kRawBytes],
                                               const Place& place) {
  constexpr int kLatentChunks = kLatent / 8;
  constexpr int kLanes = kLatentChunks < 16 ? kLatentChunks : 16;
  constexpr int kRounds = kLatentChunks / kLanes;
  constexpr int kRopeChunks = kRopePadded / 8;
  static_assert(kLanes * 8 == kFp8Group || kLanes == kLatentChunks);
#pragma unroll 1
  for (int first = 0; first < kKeys; first += kThreads / kLanes) {
    const int thread = device::Opaque(device::ThreadIdx());
    const int lane = thread % kLanes;
    const int row = first + thread / kLanes;
    if (row >= kKeys) break;
    const uint8_t* entry = raw + row * (kRawBytes / kKeys);
    // All loads before the first store, which the compiler cannot know to be elsewhere.
    uint2 eight[kRounds];
    float scale[kRounds];
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      const int chunk = lane + i * kLanes;
      eight[i] = *reinterpret_cast<const uint2*>(entry + chunk * 8);
      scale[i] = *reinterpret_cast<const float*>(entry + args.plan.entry_scales + 4 * i);
      if (chunk * 8 < args.p.latent) continue;
      eight[i] = make_uint2(0, 0);
      scale[i] = 0;
    }
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      *reinterpret_cast<uint4*>(place(row, lane + i * kLanes)) =
          ScaleE4m3(eight[i], device::PackBf16(scale[i], scale[i]));
    }
    if (lane >= kRopeChunks) continue;
    uint4 key = make_uint4(0, 0, 0, 0);
    if (lane * 8 < args.p.rope) {
      key = *reinterpret_cast<const uint4*>(entry + args.plan.entry_keys + lane * 16);
    }
    *reinterpret_cast<uint4*>(place(row, kLatentChunks + lane)) = key;
  }
}

}  // namespace jevons::cuda::mla
