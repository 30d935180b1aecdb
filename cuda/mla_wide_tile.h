// One tile of 64 keys for 64 rows of queries: where it lies in shared memory, how it comes there,
// and how its scores become weights. Who does what stands in mla_wide.cu.
#pragma once

#include <cstdint>

#include "cuda/device/mbarrier.h"
#include "cuda/device/wgmma.h"
#include "cuda/mla_fp8.h"

namespace jevons::cuda::mla {

constexpr int kWideKeys = 64;
constexpr int kWideWidth = kLargeLatent + kRopePadded;
// 64 rows of 64 columns, with the swizzle of 128 bytes: what a product reads at a time.
constexpr int kPanelColumns = 64;
constexpr int kPanelRows = 64;
constexpr int kPanelBytes = kPanelRows * kPanelColumns * 2;
constexpr int kPanelOctetBytes = 8 * kPanelColumns * 2;  // eight rows
constexpr int kPanels = kWideWidth / kPanelColumns;
constexpr int kValuePanels = kLargeLatent / kPanelColumns;
// The rotated keys' panel takes the tile's weights when its keys are scored: no value lies there.
constexpr int kWeightsPanel = kValuePanels;
static_assert(kMlaWideRows == kPanelRows && kWideKeys == kPanelRows && kMlaWorkTokens == kWideKeys);
static_assert(kPanels == kValuePanels + 1 && kRopePadded == kPanelColumns);

constexpr int kScoreThreads = kMlaWideThreads - kMlaThreads;
static_assert(kScoreThreads == 128 && kMlaThreads % 128 == 0);  // warpgroups

// Named barriers; of two stages each.
constexpr int kScoresBarrier = 1;
constexpr int kWeightsBarrier = 2;
constexpr int kDoneBarrier = 4;
// FP8 entries have no stages, and these in place of kDoneBarrier.
constexpr int kLandedBarrier = 4;
constexpr int kConvertedBarrier = 5;

struct Panels {
  alignas(1024) Bf16 panel[kPanels][kPanelRows * kPanelColumns];
};

// FP8 entries land as they are, and one tile of bf16 is made of them.
template <bool kFp8>
struct WideShared {
  static constexpr int kRawBytes = kWideKeys * Fp8Entry{kLargeLatent, kRopePadded}.bytes();

  Panels q;
  Panels keys[kFp8 ? 1 : 2];
  alignas(128) uint8_t raw[kFp8 ? kRawBytes : 16];
  float alpha[2][kMlaWideRows];
  MlaFold fold[2][kMlaWideRows];  // of the split that ends with the tile into the total
  float sum[kMlaWideRows];        // of the weights of all splits, when the last one has ended
  int32_t position[kMlaWideRows];
  int32_t broken[kWideKeys];  // only where num_not_finite is not 0
  int32_t num_not_finite[2];  // threads with such scores
  int32_t is_last;
  MlaWalkerShared walker;

  __device__ __forceinline__ Panels& Tile(int stage) { return keys[kFp8 ? 0 : stage]; }
};

// The tiles of an item, as both roles walk them. Items and splits begin at whole splits of 512
// keys.
class WideTiles {
 public:
  __device__ __forceinline__ explicit WideTiles(const MlaItem& item)
      : item_(item), key_(item.first_key) {}

  __device__ __forceinline__ bool Any() const { return key_ < item_.end_key; }
  __device__ __forceinline__ void Next() { key_ += kWideKeys; }
  __device__ __forceinline__ int Key() const { return key_; }
  __device__ __forceinline__ int Split() const { return item_.wide_splits.Of(key_); }
  __device__ __forceinline__ int Stage() const { return (key_ & kWideKeys) != 0 ? 1 : 0; }
  __device__ __forceinline__ int NumLeft() const { return item_.end_key - key_; }
  __device__ __forceinline__ bool IsFirst() const { return key_ == item_.first_key; }
  __device__ __forceinline__ bool IsLast() const { return NumLeft() <= kWideKeys; }
  __device__ __forceinline__ bool BeginsSplit() const { return item_.wide_splits.IsBegin(key_); }
  __device__ __forceinline__ bool EndsSplit() const {
    return IsLast() || item_.wide_splits.IsBegin(key_ + kWideKeys);
  }

