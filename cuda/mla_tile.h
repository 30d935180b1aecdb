// One tile of keys for the rows of one item: how it comes to shared memory, how scores become
// weights, and how the weighted latents are added. Which warp does what stands in mla.cu.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/device/copy.h"
#include "cuda/device/mma.h"
#include "cuda/mla_merge.h"
#include "cuda/mla_walker.h"
#include "ops/fp8_entry.h"

namespace jevons::cuda::mla {

using device::Bf16;

constexpr int kNumWarps = kMlaThreads / 32;
constexpr int kKeyQuarters = 4;
constexpr int kRopePadded = 64;
constexpr int kLanesPerRow = 8;  // of a copy: 128 bytes side by side
constexpr int kCopyRows = kMlaThreads / kLanesPerRow;
constexpr int kSmallLatent = 64;
constexpr int kLargeLatent = 512;

struct AttentionParams {
  MlaAttentionParams p;
  MlaPlan plan;
  MlaWorkspace workspace;
};

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

// Registers of one warp for kGroups * 16 rows.
template <typename T, int kGroups>
struct Sums {
  float v[kGroups][T::kColumnTiles][4];
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

__device__ __forceinline__ bool IsFinite(float value) {
  return (device::FloatBits(value) & 0x7F800000u) != 0x7F800000u;
}

// What a warp multiplies keys with: its half of the width, lines of 64 elements cut in two. With
// one group of rows it stays in registers, which halves what the scores read from shared memory;
// with two it is read for each tile.
template <typename T, int kGroups>
class Queries {
 public:
  static constexpr int kLines = T::kWidth / kSwizzled;
  static constexpr bool kHeld = kGroups == 1;

  __device__ __forceinline__ void Hold(const Shared<T>& s) {
    if constexpr (kHeld) {
      const Bf16* rows[2];
      Find(s, rows);
#pragma unroll
      for (int i = 0; i < 2 * kLines; ++i) {
        device::LdMatrix4(held_[i], rows[i % 2] + i / 2 * kSwizzled);
      }
    }
  }
  // Where the lane's rows of both 16-column steps lie.
  __device__ __forceinline__ static void Find(const Shared<T>& s, const Bf16* (&rows)[2]) {
    const int lane = device::Opaque(device::LaneIdx());
    const int chunk = device::WarpIdx() / kKeyQuarters * 4 + lane / 16;
    rows[0] = s.q + Swizzled<T>(lane % 16, chunk);
    rows[1] = s.q + Swizzled<T>(lane % 16, chunk + 2);
  }
  __device__ __forceinline__ void Get(const Bf16* const (&rows)[2], int line, int step, int group,
                                      uint32_t (&a)[4]) const {
    if constexpr (kHeld) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = held_[2 * line + step][i];
    } else {
      device::LdMatrix4(a, rows[step] + group * kMlaGroupRows * T::kWidth + line * kSwizzled);
    }
  }

