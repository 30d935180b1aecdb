// Emulated: cuda/device/numeric.h.
#pragma once

#include <cuda_runtime.h>

#include <bit>
#include <cmath>
#include <cstdint>

#include "cuda/device/bf16.h"

namespace jevons::device {

inline uint32_t FloatBits(float value) { return std::bit_cast<uint32_t>(value); }
inline float FloatFromBits(uint32_t bits) { return std::bit_cast<float>(bits); }
// 9.7.9.7 (prmt).
inline uint32_t PermuteBytes(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t eight = static_cast<uint64_t>(b) << 32 | a;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t byte = selector >> (4 * i) & 7;
    out |= static_cast<uint32_t>(eight >> (8 * byte) & 0xFF) << (8 * i);
  }
  return out;
}
inline int PopCount(uint32_t value) { return std::popcount(value); }

inline float ToFloat(Bf16 value) { return FloatFromBits(static_cast<uint32_t>(value.bits) << 16); }
inline float LowToFloat(uint32_t pair) { return FloatFromBits(pair << 16); }
inline float HighToFloat(uint32_t pair) { return FloatFromBits(pair & 0xFFFF0000u); }

// 9.7.9.21 (cvt.rn.bf16.f32): every NaN becomes the same one.
inline Bf16 ToBf16(float value) {
  const uint32_t bits = FloatBits(value);
  if (value != value) return Bf16{0x7FFF};
  return Bf16{static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}
inline uint32_t PackBf16(float low, float high) {
  return static_cast<uint32_t>(ToBf16(high).bits) << 16 | ToBf16(low).bits;
}

// 9.7.4.4 (fma.rn.bf16x2).
inline uint32_t MulBf16(uint32_t a, uint32_t b) {
  return PackBf16(LowToFloat(a) * LowToFloat(b), HighToFloat(a) * HighToFloat(b));
}

namespace internal {

inline float E4m3ToFloat(uint32_t byte) {
  const uint32_t magnitude = byte & 0x7F;
  if (magnitude == 0x7F) return FloatFromBits(0x7FC00000u);
  return FloatFromBits((byte & 0x80) << 24 | magnitude << 20) * 0x1p120f;
}

}  // namespace internal

// 9.7.9.21 (cvt.rn.f16x2.e4m3x2).
inline void E4m3ToBf16(uint32_t four, uint32_t& first, uint32_t& second) {
  float value[4];
  for (int i = 0; i < 4; ++i) value[i] = internal::E4m3ToFloat(four >> (8 * i) & 0xFF);
  first = PackBf16(value[0], value[1]);
  second = PackBf16(value[2], value[3]);
}

// 9.7.9.21 (cvt.rn.satfinite.e4m3x2.f32).
inline uint8_t ToE4m3(float value) {
  if (value != value) return 0x7F;
  const uint32_t sign = FloatBits(value) >> 24 & 0x80;
  const float magnitude = std::fabs(value);
  if (magnitude >= 448.0f) return static_cast<uint8_t>(sign | 0x7E);
  // Steps of 2^-9 up to 2^-6, then eight to each power of two; to nearest even in each.
  if (magnitude < 0x1p-6f) {
    return static_cast<uint8_t>(sign | static_cast<uint32_t>(std::nearbyint(magnitude * 0x1p9f)));
  }
  const uint32_t bits = FloatBits(magnitude);
  const uint32_t rounded = (bits + 0x7FFFF + (bits >> 20 & 1)) >> 20;
  return static_cast<uint8_t>(sign | (rounded - (120u << 3)));
}

// 9.7.3.21 (ex2.approx), 9.7.3.20 (lg2.approx).
inline float Exp2(float value) { return std::exp2(value); }
inline float Log2(float value) { return std::log2(value); }
inline float Fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

}  // namespace jevons::device
