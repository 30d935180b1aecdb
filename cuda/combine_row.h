// What comes back from the experts for one token, eight columns at a time. Contract: combine.h.
#pragma once

#include "cuda/combine.h"
#include "cuda/row_vector.h"

namespace jevons::cuda {

// Rows of experts that a thread reads before it adds the first of them.
constexpr int kLoadsUnderWay = 4;

// What the norm of a combined token needs; the combine's `out` is not written.
struct CombineAndNormArgs {
  ExpertCombineParams combine;
  RmsNormParams norm;
  bool whole = false;
};

// The sum of token t: the delta of a NormRow.
template <typename Expert>
struct CombinedDelta {
  const ExpertCombineParams& p;
  int64_t t;
  bool whole;

  __device__ __forceinline__ void Load(int vector, float (&sum)[kRowVector]) const {
#pragma unroll
    for (float& value : sum) value = 0;
    for (int first = 0; first < p.top_k; first += kLoadsUnderWay) AddChoices(first, vector, sum);
    if (p.shared == nullptr) return;
    if (p.shared_type == Element::kF32) {
      AddShared<float>(vector, sum);
    } else {
      AddShared<device::Bf16>(vector, sum);
    }
  }

 private:
  template <typename Shared>
  __device__ __forceinline__ void AddShared(int vector, float (&sum)[kRowVector]) const {
    float v[kRowVector];
    LoadVector(static_cast<const Shared*>(p.shared) + t * p.shared_stride, vector, p.hidden, whole,
               v);
#pragma unroll
    for (int i = 0; i < kRowVector; ++i) sum[i] += v[i];
  }

  // Adds the choices [first, first + kLoadsUnderWay).
  __device__ __forceinline__ void AddChoices(int first, int vector,
                                             float (&sum)[kRowVector]) const {
    const Expert* expert_out = static_cast<const Expert*>(p.expert_out);
    bool there[kLoadsUnderWay];
    float v[kLoadsUnderWay][kRowVector];
#pragma unroll
    for (int i = 0; i < kLoadsUnderWay; ++i) {
      const int j = first + i;
      const int32_t row = j < p.top_k ? p.token_row[t * p.top_k + j] : -1;
      there[i] = row >= 0 && row < p.num_rows;
      if (there[i]) LoadVector(expert_out + row * p.expert_stride, vector, p.hidden, whole, v[i]);
    }
#pragma unroll
    for (int i = 0; i < kLoadsUnderWay; ++i) {
      if (!there[i]) continue;
      const float weight = p.weights[t * p.top_k + first + i];
#pragma unroll
      for (int c = 0; c < kRowVector; ++c) sum[c] = device::Fma(weight, v[i][c], sum[c]);
    }
  }
};

}  // namespace jevons::cuda
