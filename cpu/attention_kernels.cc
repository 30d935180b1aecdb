#include "cpu/attention_kernels.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/tensor_view.h"
#include "ops/fp8_entry.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/attention_kernels.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "hwy/contrib/math/math-inl.h"
#include "cpu/unroll.h"

HWY_BEFORE_NAMESPACE();
namespace jevons::fast::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

// Vectors that hold one head group: 1, 2 or 4.
using GroupTag = hn::CappedTag<float, kGroupHeads>;
constexpr int kGroupLanes = static_cast<int>(HWY_MIN(HWY_MAX_BYTES / sizeof(float), kGroupHeads));
constexpr int kVectorsPerGroup = kGroupHeads / kGroupLanes;

#if HWY_TARGET <= HWY_AVX3
constexpr int kScoreTokensOne = 16;  // with one vector of heads: 16 sums in flight
constexpr int kScoreTokensTwo = 8;
constexpr int kSumVectors = 4;
#elif HWY_TARGET <= HWY_AVX2
constexpr int kScoreTokensOne = 8;
constexpr int kScoreTokensTwo = 6;
constexpr int kSumVectors = 3;
#else
constexpr int kScoreTokensOne = 8;
constexpr int kScoreTokensTwo = 4;
constexpr int kSumVectors = 2;
#endif
constexpr int kSumRows = 4;

// Where the vectors of a tile's heads lie: vector v is a part of group v / kVectorsPerGroup.
struct HeadVector {
  const float* q;
  float* scores;
};

HWY_INLINE HeadVector GetHeadVector(const QueryTile& tile, const KeyRun& keys, float* scores,
                                    int64_t v) {
  const int64_t group = v / kVectorsPerGroup;
  const int64_t lane = v % kVectorsPerGroup * kGroupLanes;
  return {tile.q + group * keys.width * kGroupHeads + lane,
          scores + group * keys.block_size * kGroupHeads + lane};
}

// Scores of kTokens keys for kVecs vectors of heads: lanes are heads, a key's floats are broadcast.
template <int kVecs, int kTokens>
HWY_INLINE void ScoreTile(const HeadVector* heads, const float* key, int64_t width, float scale,
                          int64_t token) {
  const GroupTag d;
  using V = hn::Vec<GroupTag>;
  V sum[kTokens][kVecs];
  JEVONS_UNROLL
  for (int t = 0; t < kTokens; ++t) {
    JEVONS_UNROLL
    for (int v = 0; v < kVecs; ++v) sum[t][v] = hn::Zero(d);
  }
  const float* first = key + token * width;
  for (int64_t c = 0; c < width; ++c) {
    V q[kVecs];
    JEVONS_UNROLL
    for (int v = 0; v < kVecs; ++v) q[v] = hn::Load(d, heads[v].q + c * kGroupHeads);
    JEVONS_UNROLL
    for (int t = 0; t < kTokens; ++t) {
      const V k = hn::Set(d, first[t * width + c]);
      JEVONS_UNROLL
      for (int v = 0; v < kVecs; ++v) sum[t][v] = hn::MulAdd(q[v], k, sum[t][v]);
    }
  }
  const V factor = hn::Set(d, scale);
  JEVONS_UNROLL
  for (int t = 0; t < kTokens; ++t) {
    JEVONS_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      hn::Store(hn::Mul(sum[t][v], factor), d, heads[v].scores + (token + t) * kGroupHeads);
    }
  }
}

template <int kVecs, int kTokens>
HWY_INLINE void ScoreVectors(const HeadVector* heads, const float* key, int64_t width, float scale,
                             int64_t num_tokens) {
  int64_t t = 0;
  for (; t + kTokens <= num_tokens; t += kTokens) {
    ScoreTile<kVecs, kTokens>(heads, key, width, scale, t);
  }
  for (; t + 4 <= num_tokens; t += 4) ScoreTile<kVecs, 4>(heads, key, width, scale, t);
  for (; t < num_tokens; ++t) ScoreTile<kVecs, 1>(heads, key, width, scale, t);
}