 private:
  const MlaItem& item_;
  int key_;
};

// The element where a chunk of eight columns begins.
__device__ __forceinline__ int PanelOffset(int row, int chunk) {
  return row * kPanelColumns + (chunk ^ (row & 7)) * 8;
}

// Of an operand that begins with the panel, K-major or transposed. Its further parts lie
// DescriptorStep(bytes) on.
__device__ __forceinline__ uint64_t PanelDescriptor(const Bf16* panel) {
  return device::SmemDescriptor(panel, kPanelBytes, kPanelOctetBytes, device::Swizzle::k128);
}
__host__ __device__ constexpr uint64_t DescriptorStep(int bytes) {
  return static_cast<uint64_t>(bytes) / 16;
}

// The threads that score: eight side by side copy 128 bytes of a row.
__device__ __forceinline__ int ScoreThread() {
  return device::Opaque(device::ThreadIdx()) - kMlaThreads;
}
constexpr int kWideCopyRows = kScoreThreads / kLanesPerRow;
constexpr int kWidePasses = kPanelRows / kWideCopyRows;

// A row to row `row` of all panels; zeroes where there is none. `unit` bytes may be read at once.
__device__ __forceinline__ void CopyWideRow(Panels& to, int row, int lane, const Bf16* from,
                                            bool real, int unit) {
  Bf16* const first = to.panel[0] + PanelOffset(row, lane);
  if (unit == 16) {
#pragma unroll
    for (int i = 0; i < kPanels; ++i) {
      device::CpAsync<16>(first + i * (kPanelBytes / 2),
                          from + (real ? lane * 8 + i * kPanelColumns : 0), real ? 16 : 0);
    }
    return;
  }
#pragma unroll 1
  for (int i = 0; i < kPanels; ++i) {
    CopyChunk(first + i * (kPanelBytes / 2), from + lane * 8 + i * kPanelColumns, real ? 8 : 0,
              unit);
  }
}

__device__ __forceinline__ void LoadWideQueries(const AttentionParams& args, const MlaItem& item,
                                                Panels& q) {
  const MlaAttentionParams& p = args.p;
  const int thread = ScoreThread();
  const int first_head = item.first_row % p.num_heads;
  const Bf16* const token = p.q + (item.first_token + item.first_row / p.num_heads) * p.q_stride;
#pragma unroll 1
  for (int row = thread / kLanesPerRow; row < kPanelRows; row += kWideCopyRows) {
    CopyWideRow(q, row, thread % kLanesPerRow, token + (first_head + row) * p.q_head_stride, true,
                args.plan.q_unit);
  }
}

// Entries [first, first + kWideKeys) of the sequence: zero from the item's last key on, NaN where
// the block table is wrong.
__device__ __forceinline__ void LoadWideKeys(const AttentionParams& args, const MlaItem& item,
                                             int first, Panels& keys) {
  const MlaAttentionParams& p = args.p;
  const int32_t* const table = p.block_tables + item.seq * p.table_stride;
  const int thread = ScoreThread();
  const int lane = thread % kLanesPerRow;
  const int first_row = thread / kLanesPerRow;
  int32_t block[kWidePasses];
#pragma unroll
  for (int i = 0; i < kWidePasses; ++i) {
    const int key = first + first_row + i * kWideCopyRows;
    block[i] = key < item.end_key ? table[key / p.block_size] : 0;
  }
#pragma unroll
  for (int i = 0; i < kWidePasses; ++i) {
    const int row = first_row + i * kWideCopyRows;
    const int key = first + row;
    if (block[i] < 0 || block[i] >= p.num_blocks) {
      constexpr uint32_t kNanPair = 0x7FC07FC0u;
      for (int panel = 0; panel < kPanels; ++panel) {
        *reinterpret_cast<uint4*>(keys.panel[panel] + PanelOffset(row, lane)) =
            make_uint4(kNanPair, kNanPair, kNanPair, kNanPair);
      }
      continue;
    }
    const int64_t entry = static_cast<int64_t>(block[i]) * p.block_size + key % p.block_size;
    const bool real = key < item.end_key;
    CopyWideRow(keys, row, lane,
                static_cast<const Bf16*>(p.cache) + (real ? entry * kWideWidth : 0), real,
                args.plan.cache_unit);
  }
}

// The tile of what has landed, by all threads of the block; products may read it after a barrier.
__device__ __forceinline__ void ConvertWideEntries(const AttentionParams& args,
                                                   WideShared<true>& s) {
  Panels& tile = s.Tile(0);
  ConvertEntries<kLargeLatent, kWideKeys, kMlaWideThreads>(args, s.raw, [&](int row, int chunk) {
    return tile.panel[chunk / 8] + PanelOffset(row, chunk % 8);
  });
  device::FenceProxyAsync();
}

// Of a product's result d a thread has rows Row(0) and Row(1): d[4 j + 2 half + i] is column
// 8 j + ThreadColumn() + i.
__device__ __forceinline__ int WideRow(int thread, int half) {
  return thread / 32 % 4 * 16 + half * 8 + thread % 32 / 4;
}
__device__ __forceinline__ int WideColumn(int thread) { return thread % 4 * 2; }

using WideScores = float[kWideKeys / 2];

// Starts scores = q keys^T: one chain over the columns.
__device__ __forceinline__ void StartWideScores(const Panels& queries, const Panels& tile,
                                                WideScores& scores) {
  const uint64_t q = PanelDescriptor(queries.panel[0]);
  const uint64_t keys = PanelDescriptor(tile.panel[0]);
  device::WgmmaFence(scores);
#pragma unroll
  for (int i = 0; i < kPanels * 4; ++i) {
    const uint64_t step = DescriptorStep(i / 4 * kPanelBytes + i % 4 * 32);
    device::WgmmaBf16Shared<kWideKeys>(scores, q + step, keys + step, i > 0);
  }
  device::WgmmaCommit();
}

__device__ __forceinline__ void CountNotFinite(const WideScores& scores, int32_t* num) {
  bool finite = true;
#pragma unroll
  for (const float score : scores) finite = finite && IsFinite(score);
  if (!finite) device::AtomicAdd(num, 1);
}

// Marks the keys whose latents are not finite: two threads look through one.
__device__ __forceinline__ void FindBrokenKeys(const Panels& keys, int32_t* broken) {
  const int row = ScoreThread() / 2;
  bool finite = true;
  for (int i = ScoreThread() % 2; i < kValuePanels * 8; i += 2) {
    const Bf16* const chunk = keys.panel[i / 8] + PanelOffset(row, i % 8);
    for (int j = 0; j < 8; ++j) finite = finite && (chunk[j].bits & 0x7F80) != 0x7F80;
  }
  const bool other = device::ShflXor(static_cast<int>(finite), 1) != 0;
  if (ScoreThread() % 2 == 0) broken[row] = !(finite && other);
}

// Scores of keys from num_visible on become those of no key, those of broken keys NaN.
__device__ __forceinline__ void MarkScores(const int32_t* broken, bool broken_keys, int num_visible,
                                           WideScores& scores) {
#pragma unroll
  for (int i = 0; i < kWideKeys / 2; ++i) {
    const int key = i / 4 * 8 + WideColumn(ScoreThread()) + i % 2;
    if (broken_keys && broken[key] != 0) scores[i] = device::FloatFromBits(0x7FC00000u);
    if (key >= num_visible) scores[i] = MlaMinusInfinity();
  }
}

// Two rows of a thread; those of the split have sums over the thread's own columns.
struct WideRows {
  MlaSoftmax split[2];
  MlaSoftmax total[2];

