// How an FP8 entry of the latent cache lies in memory, and its arithmetic, which has the same bits
// on every backend. Standard headers only: kernels include it.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/host_device.h"

namespace jevons {

// Latents that share a scale.
inline constexpr int32_t kFp8Group = 128;

// What    latent[i] = e4m3[i] * scale[i / kFp8Group], i < r; key[i], i < p, is bf16: a rotation
//         suffers from rounding more than a latent does
// Layout  r bytes of e4m3, a f32 scale for each group, p bf16 keys; each of the three parts is
//         filled up with zeros to a multiple of kPart bytes. 512 + 64 take 656 bytes
// Range   a scale is the smallest power of two with |latent| <= 448 * scale in all of its group, at
//         least 2^-124 and at most 2^119; 1 where all are zero. So what is read is exact in bf16,
//         and within 2^-4 of the latent or 2^-10 * scale, whichever is more
// Edge    a group with a value that is not finite has the scale NaN and no bits set in e4m3: all
//         of it reads as NaN. Beyond 448 * 2^119 values become that
struct Fp8Entry {
  static constexpr int32_t kPart = 16;

  int32_t r = 0;
  int32_t p = 0;

  JEVONS_HOST_DEVICE static constexpr int32_t Padded(int32_t bytes) {
    return (bytes + kPart - 1) / kPart * kPart;
  }
  JEVONS_HOST_DEVICE constexpr int32_t num_groups() const {
    return (r + kFp8Group - 1) / kFp8Group;
  }
  // Where the parts begin.
  JEVONS_HOST_DEVICE constexpr int32_t scales() const { return Padded(r); }
  JEVONS_HOST_DEVICE constexpr int32_t keys() const { return scales() + Padded(4 * num_groups()); }
  JEVONS_HOST_DEVICE constexpr int32_t bytes() const { return keys() + Padded(2 * p); }
};
static_assert(Fp8Entry{512, 64}.bytes() == 656);

JEVONS_HOST_DEVICE inline uint32_t Fp8FloatBits(float value) {
  uint32_t bits = 0;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}
JEVONS_HOST_DEVICE inline float Fp8FloatOf(uint32_t bits) {
  float value = 0;
  memcpy(&value, &bits, sizeof(value));
  return value;
}
// Ordered as magnitudes are, with NaN above infinity.
JEVONS_HOST_DEVICE inline uint32_t Fp8Magnitude(float value) {
  return Fp8FloatBits(value) & 0x7FFFFFFFu;
}

// The scale of a group whose largest Fp8Magnitude is given.
JEVONS_HOST_DEVICE inline float Fp8Scale(uint32_t largest) {
  if (largest == 0) return 1.0f;
  if (largest >= 0x7F800000u) return Fp8FloatOf(0x7FC00000u);
  // 448 is 1.75 * 2^8.
  const int32_t exponent = static_cast<int32_t>(largest >> 23) - 8;
  const int32_t wanted = exponent + ((largest & 0x7FFFFFu) > 0x600000u ? 1 : 0);
  const int32_t biased = wanted < 127 - 124 ? 127 - 124 : wanted > 127 + 119 ? 127 + 119 : wanted;
  return Fp8FloatOf(static_cast<uint32_t>(biased) << 23);
}

// value / scale to the nearest e4m3, ties to even.
JEVONS_HOST_DEVICE inline uint8_t ToFp8(float value, float scale) {
  if (scale != scale) return 0;
  const float inverse = Fp8FloatOf((254u << 23) - Fp8FloatBits(scale));
  const float scaled = value * inverse;
  const uint32_t sign = Fp8FloatBits(scaled) >> 24 & 0x80u;
  const uint32_t bits = Fp8Magnitude(scaled);
  if (bits >= Fp8FloatBits(448.0f)) return static_cast<uint8_t>(sign | 0x7Eu);
  if (bits < Fp8FloatBits(0x1p-6f)) {
    // The last bits of a float from 2^14 on count steps of 2^-9, those of the subnormals.
    return static_cast<uint8_t>(sign | (Fp8FloatBits(Fp8FloatOf(bits) + 0x1p14f) & 0xFu));
  }
  const uint32_t rounded = (bits + 0x7FFFFu + (bits >> 20 & 1u)) >> 20;
  return static_cast<uint8_t>(sign | (rounded - (120u << 3)));
}

// For the bits that ToFp8 gives: the two NaN of e4m3 are not among them.
JEVONS_HOST_DEVICE inline float FromFp8(uint8_t e4m3, float scale) {
  const uint32_t sign = static_cast<uint32_t>(e4m3 & 0x80u) << 24;
  // Exponent and mantissa where a float has them; the first product mends the bias.
  const float value = Fp8FloatOf(sign | static_cast<uint32_t>(e4m3 & 0x7Fu) << 20) * 0x1p120f;
  return value * scale;
}

// Host loops over one entry: `values` are r latents, then p keys.
void WriteFp8Entry(const float* values, const Fp8Entry& layout, uint8_t* entry);
void ReadFp8Entry(const uint8_t* entry, const Fp8Entry& layout, float* values);

// What an entry of r latents reads as after it was written. Twice is as once.
void RoundToFp8(const float* values, int64_t r, float* rounded);

}  // namespace jevons
