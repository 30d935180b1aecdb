// Eight neighbours of a row as floats, whatever type the row has: what the kernels that work row by
// row have in common.
#pragma once

#include <cstdint>

#include "cuda/device/numeric.h"
#include "cuda/element.h"

namespace jevons::cuda {

constexpr int kRowVector = 8;

// Where a row's vectors may be read and written whole: both addresses and distances allow 16 bytes.
inline bool RowsAllowVectors(const void* first, int64_t stride, int64_t width) {
  return reinterpret_cast<uintptr_t>(first) % 16 == 0 && stride % kRowVector == 0 &&
         width % kRowVector == 0;
}

struct F16 {
  uint16_t bits;
};

__device__ __forceinline__ float RowToFloat(float value) { return value; }
__device__ __forceinline__ float RowToFloat(device::Bf16 value) { return device::ToFloat(value); }
// The exponent moves to where a float has it; the product mends its bias and the subnormals.
__device__ __forceinline__ float RowToFloat(F16 value) {
  const uint32_t magnitude = value.bits & 0x7FFFu;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const float scaled = device::FloatFromBits(magnitude << 13) * 0x1p112f;
  const uint32_t bits =
      magnitude >= 0x7C00u ? 0x7F800000u | magnitude << 13 : device::FloatBits(scaled);
  return device::FloatFromBits(sign | bits);
}
__device__ __forceinline__ void FloatToRow(float value, float& out) { out = value; }
__device__ __forceinline__ void FloatToRow(float value, device::Bf16& out) {
  out = device::ToBf16(value);
}

__device__ __forceinline__ void LoadWhole(const float* from, float (&v)[kRowVector]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float4 four = reinterpret_cast<const float4*>(from)[i];
    v[4 * i] = four.x;
    v[4 * i + 1] = four.y;
    v[4 * i + 2] = four.z;
    v[4 * i + 3] = four.w;
  }
}
// Two bytes an element.
template <typename T>
__device__ __forceinline__ void LoadWhole(const T* from, float (&v)[kRowVector]) {
  const uint4 raw = *reinterpret_cast<const uint4*>(from);
  const uint32_t pairs[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = RowToFloat(T{static_cast<uint16_t>(pairs[i])});
    v[2 * i + 1] = RowToFloat(T{static_cast<uint16_t>(pairs[i] >> 16)});
  }
}

__device__ __forceinline__ void StoreWhole(const float (&v)[kRowVector], float* to) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    reinterpret_cast<float4*>(to)[i] =
        make_float4(v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]);
  }
}
__device__ __forceinline__ void StoreWhole(const float (&v)[kRowVector], device::Bf16* to) {
  *reinterpret_cast<uint4*>(to) =
      make_uint4(device::PackBf16(v[0], v[1]), device::PackBf16(v[2], v[3]),
                 device::PackBf16(v[4], v[5]), device::PackBf16(v[6], v[7]));
}

// Elements [8 * vector, 8 * vector + 8) of a row of `width`; 0 past its end. `whole` says whether
// RowsAllowVectors holds; the values do not depend on it.
template <typename T>
__device__ __forceinline__ void LoadVector(const T* row, int vector, int width, bool whole,
                                           float (&v)[kRowVector]) {
  const int begin = vector * kRowVector;
  if (whole) return LoadWhole(row + begin, v);
#pragma unroll
  for (int i = 0; i < kRowVector; ++i) {
    v[i] = begin + i < width ? RowToFloat(row[begin + i]) : 0.0f;
  }
}
template <typename T>
__device__ __forceinline__ void StoreVector(const float (&v)[kRowVector], int vector, int width,
                                            bool whole, T* row) {
  const int begin = vector * kRowVector;
  if (whole) return StoreWhole(v, row + begin);
#pragma unroll
  for (int i = 0; i < kRowVector; ++i) {
    if (begin + i < width) FloatToRow(v[i], row[begin + i]);
  }
}

__device__ __forceinline__ void FillNan(float (&v)[kRowVector]) {
#pragma unroll
  for (float& value : v) value = device::FloatFromBits(0x7FC00000u);
}

__host__ __device__ constexpr int NumVectors(int width) {
  return (width + kRowVector - 1) / kRowVector;
}

// The threads of a block that has one vector for each, up to `most`.
__host__ __device__ constexpr int ThreadsForVectors(int num_vectors, int most) {
  const int whole_warps = (num_vectors + 31) / 32 * 32;
  return whole_warps < 32 ? 32 : whole_warps < most ? whole_warps : most;
}

}  // namespace jevons::cuda
