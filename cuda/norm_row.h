// One row of RmsNorm in one block, whatever block that is and wherever the row comes from: the same
// bits. Formula and order in rows.h.
#pragma once

#include <cmath>
#include <type_traits>

#include "cuda/device/thread.h"
#include "cuda/row_vector.h"
#include "cuda/rows.h"
#include "cuda/warp_sum.h"

namespace jevons::cuda {

// The order of the sum is that of a block of NormThreads(hidden): thread i adds the vectors i,
// i + threads, ..., then come the lanes by halving distance, then the warps in order. A smaller
// block takes turns as the threads of that one.
constexpr int kNormThreads = 512;
constexpr int kNormWarps = kNormThreads / 32;
static_assert(kNormThreads % 32 == 0 && kNormThreads <= 1024);
__host__ __device__ constexpr int NormThreads(int hidden) {
  return ThreadsForVectors(NumVectors(hidden), kNormThreads);
}

// Vectors of such a thread that are kept in registers: 8192 columns; what lies past is read again.
constexpr int kNormHeld = 2;

struct NormShared {
  float warp_sum[kNormWarps];
};

__device__ __forceinline__ float AddSquares(const float (&v)[kRowVector], float sum) {
#pragma unroll
  for (int i = 0; i < kRowVector; ++i) sum = device::Fma(v[i], v[i], sum);
  return sum;
}

// 1 / sqrt(mean + eps) of the row whose warps' sums are there.
__device__ __forceinline__ float NormFactor(const NormShared& shared, int hidden, float eps) {
  float sum = 0;
  for (int w = 0; w < NormThreads(hidden) / 32; ++w) sum += shared.warp_sum[w];
  return 1.0f / sqrtf(sum / static_cast<float>(hidden) + eps);
}

// A bf16 that is written with what its rounding leaves.
struct SplitBf16 {};

// scaled * weight, rounded to bf16, and what is left of the product.
__device__ __forceinline__ void Split(float scaled, float weight, float& high, float& low) {
  high = device::ToFloat(device::ToBf16(scaled * weight));
  low = device::Fma(scaled, weight, -high);
}

// What is added to x before the norm: nothing, or what Load gives of a vector.
struct NoDelta {};
template <typename T>
struct DeltaRow {
  const T* row;
  int hidden;
  bool whole;

  __device__ __forceinline__ void Load(int vector, float (&v)[kRowVector]) const {
    LoadVector(row, vector, hidden, whole, v);
  }
};

template <typename X, typename Delta, typename Out>
class NormRow {
 public:
  static constexpr bool kSplit = std::is_same_v<Out, SplitBf16>;
  static constexpr bool kAdds = !std::is_same_v<Delta, NoDelta>;

  __device__ __forceinline__ NormRow(const RmsNormParams& p, int64_t t, const Delta& delta,
                                     bool whole)
      : delta_(delta),
        x_(static_cast<X*>(p.x) + t * p.x_stride),
        weight_(p.weight),
        out_(static_cast<Stored*>(p.out) + t * p.out_stride),
        low_(kSplit ? p.low + t * p.out_stride : nullptr),
        hidden_(p.hidden),
        whole_(whole) {}

  __device__ __forceinline__ void Read(int vector, float (&v)[kRowVector]) const {
    LoadVector(x_, vector, hidden_, whole_, v);
  }
  // Reads what the norm is taken of; with a delta it becomes the new x.
  __device__ __forceinline__ void ReadSum(int vector, float (&v)[kRowVector]) const {
    Read(vector, v);
    if constexpr (kAdds) {
      float d[kRowVector];
      delta_.Load(vector, d);
#pragma unroll
      for (int i = 0; i < kRowVector; ++i) v[i] += d[i];
    }
  }
  __device__ __forceinline__ void KeepSum(int vector, const float (&v)[kRowVector]) const {
    if constexpr (kAdds) StoreVector(v, vector, hidden_, whole_, x_);
  }
  __device__ __forceinline__ void Write(int vector, float factor, float (&v)[kRowVector]) const {
    float w[kRowVector];
    LoadVector(weight_, vector, hidden_, whole_, w);
    if constexpr (kSplit) {
      float low[kRowVector];
#pragma unroll
      for (int i = 0; i < kRowVector; ++i) Split(v[i] * factor, w[i], v[i], low[i]);
      StoreVector(low, vector, hidden_, whole_, low_);
    } else {
#pragma unroll
      for (int i = 0; i < kRowVector; ++i) v[i] = v[i] * factor * w[i];
    }
    StoreVector(v, vector, hidden_, whole_, out_);
  }

