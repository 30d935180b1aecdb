// The generator behind all random numbers, for the CPU and a GPU alike.
#pragma once

#include <cstdint>

#include "base/host_device.h"

namespace jevons {

struct RandomWords {
  uint32_t word[4];
};

// Four words for (seed, low, high), independent of those of any other triple. Source: Salmon et al.
// 2011, Philox4x32 with 10 rounds; the counter is low, then high.
JEVONS_HOST_DEVICE inline RandomWords Philox(uint64_t seed, uint64_t low, uint64_t high) {
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  RandomWords c = {{static_cast<uint32_t>(low), static_cast<uint32_t>(low >> 32),
                    static_cast<uint32_t>(high), static_cast<uint32_t>(high >> 32)}};
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c.word[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57} * c.word[2];
    c = {{static_cast<uint32_t>(p1 >> 32) ^ c.word[1] ^ key[0], static_cast<uint32_t>(p1),
          static_cast<uint32_t>(p0 >> 32) ^ c.word[3] ^ key[1], static_cast<uint32_t>(p0)}};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return c;
}

}  // namespace jevons