// Scores of the first `num_tokens` keys of a block for the groups [first_group, num_groups).
void ScoreBlock(const QueryTile& tile, const KeyRun& keys, const float* key, int64_t first_group,
                int64_t num_tokens, float* scores) {
  int64_t v = first_group * kVectorsPerGroup;
  const int64_t end = tile.num_groups * kVectorsPerGroup;
  for (; v + 2 <= end; v += 2) {
    const HeadVector heads[2] = {GetHeadVector(tile, keys, scores, v),
                                 GetHeadVector(tile, keys, scores, v + 1)};
    ScoreVectors<2, kScoreTokensTwo>(heads, key, keys.width, tile.scale, num_tokens);
  }
  if (v == end) return;
  const HeadVector last = GetHeadVector(tile, keys, scores, v);
  ScoreVectors<1, kScoreTokensOne>(&last, key, keys.width, tile.scale, num_tokens);
}

// exp for arguments up to 0; NaN stays NaN, which hn::Exp does not keep.
template <class D, class V>
HWY_INLINE V ExpOrNan(D d, V x) {
  return hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(d, x));
}

// Largest score to subtract: 0 where all are -inf, so that their weights are 0 and not NaN.
template <class D, class V>
HWY_INLINE V Offset(D d, V largest) {
  return hn::IfThenElse(hn::Eq(largest, hn::Set(d, kMinusInf)), hn::Zero(d), largest);
}

// One step of the online softmax of a head group: scores become weights; `decay` gets the factor
// for older sums.
void SoftmaxStep(int64_t num_tokens, float* scores, float* largest, float* sum, float* decay) {
  const GroupTag d;
  for (int64_t lane = 0; lane < kGroupHeads; lane += kGroupLanes) {
    const auto old = hn::Load(d, largest + lane);
    auto now = old;
    for (int64_t t = 0; t < num_tokens; ++t) {
      now = hn::Max(now, hn::Load(d, scores + t * kGroupHeads + lane));
    }
    const auto offset = Offset(d, now);
    auto block_sum = hn::Zero(d);
    for (int64_t t = 0; t < num_tokens; ++t) {
      float* at = scores + t * kGroupHeads + lane;
      const auto weight = ExpOrNan(d, hn::Sub(hn::Load(d, at), offset));
      block_sum = hn::Add(block_sum, weight);
      hn::Store(weight, d, at);
    }
    const auto factor = ExpOrNan(d, hn::Sub(old, offset));
    hn::Store(factor, d, decay + lane);
    hn::Store(now, d, largest + lane);
    hn::Store(hn::MulAdd(hn::Load(d, sum + lane), factor, block_sum), d, sum + lane);
  }
}

// One group's weights against a block.
struct SumArgs {
  const float* weights;  // [num_tokens, kGroupHeads]
  const float* decay;    // [kGroupHeads]
  const float* value;    // [num_tokens, width]
  int64_t width;
  int64_t num_tokens;
  float* total;  // [kGroupHeads, r]
  int64_t r;
};

// total[head] = decay * total[head] + sum over tokens, for kRows heads and kVecs vectors of
// columns.
template <int kRows, int kVecs, class D>
HWY_INLINE void SumTile(D d, const SumArgs& a, int64_t head, int64_t column) {
  using V = hn::Vec<D>;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  float* total = a.total + head * a.r + column;
  V sum[kRows][kVecs];
  JEVONS_UNROLL
  for (int i = 0; i < kRows; ++i) {
    const V decay = hn::Set(d, a.decay[head + i]);
    JEVONS_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      sum[i][v] = hn::Mul(decay, hn::LoadU(d, total + i * a.r + v * lanes));
    }
  }
  const float* weights = a.weights + head;
  const float* value = a.value + column;
  for (int64_t t = 0; t < a.num_tokens; ++t) {
    V x[kVecs];
    JEVONS_UNROLL
    for (int v = 0; v < kVecs; ++v) x[v] = hn::LoadU(d, value + t * a.width + v * lanes);
    JEVONS_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const V w = hn::Set(d, weights[t * kGroupHeads + i]);
      JEVONS_UNROLL
      for (int v = 0; v < kVecs; ++v) sum[i][v] = hn::MulAdd(w, x[v], sum[i][v]);
    }
  }
  JEVONS_UNROLL
  for (int i = 0; i < kRows; ++i) {
    JEVONS_UNROLL
    for (int v = 0; v < kVecs; ++v) hn::StoreU(sum[i][v], d, total + i * a.r + v * lanes);
  }
}

