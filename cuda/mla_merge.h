// How the results of a row's splits are added, in registers or from the workspace: the same formula
// in the same order, so that nobody can tell which.
#pragma once

#include <cstdint>

#include "cuda/device/numeric.h"
#include "cuda/device/thread.h"
#include "cuda/last_block.h"
#include "cuda/mla_walker.h"

namespace jevons::cuda {

// Of the keys seen so far: the largest score and the sum of exp2(score - max).
struct MlaSoftmax {
  float max;
  float sum;
};

__device__ __forceinline__ float MlaMinusInfinity() { return device::FloatFromBits(0xFF800000u); }

// What exponents are taken against: a row without a finite score yet has weights of 0, not NaN.
__device__ __forceinline__ float MlaBase(float max) {
  return max == MlaMinusInfinity() ? 0.0f : max;
}

// The factors of what was there and of what comes; the state becomes that of both.
struct MlaFold {
  float before;
  float added;

  __device__ __forceinline__ MlaFold(MlaSoftmax& state, const MlaSoftmax& more) {
    const float max = fmaxf(state.max, more.max);
    before = device::Exp2(state.max - MlaBase(max));
    added = device::Exp2(more.max - MlaBase(max));
    state.sum = device::Fma(state.sum, before, more.sum * added);
    state.max = max;
  }
  __device__ __forceinline__ float operator()(float total, float more) const {
    return device::Fma(total, before, more * added);
  }
};

// Partial results: a slot has 16 rows. A row tile has the slots of its first piece, then those of
// each split from second_split on.
struct MlaWorkspace {
  BlockMeeting* meeting = nullptr;  // of those that make the values
  int32_t* arrivals = nullptr;      // [num_slots], at a row tile's first slot
  float2* softmax = nullptr;        // [num_slots, 16] max and sum
  float* sums = nullptr;  // [num_slots, 16, padded latent], not divided by the sum of weights
};

// The workspace's row for row `row` of a row tile, in its partial result `partial`.
__device__ __forceinline__ int64_t MlaPartialRow(const MlaItem& item, int partial, int row) {
  return (int64_t{item.slot} + partial * item.num_groups) * kMlaGroupRows + row;
}

// Partial results that a row has of its own: none that begin past its position.
template <bool kWide>
__device__ __forceinline__ int MlaNumPartials(int position, int second_split) {
  return 1 + max(0, MlaSplits<kWide>(position).Of(position) - second_split + 1);
}

// Where the rows of an item go.
struct MlaOutput {
  device::Bf16* out;
  int64_t stride;
  int64_t head_stride;
  int32_t num_heads;
  int32_t latent;
  bool pairs;

  __device__ __forceinline__ device::Bf16* Row(const MlaItem& item, int row) const {
    const int flat = item.first_row + row;
    return out + (item.first_token + flat / num_heads) * stride + flat % num_heads * head_stride;
  }
  // Columns `column` and the next of a row.
  __device__ __forceinline__ void Write(device::Bf16* row, int column, float a, float b) const {
    if (column >= latent) return;
    const uint32_t pair = device::PackBf16(a, b);
    if (pairs) {
      *reinterpret_cast<uint32_t*>(row + column) = pair;
      return;
    }
    row[column] = device::Bf16{static_cast<uint16_t>(pair)};
    if (column + 1 < latent) row[column + 1] = device::Bf16{static_cast<uint16_t>(pair >> 16)};
  }
};

// One row's partial results at four columns, as far as a thread has added them. Wide row tiles have
// few of them.
template <bool kWide>
struct MlaMerge {
  static constexpr int kBatch = kWide ? 4 : 8;  // loads under way for one row
  MlaSoftmax state;
  float4 total;
  float2 softmax[kBatch];
  float4 sums[kBatch];

  // Fetches partial results [first, first + kBatch), the last one again past the end.
  __device__ __forceinline__ void Load(const MlaWorkspace& workspace, const MlaItem& item, int row,
                                       int first, int num_partials, int latent, int column) {
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int64_t at = MlaPartialRow(item, min(first + i, num_partials - 1), row);
      softmax[i] = workspace.softmax[at];
      sums[i] = *reinterpret_cast<const float4*>(workspace.sums + at * latent + column);
    }
  }
  // Adds them; the first of all is what the sum starts from.
  __device__ __forceinline__ void Add(int first, int num_partials) {
    if (first == 0) {
      state = {softmax[0].x, softmax[0].y};
      total = sums[0];
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (first + i == 0 || first + i >= num_partials) continue;
      const MlaFold fold(state, {softmax[i].x, softmax[i].y});
      total = make_float4(fold(total.x, sums[i].x), fold(total.y, sums[i].y),
                          fold(total.z, sums[i].z), fold(total.w, sums[i].w));
    }
  }
};

// What    out = the partial results of a row tile, added in ascending order of their keys and
//         divided by the sum of their weights
// kMlaThreads of the block call, which has seen that all pieces have arrived. Partial results past
// a row's position are not its own. A thread does four columns of two rows at a time, so that the
// block has up to 64 KB of loads under way.
template <int kLatent, bool kWide>
__device__ __forceinline__ void MlaMergeSplits(const MlaWorkspace& workspace, const MlaItem& item,
                                               const int32_t* positions, const MlaOutput& output) {
  constexpr int kRows = kWide ? 1 : 2;
  constexpr int kThreadsPerRow = kLatent / 4;
  constexpr int kRowStep = kMlaThreads / kThreadsPerRow;
  const int column = device::ThreadIdx() % kThreadsPerRow * 4;
#pragma unroll 1
  for (int first_row = device::ThreadIdx() / kThreadsPerRow; first_row < item.num_rows;
       first_row += kRows * kRowStep) {
    MlaMerge<kWide> merge[kRows];
    int row[kRows];
    int num_partials[kRows];
    int most = 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      row[i] = min(first_row + i * kRowStep, item.num_rows - 1);
      num_partials[i] = MlaNumPartials<kWide>(positions[row[i]], item.second_split);
      most = max(most, num_partials[i]);
    }
#pragma unroll 1
    for (int first = 0; first < most; first += MlaMerge<kWide>::kBatch) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        merge[i].Load(workspace, item, row[i], first, num_partials[i], kLatent, column);
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i) merge[i].Add(first, num_partials[i]);
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (first_row + i * kRowStep >= item.num_rows) continue;
      device::Bf16* to = output.Row(item, row[i]);
      const float4& total = merge[i].total;
      const float inverse = 1.0f / merge[i].state.sum;
      output.Write(to, column, total.x * inverse, total.y * inverse);
      output.Write(to, column + 2, total.z * inverse, total.w * inverse);
    }
  }
}

}  // namespace jevons::cuda
