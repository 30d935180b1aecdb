#pragma once

#include <cstdint>

namespace jevons::device {

// The upper half of a float, as bits.
struct Bf16 {
  uint16_t bits;
};

}  // namespace jevons::device
