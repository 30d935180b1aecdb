// A typed, strided window on memory that somebody else owns.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "base/check.h"

namespace jevons {

enum class DType : uint8_t { kF32, kF16, kBF16, kF8E4M3, kI32, kI64, kU8 };

int64_t DTypeBytes(DType dtype);
std::string_view DTypeName(DType dtype);

// bf16 is the upper half of a float.
inline float Bf16ToFloat(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float out;
  __builtin_memcpy(&out, &wide, sizeof(out));
  return out;
}
// Round to nearest even; NaN stays NaN.
uint16_t FloatToBf16(float value);
float F16ToFloat(uint16_t bits);
// float8_e4m3fn: no infinities, NaN is 0x7F and 0xFF, largest 448.
float F8E4M3ToFloat(uint8_t bits);

// Up to four dimensions, strides in elements, the last one always 1. A default-made view is absent.
struct TensorView {
  static constexpr int kMaxRank = 4;

  TensorView() = default;
  // Contiguous.
  TensorView(void* data, DType dtype, std::initializer_list<int64_t> shape);

  bool present() const { return data != nullptr; }
  int64_t dim(int i) const { return shape[i]; }
  int64_t num_elements() const;
  bool contiguous() const;
  // Rows [begin, begin + count) of the first dimension.
  TensorView Slice(int64_t begin, int64_t count) const;
  // Columns [begin, begin + count) of the last dimension, strides kept.
  TensorView Columns(int64_t begin, int64_t count) const;
  // The same memory with the last dimension split in two: [..., n] as [..., n / inner, inner].
  TensorView SplitLast(int64_t inner) const;
  // "bf16 [4, 128]"
  std::string ToString() const;

  template <typename T>
  T* ptr() const {
    return static_cast<T*>(data);
  }
  // First element of row i of the first dimension.
  template <typename T>
  T* row(int64_t i) const {
    return static_cast<T*>(data) + i * stride[0];
  }

  void* data = nullptr;
  DType dtype = DType::kF32;
  int32_t rank = 0;
  std::array<int64_t, kMaxRank> shape = {};
  std::array<int64_t, kMaxRank> stride = {};
};

}  // namespace jevons