template <int kVecs, class D>
HWY_INLINE void SumColumns(D d, const SumArgs* groups, int64_t num_groups, const int64_t* num_heads,
                           int64_t column) {
  for (int64_t g = 0; g < num_groups; ++g) {
    int64_t h = 0;
    for (; h + kSumRows <= num_heads[g]; h += kSumRows) {
      SumTile<kSumRows, kVecs>(d, groups[g], h, column);
    }
    for (; h < num_heads[g]; ++h) SumTile<1, kVecs>(d, groups[g], h, column);
  }
}

// Columns outermost: the strip of the block that a few vectors cover stays in L1 for all heads.
void SumBlock(const SumArgs* groups, int64_t num_groups, const int64_t* num_heads, int64_t r) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t column = 0;
  for (; column + kSumVectors * lanes <= r; column += kSumVectors * lanes) {
    SumColumns<kSumVectors>(d, groups, num_groups, num_heads, column);
  }
  for (; column + lanes <= r; column += lanes) {
    SumColumns<1>(d, groups, num_groups, num_heads, column);
  }
  const hn::CappedTag<float, 1> one;
  for (; column < r; ++column) SumColumns<1>(one, groups, num_groups, num_heads, column);
}

// Calls fn(tag, c) for c over [0, n), whole vectors first, then single floats.
template <typename Fn>
HWY_INLINE void ForEachVector(int64_t n, const Fn& fn) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t c = 0;
  for (; c + lanes <= n; c += lanes) fn(d, c);
  for (; c < n; ++c) fn(hn::CappedTag<float, 1>(), c);
}

// As ReadFp8Entry.
void ReadEntry(const uint8_t* entry, const Fp8Entry& layout, float* values) {
  for (int32_t begin = 0; begin < layout.r; begin += kFp8Group) {
    float scale = 0;
    std::memcpy(&scale, entry + layout.scales() + begin / kFp8Group * 4, sizeof(scale));
    ForEachVector(std::min(kFp8Group, layout.r - begin), [=](auto d, int64_t i) HWY_ATTR {
      const hn::Rebind<uint8_t, decltype(d)> d8;
      const hn::Rebind<uint32_t, decltype(d)> d32;
      const auto bits = hn::PromoteTo(d32, hn::LoadU(d8, entry + begin + i));
      const auto sign = hn::ShiftLeft<24>(hn::And(bits, hn::Set(d32, 0x80u)));
      const auto magnitude = hn::ShiftLeft<20>(hn::And(bits, hn::Set(d32, 0x7Fu)));
      const auto value = hn::Mul(hn::BitCast(d, hn::Or(sign, magnitude)), hn::Set(d, 0x1p120f));
      hn::StoreU(hn::Mul(value, hn::Set(d, scale)), d, values + begin + i);
    });
  }
  const uint8_t* keys = entry + layout.keys();
  for (int32_t i = 0; i < layout.p; ++i) {
    uint16_t key = 0;
    std::memcpy(&key, keys + 2 * i, sizeof(key));
    values[layout.r + i] = Bf16ToFloat(key);
  }
}

// The first `num_tokens` rows of a block.
const float* BlockRows(const KeyRun& keys, int64_t block, int64_t num_tokens) {
  const int64_t first = keys.block_table[block] * keys.block_size;
  if (keys.fp8_cache == nullptr) return keys.cache + first * keys.width;
  const Fp8Entry layout = {static_cast<int32_t>(keys.r), static_cast<int32_t>(keys.width - keys.r)};
  for (int64_t i = 0; i < num_tokens; ++i) {
    ReadEntry(keys.fp8_cache + (first + i) * layout.bytes(), layout, keys.decoded + i * keys.width);
  }
  return keys.decoded;
}

// The three regions of a partial result.
struct PartialView {
  PartialView(float* data, int64_t num_groups, int64_t r)
      : largest(data),
        sum(largest + num_groups * kGroupHeads),
        total(sum + num_groups * kGroupHeads) {}
  float* largest;
  float* sum;
  float* total;
};

