#include "base/random.h"

#include <bit>
#include <cmath>
#include <set>
#include <vector>

#include "gtest/gtest.h"

namespace jevons {
namespace {

TEST(RandomTest, MatchesThePublishedPhiloxAnswerForZeroKeyAndCounter) {
  EXPECT_EQ(RandomBits(0, 0), 0x6627E8D5E169C58Du);
}

TEST(RandomTest, IsAFunctionOfSeedAndCounterAlone) {
  std::vector<uint64_t> rising;
  for (uint64_t counter = 0; counter < 1000; ++counter) rising.push_back(RandomBits(7, counter));
  for (uint64_t counter = 1000; counter-- > 0;) {
    ASSERT_EQ(RandomBits(7, counter), rising[counter]) << "counter " << counter;
  }
  Random stream(7);
  for (uint64_t counter = 0; counter < 1000; ++counter) ASSERT_EQ(stream.Bits(), rising[counter]);
}

TEST(RandomTest, NeighbouringSeedsAndCountersShareNoNumber) {
  std::set<uint64_t> seen;
  for (uint64_t seed = 0; seed < 64; ++seed) {
    for (uint64_t counter = 0; counter < 256; ++counter) seen.insert(RandomBits(seed, counter));
  }
  EXPECT_EQ(seen.size(), 64u * 256u);
}

TEST(RandomTest, HighHalvesOfSeedAndCounterMatter) {
  const uint64_t high = uint64_t{1} << 63;
  EXPECT_NE(RandomBits(0, 0), RandomBits(high, 0));
  EXPECT_NE(RandomBits(0, 0), RandomBits(0, high));
  EXPECT_NE(RandomBits(high, 0), RandomBits(0, high));
}

// A flipped input bit flips each output bit with probability a half: over 1000 trials the mean of
// 64 such bits has a standard deviation of 0.13.
TEST(RandomTest, OneFlippedInputBitFlipsHalfOfTheOutput) {
  for (int bit = 0; bit < 64; ++bit) {
    int64_t by_seed = 0;
    int64_t by_counter = 0;
    const uint64_t flip = uint64_t{1} << bit;
    for (uint64_t i = 0; i < 1000; ++i) {
      by_seed += std::popcount(RandomBits(i, i * i) ^ RandomBits(i ^ flip, i * i));
      by_counter += std::popcount(RandomBits(i, i * i) ^ RandomBits(i, (i * i) ^ flip));
    }
    EXPECT_NEAR(static_cast<double>(by_seed) / 1000, 32, 0.8) << "seed bit " << bit;
    EXPECT_NEAR(static_cast<double>(by_counter) / 1000, 32, 0.8) << "counter bit " << bit;
  }
}

TEST(RandomTest, UniformFillsItsBucketsEvenly) {
  constexpr int kBuckets = 256;
  constexpr int kDraws = 1 << 18;
  for (uint64_t seed : {0u, 1u, 2u, 12345u}) {
    std::vector<int> count(kBuckets);
    for (uint64_t counter = 0; counter < kDraws; ++counter) {
      const double value = RandomUniform(seed, counter);
      ASSERT_TRUE(value >= 0 && value < 1) << value;
      ++count[static_cast<size_t>(value * kBuckets)];
    }
    double chi_square = 0;
    const double expected = static_cast<double>(kDraws) / kBuckets;
    for (int n : count) chi_square += (n - expected) * (n - expected) / expected;
    // 255 degrees of freedom: mean 255, standard deviation 22.6.
    EXPECT_TRUE(chi_square > 155 && chi_square < 355) << "seed " << seed << ": " << chi_square;
  }
}

TEST(RandomTest, UniformIsAMultipleOfTwoToTheMinus53) {
  for (uint64_t counter = 0; counter < 1000; ++counter) {
    const double scaled = RandomUniform(3, counter) * 0x1.0p53;
    ASSERT_EQ(scaled, std::floor(scaled));
  }
}

TEST(RandomTest, BelowReachesEveryValueAndNoOther) {
  Random random(11);
  std::vector<int> count(7);
  for (int i = 0; i < 7000; ++i) {
    const int64_t value = random.Below(7);
    ASSERT_TRUE(value >= 0 && value < 7) << value;
    ++count[static_cast<size_t>(value)];
  }
  for (int n : count) EXPECT_TRUE(n > 850 && n < 1150) << n;
  EXPECT_EQ(random.Below(1), 0);
}

TEST(RandomTest, NormalHasTheMomentsOfANormal) {
  constexpr int kDraws = 200000;
  Random random(5);
  double sum = 0;
  double squares = 0;
  double fourths = 0;
  for (int i = 0; i < kDraws; ++i) {
    const double x = random.Normal();
    ASSERT_TRUE(std::isfinite(x));
    sum += x;
    squares += x * x;
    fourths += x * x * x * x;
  }
  EXPECT_NEAR(sum / kDraws, 0, 0.012);
  EXPECT_NEAR(squares / kDraws, 1, 0.016);
  EXPECT_NEAR(fourths / kDraws, 3, 0.12);
}

}  // namespace
}  // namespace jevons
