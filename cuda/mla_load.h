// One tile of keys, or of queries, in shared memory: what lies there and how it comes there.
#pragma once

#include <cstdint>

#include "cuda/device/copy.h"
#include "cuda/mla_args.h"
#include "ops/fp8_entry.h"

namespace jevons::cuda::mla {

constexpr int kNumWarps = kMlaThreads / 32;
constexpr int kKeyQuarters = 4;
constexpr int kLanesPerRow = 8;  // of a copy: 128 bytes side by side
constexpr int kCopyRows = kMlaThreads / kLanesPerRow;

template <int kLatentPadded, int kKeysPerTile, MlaEntry kEntryType>
struct Traits {
  static constexpr int kLatent = kLatentPadded;
  static constexpr int kKeys = kKeysPerTile;
  static constexpr bool kFp8 = kEntryType == MlaEntry::kFp8;
  // FP8 entries land as they are, in two buffers, and one tile of bf16 is made of them.
  static constexpr int kTiles = kFp8 ? 1 : 2;
  static constexpr int kRawBytes = kFp8 ? Fp8Entry{kLatent, kRopePadded}.bytes() : 0;
  static constexpr int kWidth = kLatent + kRopePadded;
  static constexpr int kChunks = kWidth / 8;                  // of 16 bytes
  static constexpr int kKeyTiles = kKeys / 8 / kKeyQuarters;  // of 8 keys, of one warp
  static constexpr int kKeysPerLane = kKeys / 32;
  static constexpr int kColumnTiles = kLatent == kSmallLatent ? 2 : kLatent / 8 / kNumWarps;
  static constexpr int kValueWarps = kLatent / 8 / kColumnTiles;
  static_assert(kKeys == 32 || kKeys == 64);
  static_assert(kMlaWorkTokens % kKeys == 0);
  static_assert(kWidth % 64 == 0 && kLatent % 64 == 0);  // swizzled lines of 64 elements
  static_assert(kColumnTiles % 2 == 0 && kValueWarps <= kNumWarps);
};

// FP8 entries as they came from the cache; nothing where there are none.
template <int kBytes>
struct RawEntries {
  alignas(128) uint8_t raw[2][kBytes];
};
template <>
struct RawEntries<0> {};

template <typename T>
struct alignas(128) Shared : RawEntries<T::kKeys * T::kRawBytes> {
  alignas(128) Bf16 q[kMlaMostRows * T::kWidth];
  Bf16 keys[T::kTiles][T::kKeys * T::kWidth];
  uint32_t weights[kMlaMostRows * 32];  // pairs, rows of 128 bytes
  // The row's padding lets a quarter warp's rows fall on different banks.
  float scores[2][kMlaMostRows][T::kKeys + 8];
  float alpha[kMlaMostRows];
  MlaSoftmax softmax[kMlaMostRows];  // of the split that ends
  int32_t position[kMlaMostRows];    // -1 past the last row
  int32_t broken[T::kKeys];          // only where num_not_finite is not 0
  int32_t num_not_finite;            // scores of this tile
  int32_t is_last;
  MlaWalkerShared walker;
};

// Where a 16-byte chunk of a tile's row lies: among the eight chunks of a 128-byte line it changes
// places with the row, so that rows that follow each other put the same chunk on other banks.
// Chunk + 8 lies kSwizzled elements further.
constexpr int kSwizzled = 64;
template <typename T>
__device__ __forceinline__ int Swizzled(int row, int chunk) {
  return row * T::kWidth + (chunk ^ (row & 7)) * 8;
}
// The same among the weights, pairs in rows of 128 bytes.
__device__ __forceinline__ int SwizzledWeights(int row, int chunk) {
  return row * 32 + (chunk ^ (row & 7)) * 4;
}

// Eight elements of which `num_left` exist (perhaps fewer than 1); the others become zero.
__device__ __forceinline__ void CopyChunk(Bf16* to, const Bf16* from, int num_left, int unit) {
  if (num_left <= 0) {
    *reinterpret_cast<uint4*>(to) = make_uint4(0, 0, 0, 0);
    return;
  }
  if (unit == 16) return device::CpAsync<16>(to, from, 2 * min(8, num_left));
  if (unit == 4) {
    for (int i = 0; i < 8; i += 2) {
      device::CpAsync<4>(to + i, i < num_left ? from + i : from, i < num_left ? 4 : 0);
    }
    return;
  }
  for (int i = 0; i < 8; ++i) to[i] = i < num_left ? from[i] : Bf16{0};
}

// The one place through which elements of q and of the cache come in: chunks lane, lane + 8, ... of
// a row of `width` elements, zero past its end, to row `row` of a tile. `unit` bytes may be read at
// once.
template <typename T>
__device__ __forceinline__ void CopyRow(Bf16* tile, int row, int lane, const Bf16* from, int width,
                                        int unit) {
  Bf16* to = tile + Swizzled<T>(row, lane);
  from += lane * 8;
  if (unit == 16 && width == T::kWidth) {
#pragma unroll
    for (int i = 0; i < T::kChunks / kLanesPerRow; ++i) {
      device::CpAsync<16>(to + i * kSwizzled, from + i * kSwizzled, 16);
    }
    return;
  }
#pragma unroll 1
  for (int i = 0; i < T::kChunks / kLanesPerRow; ++i) {
    CopyChunk(to + i * kSwizzled, from + i * kSwizzled, width - lane * 8 - i * kSwizzled, unit);
  }
}

// A row of q in the columns that entries have: the key's are behind the last latent, or, of FP8
// entries, behind the last that there is room for.
template <typename T>
__device__ __forceinline__ void CopyQuery(Bf16* tile, int row, int lane, const Bf16* from,
                                          int latent, int rope, int unit) {
  if (!T::kFp8 || latent == T::kLatent) {
    return CopyRow<T>(tile, row, lane, from, latent + rope, unit);
  }
  Bf16* to = tile + Swizzled<T>(row, lane);
  const int first = lane * 8;
#pragma unroll 1
  for (int i = 0; i < T::kLatent / kSwizzled; ++i) {
    CopyChunk(to + i * kSwizzled, from + first + i * kSwizzled, latent - first - i * kSwizzled,
              unit);
  }
  CopyChunk(to + T::kLatent, from + latent + first, rope - first, unit);
}

template <typename T>
__device__ __forceinline__ void LoadQueries(const AttentionParams& args, const MlaItem& item,
                                            int num_rows_padded, Shared<T>& s) {
  const MlaAttentionParams& p = args.p;
  const int thread = device::Opaque(device::ThreadIdx());
  for (int row = thread / kLanesPerRow; row < num_rows_padded; row += kCopyRows) {
    const int flat = item.first_row + row;
    const bool real = row < item.num_rows;
    const Bf16* from = p.q;
    if (real) {
      from += (item.first_token + flat / p.num_heads) * p.q_stride +
              flat % p.num_heads * p.q_head_stride;
    }
    CopyQuery<T>(s.q, row, thread % kLanesPerRow, from, real ? p.latent : 0, real ? p.rope : 0,
                 args.plan.q_unit);
    if (thread % kLanesPerRow == 0) {
      s.position[row] = real ? item.first_position + flat / p.num_heads : -1;
    }
  }
}

// Entries [first, first + kKeys) of the sequence: zero from the item's last key on, NaN where the
// block table is wrong.
template <typename T>
__device__ __forceinline__ void LoadKeys(const AttentionParams& args, const MlaItem& item,
                                         int first, Bf16* keys) {
  const MlaAttentionParams& p = args.p;
  const int32_t* table = p.block_tables + item.seq * p.table_stride;
  const int width = p.latent + p.rope;
  const int thread = device::Opaque(device::ThreadIdx());
  for (int row = thread / kLanesPerRow; row < T::kKeys; row += kCopyRows) {
    const int key = first + row;
    const bool real = key < item.end_key;
    const int32_t block = real ? table[key / p.block_size] : 0;
    if (block < 0 || block >= p.num_blocks) {
      for (int i = thread % kLanesPerRow; i < T::kWidth; i += kLanesPerRow) {
        keys[Swizzled<T>(row, i / 8) + i % 8] = Bf16{0x7FC0};
      }
      continue;
    }
    const int64_t entry = static_cast<int64_t>(block) * p.block_size + key % p.block_size;
    CopyRow<T>(keys, row, thread % kLanesPerRow,
               static_cast<const Bf16*>(p.cache) + (real ? entry * width : 0), real ? width : 0,
               args.plan.cache_unit);
  }
}

}  // namespace jevons::cuda::mla
