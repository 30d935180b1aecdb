// Counter-based random numbers: the n-th number of a seed needs none of those before it, so a
// sequence that is preempted, moved or batched otherwise draws the same numbers.
#pragma once

#include <cstdint>

namespace jevons {

// 64 uniform bits for (seed, counter). Source: Salmon et al. 2011, Philox4x32 with 10 rounds.
uint64_t RandomBits(uint64_t seed, uint64_t counter);

// Uniform in [0, 1), multiples of 2^-53.
inline double RandomUniform(uint64_t seed, uint64_t counter) {
  return static_cast<double>(RandomBits(seed, counter) >> 11) * 0x1.0p-53;
}

// A stream of numbers for tests and benches. Thread-compatible.
class Random {
 public:
  explicit Random(uint64_t seed) : seed_(seed) {}
  uint64_t Bits() { return RandomBits(seed_, counter_++); }
  double Uniform() { return RandomUniform(seed_, counter_++); }
  // Uniform in [0, n); n > 0.
  int64_t Below(int64_t n) { return static_cast<int64_t>(Bits() % static_cast<uint64_t>(n)); }
  // Normal with mean 0 and variance 1.
  double Normal();

 private:
  uint64_t seed_;
  uint64_t counter_ = 0;
};

}  // namespace jevons