 private:
  uint32_t held_[kHeld ? 2 * kLines : 1][4];
};

template <typename T, int kGroups>
__device__ __forceinline__ void ComputeScores(Shared<T>& s, const Queries<T, kGroups>& queries,
                                              const Bf16* keys) {
  const int lane = device::Opaque(device::LaneIdx());
  const int quarter = device::WarpIdx() % kKeyQuarters;
  const int half = device::WarpIdx() / kKeyQuarters;
  float score[kGroups][T::kKeyTiles][4] = {};
  const Bf16* b_row =
      keys + Swizzled<T>(quarter * T::kKeyTiles * 8 + lane % 8, half * 4 + lane / 8);
  const Bf16* a_rows[2];
  queries.Find(s, a_rows);
#pragma unroll
  for (int line = 0; line < queries.kLines; ++line) {
    uint32_t b[T::kKeyTiles][4];
#pragma unroll
    for (int n = 0; n < T::kKeyTiles; ++n) {
      device::LdMatrix4(b[n], b_row + n * 8 * T::kWidth + line * kSwizzled);
    }
#pragma unroll
    for (int i = 0; i < 2 * kGroups; ++i) {
      const int step = i / kGroups;
      const int m = i % kGroups;
      uint32_t a[4];
      queries.Get(a_rows, line, step, m, a);
#pragma unroll
      for (int n = 0; n < T::kKeyTiles; ++n) {
        const uint32_t pair[2] = {b[n][2 * step], b[n][2 * step + 1]};
        device::MmaBf16(score[m][n], a, pair);
      }
    }
  }
  bool finite = true;
#pragma unroll
  for (int m = 0; m < kGroups; ++m) {
#pragma unroll
    for (int n = 0; n < T::kKeyTiles; ++n) {
      const float(&d)[4] = score[m][n];
      const int row = m * kMlaGroupRows + lane / 4;
      const int key = (quarter * T::kKeyTiles + n) * 8 + lane % 4 * 2;
      *reinterpret_cast<float2*>(&s.scores[half][row][key]) = make_float2(d[0], d[1]);
      *reinterpret_cast<float2*>(&s.scores[half][row + 8][key]) = make_float2(d[2], d[3]);
      finite = finite && IsFinite(d[0]) && IsFinite(d[1]) && IsFinite(d[2]) && IsFinite(d[3]);
    }
  }
  if (!finite) device::AtomicAdd(&s.num_not_finite, 1);
}

// Marks the keys whose latents are not finite, and zeroes them.
template <typename T>
__device__ __forceinline__ void ZeroBrokenKeys(int latent, Shared<T>& s, Bf16* keys) {
  const int lane = device::Opaque(device::LaneIdx());
  for (int row = device::WarpIdx(); row < T::kKeys; row += kNumWarps) {
    bool finite = true;
    for (int i = lane; i < latent; i += 32) {
      const Bf16 value = keys[Swizzled<T>(row, i / 8) + i % 8];
      finite = finite && (value.bits & 0x7F80) != 0x7F80;
    }
    const bool broken = device::Ballot(!finite) != 0;
    if (lane == 0) s.broken[row] = broken;
    if (!broken) continue;
    for (int i = lane; i < T::kLatent; i += 32) {
      keys[Swizzled<T>(row, i / 8) + i % 8] = Bf16{0};
    }
  }
}

// The state of the rows of one warp: rows [warp * kCount, warp * kCount + kCount). Sums are by
// lane.
template <int kGroups>
struct WarpRows {
  static constexpr int kCount = kGroups * kMlaGroupRows / kNumWarps;
  MlaSoftmax row[kCount];

  __device__ __forceinline__ void Reset() {
#pragma unroll
    for (MlaSoftmax& r : row) r = {MlaMinusInfinity(), 0.0f};
  }
};

__device__ __forceinline__ float WarpMax(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value = fmaxf(value, device::ShflXor(value, distance));
  }
  return value;
}

// Pairs of neighbours p, of this lane or of two, as bf16; p becomes what was stored.
template <typename T>
__device__ __forceinline__ void StoreWeights(Shared<T>& s, int row, float (&p)[T::kKeysPerLane]) {
  const int lane = device::Opaque(device::LaneIdx());
  const float next = T::kKeysPerLane == 2 ? p[T::kKeysPerLane - 1] : device::ShflXor(p[0], 1);
  const uint32_t pair = device::PackBf16(p[0], next);
  const int word = T::kKeysPerLane == 2 ? lane : lane / 2;
  if (T::kKeysPerLane == 2 || lane % 2 == 0) {
    s.weights[SwizzledWeights(row, word / 4) + word % 4] = pair;
  }
  p[0] = device::LowToFloat(pair);
  if constexpr (T::kKeysPerLane == 2) p[1] = device::HighToFloat(pair);
}