 private:
  using Stored = std::conditional_t<kSplit, device::Bf16, Out>;

  Delta delta_;
  X* x_;
  const float* weight_;
  Stored* out_;
  device::Bf16* low_;
  int hidden_;
  bool whole_;
};

// The block's row, by NormThreads(hidden) threads. Another row may follow with another `shared`, and
// the first again after that.
template <typename Row>
__device__ __forceinline__ void NormInBlock(const Row& row, int hidden, float eps,
                                            NormShared& shared) {
  const int num_vectors = NumVectors(hidden);
  const int step = device::BlockDim();
  float held[kNormHeld][kRowVector] = {};
#pragma unroll
  for (int i = 0; i < kNormHeld; ++i) {
    const int vector = device::ThreadIdx() + i * step;
    if (vector < num_vectors) row.ReadSum(vector, held[i]);
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kNormHeld; ++i) {
    const int vector = device::ThreadIdx() + i * step;
    if (vector >= num_vectors) continue;
    row.KeepSum(vector, held[i]);
    sum = AddSquares(held[i], sum);
  }
  const int first_unheld = device::ThreadIdx() + kNormHeld * step;
  for (int vector = first_unheld; vector < num_vectors; vector += step) {
    float v[kRowVector];
    row.ReadSum(vector, v);
    row.KeepSum(vector, v);
    sum = AddSquares(v, sum);
  }
  sum = WarpSum(sum);
  if (device::LaneIdx() == 0) shared.warp_sum[device::WarpIdx()] = sum;
  device::SyncThreads();  // the warps' sums are there
  const float factor = NormFactor(shared, hidden, eps);
#pragma unroll
  for (int i = 0; i < kNormHeld; ++i) {
    const int vector = device::ThreadIdx() + i * step;
    if (vector < num_vectors) row.Write(vector, factor, held[i]);
  }
  for (int vector = first_unheld; vector < num_vectors; vector += step) {
    float v[kRowVector];
    row.Read(vector, v);
    row.Write(vector, factor, v);
  }
}

// The same in a block of any size, which keeps the row in `kept`: NumVectors(hidden) vectors of
// shared memory, of which each thread uses its own.
template <typename Row>
__device__ __forceinline__ void NormInAnyBlock(const Row& row, int hidden, float eps, float* kept,
                                               NormShared& shared) {
  const int num_vectors = NumVectors(hidden);
  const int threads = NormThreads(hidden);
  const int own = device::Opaque(device::ThreadIdx());  // registers are short before
  for (int base = 0; base < threads; base += device::BlockDim()) {
    const int thread = base + own;
    float sum = 0;
#pragma unroll 1
    for (int vector = thread; thread < threads && vector < num_vectors; vector += threads) {
      float v[kRowVector];
      row.ReadSum(vector, v);
      row.KeepSum(vector, v);
      StoreWhole(v, kept + vector * kRowVector);
      sum = AddSquares(v, sum);
    }
    sum = WarpSum(sum);
    if (own % 32 == 0 && thread < threads) shared.warp_sum[thread / 32] = sum;
  }
  device::SyncThreads();  // the warps' sums are there
  const float factor = NormFactor(shared, hidden, eps);
  for (int base = 0; base < threads; base += device::BlockDim()) {
    const int thread = base + own;
#pragma unroll 1
    for (int vector = thread; thread < threads && vector < num_vectors; vector += threads) {
      float v[kRowVector];
      LoadWhole(kept + vector * kRowVector, v);
      row.Write(vector, factor, v);
    }
  }
}

}  // namespace jevons::cuda