  __device__ __forceinline__ static MlaSoftmax Nothing() { return {MlaMinusInfinity(), 0.0f}; }
  __device__ __forceinline__ WideRows()
      : split{Nothing(), Nothing()}, total{Nothing(), Nothing()} {}
};

// Scores become weights, in a panel. `scale` counts in powers of two; alpha, of each row, is what
// the sums so far are to be multiplied with.
__device__ __forceinline__ void ComputeWideWeights(const WideScores& scores, float scale,
                                                   WideRows& rows, Bf16* weights, float* alphas) {
  const int thread = ScoreThread();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = WideRow(thread, half);
    MlaSoftmax& state = rows.split[half];
    float raw = MlaMinusInfinity();
#pragma unroll
    for (int j = 0; j < kWideKeys / 8; ++j) {
      raw = fmaxf(raw, fmaxf(scores[4 * j + 2 * half], scores[4 * j + 2 * half + 1]));
    }
    raw = fmaxf(raw, device::ShflXor(raw, 2));
    raw = fmaxf(raw, device::ShflXor(raw, 1));
    const float max = fmaxf(state.max, raw * scale);
    const float base = MlaBase(max);
    const float alpha = device::Exp2(state.max - base);
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kWideKeys / 8; ++j) {
      const uint32_t pair =
          device::PackBf16(device::Exp2(device::Fma(scores[4 * j + 2 * half], scale, -base)),
                           device::Exp2(device::Fma(scores[4 * j + 2 * half + 1], scale, -base)));
      *reinterpret_cast<uint32_t*>(weights + PanelOffset(row, j) + WideColumn(thread)) = pair;
      sum += device::LowToFloat(pair) + device::HighToFloat(pair);
    }
    state.sum = device::Fma(state.sum, alpha, sum);
    state.max = max;
    if (thread % 4 == 0) alphas[row] = alpha;
  }
}

// The sums of the split's weights over all columns.
__device__ __forceinline__ void EndWideSplit(WideRows& rows) {
#pragma unroll
  for (MlaSoftmax& split : rows.split) {
    split.sum += device::ShflXor(split.sum, 2);
    split.sum += device::ShflXor(split.sum, 1);
  }
}

}  // namespace jevons::cuda::mla
