#include "base/tensor_view.h"

#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace jevons {

int64_t DTypeBytes(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kI64:
      return 8;
    case DType::kF8E4M3:
    case DType::kU8:
      return 1;
  }
  return 0;
}

std::string_view DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kF16:
      return "f16";
    case DType::kBF16:
      return "bf16";
    case DType::kF8E4M3:
      return "f8_e4m3";
    case DType::kI32:
      return "i32";
    case DType::kI64:
      return "i64";
    case DType::kU8:
      return "u8";
  }
  return "?";
}

uint16_t FloatToBf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if (std::isnan(value)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

float F16ToFloat(uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int mantissa = bits & 1023;
  const float sign = bits >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -24);
  return sign * std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
}

float F8E4M3ToFloat(uint8_t bits) {
  const int exponent = bits >> 3 & 15;
  const int mantissa = bits & 7;
  const float sign = bits >> 7 ? -1.0f : 1.0f;
  if (exponent == 15 && mantissa == 7) return NAN;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -9);
  return sign * std::ldexp(static_cast<float>(mantissa + 8), exponent - 10);
}

TensorView::TensorView(void* data, DType dtype, std::initializer_list<int64_t> dims)
    : data(data), dtype(dtype), rank(static_cast<int32_t>(dims.size())) {
  CHECK(dims.size() <= kMaxRank);
  int i = 0;
  for (int64_t d : dims) shape[i++] = d;
  int64_t next = 1;
  for (i = rank - 1; i >= 0; --i) {
    stride[i] = next;
    next *= shape[i];
  }
}

int64_t TensorView::num_elements() const {
  int64_t n = 1;
  for (int i = 0; i < rank; ++i) n *= shape[i];
  return n;
}

bool TensorView::contiguous() const {
  int64_t next = 1;
  for (int i = rank - 1; i >= 0; --i) {
    if (shape[i] != 1 && stride[i] != next) return false;
    next *= shape[i];
  }
  return true;
}

TensorView TensorView::Slice(int64_t begin, int64_t count) const {
  CHECK(rank > 0 && begin >= 0 && count >= 0 && begin + count <= shape[0]);
  TensorView out = *this;
  out.data = static_cast<char*>(data) + begin * stride[0] * DTypeBytes(dtype);
  out.shape[0] = count;
  return out;
}

TensorView TensorView::Columns(int64_t begin, int64_t count) const {
  CHECK(rank > 0 && begin >= 0 && count >= 0 && begin + count <= shape[rank - 1]);
  TensorView out = *this;
  out.data = static_cast<char*>(data) + begin * DTypeBytes(dtype);
  out.shape[rank - 1] = count;
  return out;
}

TensorView TensorView::SplitLast(int64_t inner) const {
  CHECK(rank > 0 && rank < kMaxRank && inner > 0 && shape[rank - 1] % inner == 0);
  TensorView out = *this;
  out.shape[rank - 1] = shape[rank - 1] / inner;
  out.stride[rank - 1] = inner;
  out.shape[rank] = inner;
  out.stride[rank] = 1;
  ++out.rank;
  return out;
}

std::string TensorView::ToString() const {
  std::string out = std::string(DTypeName(dtype)) + " [";
  for (int i = 0; i < rank; ++i) absl::StrAppend(&out, i ? ", " : "", shape[i]);
  return out + "]";
}

}  // namespace jevons
