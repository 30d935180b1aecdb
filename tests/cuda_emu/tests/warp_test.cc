#include <gmock/gmock.h>

#include <cmath>
#include <limits>

#include "cuda/device/numeric.h"
#include "cuda/device/warp.h"
#include "tests/cuda_emu/tests/grid_run.h"

namespace jevons::emu {
namespace {

using device::LaneIdx;
using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;

TEST(Warp, ShufflesGiveTheValueOfTheSourceLane) {
  ForSeeds(10, [] {
    RunKernel({.block = 96}, [] {
      const int lane = LaneIdx();
      EXPECT_EQ(device::ShflXor(100 + lane, 5), 100 + (lane ^ 5));
      EXPECT_EQ(device::Shfl(1.5 * lane, 7), 1.5 * 7);
      EXPECT_EQ(device::Shfl(static_cast<float>(lane), lane + 3),
                static_cast<float>((lane + 3) % 32));
      EXPECT_EQ(device::Shfl(int64_t{1} << (lane + 20), 31 - lane), int64_t{1} << (51 - lane));
      EXPECT_EQ(device::ShflUp(lane, 4), lane < 4 ? lane : lane - 4);
    });
  });
}

TEST(Warp, BallotMaxAndMin) {
  ForSeeds(10, [] {
    RunKernel({.block = 64}, [] {
      const uint32_t lane = static_cast<uint32_t>(LaneIdx());
      EXPECT_EQ(device::Ballot(lane % 3 == 0), 0x49249249u);
      EXPECT_EQ(device::WarpMax(0x80000000u + lane), 0x8000001Fu);
      EXPECT_EQ(device::WarpMin((lane + 9) % 32 + 4), 4u);
    });
  });
}

TEST(Warp, ManyCollectivesInARow) {
  RunKernel({.block = 256, .grid = dim3(4)}, [] {
    int sum = 0;
    for (int i = 0; i < 100; ++i) {
      int value = LaneIdx() + i;
      for (int d = 16; d > 0; d /= 2) value += device::ShflXor(value, d);
      sum += value;
      if (i % 10 == 0) device::SyncWarp();
    }
    EXPECT_EQ(sum, 100 * 496 + 32 * 4950);
  });
}

TEST(WarpMisuse, LanesThatSkipACollective) {
  ForSeeds(10, [] {
    const auto kernel = [] {
      if (LaneIdx() >= 5) device::ShflXor(1, 1);
    };
    EXPECT_THAT(Misused({.block = 64}, kernel),
                AllOf(HasSubstr("wait for each other in TestKernel, block (0,0,0)"),
                      ContainsRegex("threads 5-31, 37-63: ShflXor at .*warp_test.cc:"),
                      HasSubstr("threads 0-4, 32-36: has ended")));
  });
}

TEST(WarpMisuse, LanesAtTwoCollectives) {
  ForSeeds(10, [] {
    const auto kernel = [] {
      if (LaneIdx() < 16) {
        device::Shfl(1, 0);
      } else {
        device::Ballot(true);
      }
    };
    EXPECT_THAT(
        Misused({}, kernel),
        ContainsRegex("divergent warp: this lane comes to (Ballot|Shfl) while lanes .* wait in "
                      "(Ballot|Shfl) at .*warp_test.cc:.* thread [0-9]+ at .*warp_test.cc:"));
  });
}

TEST(WarpMisuse, LanesAtOneCollectiveInTwoPlaces) {
  const auto kernel = [] {
    if (LaneIdx() < 16) {
      device::Shfl(1, 0);
    } else {
      device::Shfl(1, 0);
    }
  };
  EXPECT_THAT(Misused({}, kernel), HasSubstr("divergent warp"));
}

TEST(Numeric, Bf16RoundsToNearestEven) {
  const auto bits = [](float value) { return device::ToBf16(value).bits; };
  EXPECT_EQ(bits(1.0f), 0x3F80);
  EXPECT_EQ(bits(-2.0f), 0xC000);
  EXPECT_EQ(bits(device::FloatFromBits(0x3F808000)), 0x3F80);  // a tie, even below
  EXPECT_EQ(bits(device::FloatFromBits(0x3F818000)), 0x3F82);  // a tie, even above
  EXPECT_EQ(bits(device::FloatFromBits(0x3F808001)), 0x3F81);
  EXPECT_EQ(bits(device::FloatFromBits(0x7F7FFFFF)), 0x7F80);  // beyond the largest
  EXPECT_EQ(bits(-std::numeric_limits<float>::infinity()), 0xFF80);
  EXPECT_EQ(bits(device::FloatFromBits(0x7F800001)), 0x7FFF);
  EXPECT_EQ(bits(device::FloatFromBits(0x00008001)), 0x0001);
  EXPECT_EQ(device::PackBf16(1.0f, -2.0f), 0xC0003F80u);
  EXPECT_EQ(device::LowToFloat(0xC0003F80u), 1.0f);
  EXPECT_EQ(device::HighToFloat(0xC0003F80u), -2.0f);
}

TEST(Numeric, MulBf16MultipliesBothAndKeepsSubnormals) {
  // 1.5 * 2 and -3 * 0.5.
  EXPECT_EQ(device::MulBf16(0xC0403FC0u, 0x3F004000u), 0xBFC04040u);
  // 2^-133 * 2^120 and the way back.
  EXPECT_EQ(device::MulBf16(0x00000001u, 0x7B807B80u), 0x00003900u);
  EXPECT_EQ(device::MulBf16(0x00003900u, 0x03800380u), 0x00000001u);
  EXPECT_EQ(device::MulBf16(0x80000000u, 0x3F803F80u), 0x80000000u);
  EXPECT_TRUE(std::isnan(device::LowToFloat(device::MulBf16(0x00000000u, 0x7FC07FC0u))));
}

TEST(Numeric, PermuteBytesTakesThoseOfAFirst) {
  EXPECT_EQ(device::PermuteBytes(0x33221100u, 0x77665544u, 0x3210), 0x33221100u);
  EXPECT_EQ(device::PermuteBytes(0x33221100u, 0x77665544u, 0x7654), 0x77665544u);
  EXPECT_EQ(device::PermuteBytes(0x44332211u, 0, 0x1404), 0x22001100u);
  EXPECT_EQ(device::PermuteBytes(0x44332211u, 0, 0x3424), 0x44003300u);
}

// The value of an e4m3: sign, four bits of exponent with bias 7, three of mantissa.
float E4m3Value(int byte) {
  const int exponent = byte >> 3 & 15;
  const int mantissa = byte & 7;
  const float magnitude = exponent == 0
                              ? std::ldexp(static_cast<float>(mantissa), -9)
                              : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return byte & 0x80 ? -magnitude : magnitude;
}

TEST(Numeric, E4m3ToBf16IsExact) {
  for (int byte = 0; byte < 256; ++byte) {
    uint32_t first, second;
    device::E4m3ToBf16(static_cast<uint32_t>(byte) << 8 | static_cast<uint32_t>(byte) << 16, first,
                       second);
    if ((byte & 0x7F) == 0x7F) {
      EXPECT_TRUE(std::isnan(device::HighToFloat(first)));
      continue;
    }
    EXPECT_EQ(device::LowToFloat(first), 0.0f);
    EXPECT_EQ(device::HighToFloat(first), E4m3Value(byte)) << byte;
    EXPECT_EQ(device::LowToFloat(second), E4m3Value(byte)) << byte;
  }
}

TEST(Numeric, ToE4m3RoundsToNearestEvenAndSaturates) {
  for (int byte = 0; byte < 0x7F; ++byte) {
    EXPECT_EQ(device::ToE4m3(E4m3Value(byte)), byte);
    EXPECT_EQ(device::ToE4m3(-E4m3Value(byte)), byte | 0x80);
    if (byte == 0x7E) continue;
    const float middle = (E4m3Value(byte) + E4m3Value(byte + 1)) / 2;
    EXPECT_EQ(device::ToE4m3(middle), byte + byte % 2) << byte;
    EXPECT_EQ(device::ToE4m3(std::nextafter(middle, 0.0f)), byte) << byte;
    EXPECT_EQ(device::ToE4m3(std::nextafter(middle, 1000.0f)), byte + 1) << byte;
  }
  EXPECT_EQ(device::ToE4m3(1e9f), 0x7E);
  EXPECT_EQ(device::ToE4m3(-std::numeric_limits<float>::infinity()), 0xFE);
  EXPECT_EQ(device::ToE4m3(std::numeric_limits<float>::quiet_NaN()) & 0x7F, 0x7F);
}

}  // namespace
}  // namespace jevons::emu
