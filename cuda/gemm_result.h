// From the bytes of a packed weight to operand a, and from sums to the output: what the kernels of
// products share, and have the same bits by.
#pragma once

#include "cuda/device/numeric.h"
#include "cuda/gemm_traits.h"
#include "cuda/gemm_walker.h"

namespace jevons::cuda {

// Operand a of step j of a stage, from the lane's 16 bytes of its run.
template <typename Traits>
__device__ __forceinline__ void GemmOperand(const uint4& run, int j, uint32_t (&a)[4]) {
  if constexpr (Traits::kBf16 || Traits::kFp8) {
    a[0] = run.x;
    a[1] = run.y;
    a[2] = run.z;
    a[3] = run.w;
  } else {
    device::E4m3ToBf16(j % 2 == 0 ? run.x : run.z, a[0], a[2]);
    device::E4m3ToBf16(j % 2 == 0 ? run.y : run.w, a[1], a[3]);
  }
}

// The sums of a slice of an octet of tokens, with the scales of FP8 tokens: powers of two, so that
// the products are exact. `scales` are the octet's.
template <typename Traits>
__device__ __forceinline__ float4 ScaledSlice(const float4& slice, const float* scales) {
  if constexpr (Traits::kFp8) {
    const float2 scale = *reinterpret_cast<const float2*>(scales + device::LaneIdx() % 4 * 2);
    return make_float4(slice.x * scale.x, slice.y * scale.y, slice.z * scale.x, slice.w * scale.y);
  }
  return slice;
}

// `scale` are those of the strip's first and of its last eight rows; of no account for bf16.
template <typename Traits>
__device__ __forceinline__ void AddSlice(float (&total)[4], const float4& slice,
                                         const float2& scale) {
  const auto add = [](float sum, float more, float by) {
    return Traits::kBf16 ? sum + more : device::Fma(by, more, sum);
  };
  total[0] = add(total[0], slice.x, scale.x);
  total[1] = add(total[1], slice.y, scale.x);
  total[2] = add(total[2], slice.z, scale.y);
  total[3] = add(total[3], slice.w, scale.y);
}

__device__ __forceinline__ float SiluMul(float gate, float up) {
  constexpr float kLog2E = 1.44269504f;
  return gate / (1.0f + device::Exp2(-gate * kLog2E)) * up;
}

__device__ __forceinline__ float BiasOf(const GemmParams& params, int row) {
  return params.bias == nullptr ? 0.0f : params.bias[row];
}

__device__ __forceinline__ void StoreOne(const GemmParams& params, int64_t at, float value) {
  if (params.out_type == Element::kF32) {
    static_cast<float*>(params.out)[at] = value;
  } else {
    static_cast<device::Bf16*>(params.out)[at] = device::ToBf16(value);
  }
}

// total[0], total[1] are two tokens' results of one row of the strip, total[2] and total[3] those
// of the row eight below.
__device__ __forceinline__ void StoreOctet(const GemmParams& params, const GemmTile& tile,
                                           int strip, int octet, const float (&total)[4]) {
  const int in_strip = device::LaneIdx() / 4;
  const int n = params.layout.n;
  const int row = strip * kStripRows + in_strip;
  const int column = strip * (kStripRows / 2) + in_strip;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int token = octet * 8 + device::LaneIdx() % 4 * 2 + i;
    if (token >= tile.num_rows) return;
    const int64_t first =
        tile.group * params.out_group_stride + (tile.first_row + token) * params.out_row_stride;
    if (params.epilogue == GemmEpilogue::kSiluMul) {
      if (column < n / 2) StoreOne(params, first + column, SiluMul(total[i], total[2 + i]));
      continue;
    }
    if (row < n) StoreOne(params, first + row, total[i] + BiasOf(params, row));
    if (row + 8 < n) StoreOne(params, first + row + 8, total[2 + i] + BiasOf(params, row + 8));
  }
}

}  // namespace jevons::cuda
