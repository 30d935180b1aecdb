// Floats as unsigned numbers in the same order, for selection by bits.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/host_device.h"

namespace jevons {

// a < b exactly where FloatOrderKey(a) < FloatOrderKey(b), for all but NaN; -0 equals 0. Never 0.
JEVONS_HOST_DEVICE inline uint32_t FloatOrderKey(float value) {
  const float no_minus_zero = value + 0.0f;
  uint32_t bits;
  memcpy(&bits, &no_minus_zero, sizeof(bits));
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
JEVONS_HOST_DEVICE inline float FloatFromOrderKey(uint32_t key) {
  const uint32_t bits = key >> 31 ? key & 0x7FFFFFFFu : ~key;
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace jevons