void AttendBlocks(const QueryTile& tile, const KeyRun& keys, int64_t block_begin, int64_t block_end,
                  float* scores, float* partial) {
  const PartialView state(partial, tile.num_groups, keys.r);
  const int64_t last_position = tile.position[tile.num_groups - 1];
  HWY_ALIGN float decay[kTileGroups * kGroupHeads];
  SumArgs groups[kTileGroups];
  for (int64_t block = block_begin; block < block_end; ++block) {
    const int64_t start = block * keys.block_size;
    if (start > last_position) return;
    int64_t first_group = 0;
    while (tile.position[first_group] < start) ++first_group;
    const int64_t most = std::min(keys.block_size, last_position + 1 - start);
    const float* key = BlockRows(keys, block, most);
    ScoreBlock(tile, keys, key, first_group, most, scores);
    for (int64_t g = first_group; g < tile.num_groups; ++g) {
      const int64_t lane = g * kGroupHeads;
      float* weights = scores + lane * keys.block_size;
      const int64_t num_tokens = std::min(keys.block_size, tile.position[g] + 1 - start);
      SoftmaxStep(num_tokens, weights, state.largest + lane, state.sum + lane, decay + lane);
      groups[g] = {weights, decay + lane, key, keys.width, num_tokens, state.total + lane * keys.r,
                   keys.r};
    }
    SumBlock(groups + first_group, tile.num_groups - first_group,
             tile.num_heads.data() + first_group, keys.r);
  }
}

void MergePartial(int64_t num_groups, int64_t r, int64_t row, const float* next, float* total) {
  const hn::CappedTag<float, kMergeRows> d;
  static_assert(kMergeRows * sizeof(float) <= 16, "every target has vectors of so many rows");
  const PartialView to(total, num_groups, r);
  const PartialView from(const_cast<float*>(next), num_groups, r);
  const auto a = hn::Load(d, to.largest + row);
  const auto b = hn::Load(d, from.largest + row);
  const auto now = hn::Max(a, b);
  const auto offset = Offset(d, now);
  const auto factor_a = ExpOrNan(d, hn::Sub(a, offset));
  const auto factor_b = ExpOrNan(d, hn::Sub(b, offset));
  const auto sum = hn::Mul(hn::Load(d, to.sum + row), factor_a);
  hn::Store(hn::MulAdd(hn::Load(d, from.sum + row), factor_b, sum), d, to.sum + row);
  hn::Store(now, d, to.largest + row);
  HWY_ALIGN float keep[kMergeRows];
  HWY_ALIGN float take[kMergeRows];
  hn::Store(factor_a, d, keep);
  hn::Store(factor_b, d, take);
  for (int64_t i = 0; i < kMergeRows; ++i) {
    float* sums = to.total + (row + i) * r;
    const float* more = from.total + (row + i) * r;
    const float kept = keep[i];
    const float taken = take[i];
    ForEachVector(r, [=](auto tag, int64_t c) HWY_ATTR {
      const auto old = hn::Mul(hn::Set(tag, kept), hn::LoadU(tag, sums + c));
      hn::StoreU(hn::MulAdd(hn::Set(tag, taken), hn::LoadU(tag, more + c), old), tag, sums + c);
    });
  }
}

void WriteAttention(int64_t num_groups, int64_t r, int64_t row, const float* total, float* out) {
  const PartialView state(const_cast<float*>(total), num_groups, r);
  const float factor = 1.0f / state.sum[row];
  const float* sums = state.total + row * r;
  ForEachVector(r, [=](auto tag, int64_t c) HWY_ATTR {
    hn::StoreU(hn::Mul(hn::Set(tag, factor), hn::LoadU(tag, sums + c)), tag, out + c);
  });
}

}  // namespace jevons::fast::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace jevons::fast {

HWY_EXPORT(AttendBlocks);
HWY_EXPORT(MergePartial);
HWY_EXPORT(WriteAttention);

void AttendBlocks(const QueryTile& tile, const KeyRun& keys, int64_t block_begin, int64_t block_end,
                  float* scores, float* partial) {
  ClearPartial(tile.num_groups, keys.r, partial);
  HWY_DYNAMIC_DISPATCH(AttendBlocks)(tile, keys, block_begin, block_end, scores, partial);
}

void ClearPartial(int64_t num_groups, int64_t r, float* partial) {
  const int64_t rows = num_groups * kGroupHeads;
  std::fill_n(partial, rows, -std::numeric_limits<float>::infinity());
  std::fill_n(partial + rows, rows * (r + 1), 0.0f);
}

void MergePartial(int64_t num_groups, int64_t r, int64_t row, const float* next, float* total) {
  HWY_DYNAMIC_DISPATCH(MergePartial)(num_groups, r, row, next, total);
}

void WriteAttention(int64_t num_groups, int64_t r, int64_t row, const float* total, float* out) {
  HWY_DYNAMIC_DISPATCH(WriteAttention)(num_groups, r, row, total, out);
}

}  // namespace jevons::fast
#endif
