// One vector of Rope, by one thread.
#pragma once

#include <cstdint>

#include "cuda/row_vector.h"
#include "cuda/rows.h"

namespace jevons::cuda {

// Rotates the four pairs of a vector. Cosines and sines are read as the vector's half.
__device__ __forceinline__ void Rotate(const float* cos_sin, int d, int vector,
                                       float (&v)[kRowVector]) {
#pragma unroll
  for (int i = 0; i < kRowVector / 2; ++i) {
    const int pair = vector * (kRowVector / 2) + i;
    if (pair >= d / 2) continue;
    const float c = cos_sin[pair];
    const float s = cos_sin[d / 2 + pair];
    const float a = v[2 * i];
    const float b = v[2 * i + 1];
    v[2 * i] = device::Fma(a, c, -(b * s));
    v[2 * i + 1] = device::Fma(a, s, b * c);
  }
}

// Eight columns of one head of a token.
template <typename In, typename Out>
__device__ __forceinline__ void RopeVector(const RopeParams& p, bool whole, int64_t t, int64_t head,
                                           int vector) {
  const int32_t position = p.positions[t];
  float v[kRowVector];
  if (position >= 0 && position < p.max_positions) {
    LoadVector(static_cast<const In*>(p.x) + t * p.x_stride + head * p.x_head_stride, vector, p.d,
               whole, v);
    Rotate(p.cos_sin + static_cast<int64_t>(position) * p.d, p.d, vector, v);
  } else {
    FillNan(v);
  }
  StoreVector(v, vector, p.d, whole,
              static_cast<Out*>(p.out) + t * p.out_stride + head * p.out_head_stride);
}

}  // namespace jevons::cuda