// Scores become weights. `first` is the position of the tile's first key, `scale` counts in powers
// of two.
template <typename T, int kGroups>
__device__ __forceinline__ void ComputeWeights(Shared<T>& s, int first, float scale,
                                               bool broken_keys, WarpRows<kGroups>& rows) {
  constexpr int kCount = WarpRows<kGroups>::kCount;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int row = device::WarpIdx() * kCount + i;
    MlaSoftmax& state = rows.row[i];
    float raw[T::kKeysPerLane];
    bool visible[T::kKeysPerLane];
    float max = state.max;
#pragma unroll
    for (int j = 0; j < T::kKeysPerLane; ++j) {
      const int key = device::LaneIdx() * T::kKeysPerLane + j;
      raw[j] = s.scores[0][row][key] + s.scores[1][row][key];
      if (broken_keys && s.broken[key] != 0) raw[j] = device::FloatFromBits(0x7FC00000u);
      visible[j] = first + key <= s.position[row];
      if (visible[j]) max = fmaxf(max, raw[j] * scale);
    }
    max = WarpMax(max);
    const float base = MlaBase(max);
    const float alpha = device::Exp2(state.max - base);
    float p[T::kKeysPerLane];
#pragma unroll
    for (int j = 0; j < T::kKeysPerLane; ++j) {
      p[j] = visible[j] ? device::Exp2(device::Fma(raw[j], scale, -base)) : 0.0f;
    }
    StoreWeights(s, row, p);
    float sum = p[0];
    if constexpr (T::kKeysPerLane == 2) sum += p[1];
    state.max = max;
    state.sum = device::Fma(state.sum, alpha, sum);
    if (device::LaneIdx() == 0) s.alpha[row] = alpha;
  }
}

// The split ends: its sums over lanes go to shared memory, and the next one starts.
template <typename T, int kGroups>
__device__ __forceinline__ void PublishSoftmax(Shared<T>& s, WarpRows<kGroups>& rows) {
#pragma unroll
  for (int i = 0; i < WarpRows<kGroups>::kCount; ++i) {
    float sum = rows.row[i].sum;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) sum += device::ShflXor(sum, distance);
    if (device::LaneIdx() == 0) {
      s.softmax[device::WarpIdx() * WarpRows<kGroups>::kCount + i] = {rows.row[i].max, sum};
    }
  }
  rows.Reset();
}

template <typename T, int kGroups>
__device__ __forceinline__ void AddValues(Shared<T>& s, const Bf16* keys, Sums<T, kGroups>& acc) {
  const int lane = device::Opaque(device::LaneIdx());
#pragma unroll
  for (int m = 0; m < kGroups; ++m) {
    const float alpha[2] = {s.alpha[m * kMlaGroupRows + lane / 4],
                            s.alpha[m * kMlaGroupRows + lane / 4 + 8]};
#pragma unroll
    for (int n = 0; n < T::kColumnTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) acc.v[m][n][i] *= alpha[i / 2];
    }
  }
  const Bf16* b_row[T::kColumnTiles / 2];
#pragma unroll
  for (int n = 0; n < T::kColumnTiles / 2; ++n) {
    const int chunk = device::WarpIdx() * T::kColumnTiles + 2 * n + lane / 16;
    b_row[n] = keys + Swizzled<T>(lane % 16, chunk);
  }
#pragma unroll
  for (int k = 0; k < T::kKeys / 16; ++k) {
    uint32_t a[kGroups][4];
#pragma unroll
    for (int m = 0; m < kGroups; ++m) {
      const int at = SwizzledWeights(lane % 16, 2 * k + lane / 16);
      device::LdMatrix4(a[m], &s.weights[m * kMlaGroupRows * 32 + at]);
    }
#pragma unroll
    for (int n = 0; n < T::kColumnTiles / 2; ++n) {
      uint32_t b[4];
      device::LdMatrix4Transposed(b, b_row[n] + k * 16 * T::kWidth);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t pair[2] = {b[2 * i], b[2 * i + 1]};
#pragma unroll
        for (int m = 0; m < kGroups; ++m) device::MmaBf16(acc.v[m][2 * n + i], a[m], pair);
      }
    }
  }
}

}  // namespace jevons::cuda::mla
