#include "ops/fp8_entry.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/random.h"
#include "base/tensor_view.h"
#include "gtest/gtest.h"

namespace jevons {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// What is read after `values`, latents and keys, were written.
std::vector<float> RoundTrip(const std::vector<float>& values, const Fp8Entry& layout) {
  std::vector<uint8_t> entry(layout.bytes(), 0xFF);
  WriteFp8Entry(values.data(), layout, entry.data());
  std::vector<float> out(values.size());
  ReadFp8Entry(entry.data(), layout, out.data());
  return out;
}

float ScaleOf(float largest) { return Fp8Scale(Fp8Magnitude(largest)); }

TEST(Fp8EntryTest, PartsFollowEachOtherInUnitsOf16Bytes) {
  const Fp8Entry v3 = {512, 64};
  EXPECT_EQ(v3.scales(), 512);
  EXPECT_EQ(v3.keys(), 528);
  EXPECT_EQ(v3.bytes(), 656);
  const Fp8Entry ragged = {130, 6};
  EXPECT_EQ(ragged.num_groups(), 2);
  EXPECT_EQ(ragged.scales(), 144);
  EXPECT_EQ(ragged.keys(), 160);
  EXPECT_EQ(ragged.bytes(), 176);
  EXPECT_EQ((Fp8Entry{24, 8}.bytes()), 64);
}

TEST(Fp8EntryTest, AScaleIsTheSmallestPowerOfTwoThatTheLargestFits) {
  EXPECT_EQ(ScaleOf(448), 1);
  EXPECT_EQ(ScaleOf(std::nextafter(448.0f, 1000.0f)), 2);
  EXPECT_EQ(ScaleOf(-448), 1);
  EXPECT_EQ(ScaleOf(224), 0.5f);
  EXPECT_EQ(ScaleOf(1), 0x1p-8f);
  EXPECT_EQ(ScaleOf(1.75f), 0x1p-8f);
  EXPECT_EQ(ScaleOf(1.76f), 0x1p-7f);
  EXPECT_EQ(ScaleOf(0), 1);
  EXPECT_EQ(ScaleOf(-0.0f), 1);
  // The ends of the range.
  EXPECT_EQ(ScaleOf(std::numeric_limits<float>::denorm_min()), 0x1p-124f);
  EXPECT_EQ(ScaleOf(448 * 0x1p-124f), 0x1p-124f);
  EXPECT_EQ(ScaleOf(std::numeric_limits<float>::max()), 0x1p119f);
  EXPECT_TRUE(std::isnan(ScaleOf(kInfinity)));
  EXPECT_TRUE(std::isnan(ScaleOf(kNan)));
  EXPECT_TRUE(std::isnan(ScaleOf(-kNan)));
}

TEST(Fp8EntryTest, EveryE4m3ReadsAsItsValueAndIsWrittenAgain) {
  for (int byte = 0; byte < 256; ++byte) {
    const uint8_t bits = static_cast<uint8_t>(byte);
    if ((byte & 0x7F) == 0x7F) continue;
    for (float scale : {0x1p-124f, 0x1p-20f, 1.0f, 0x1p7f, 0x1p8f, 0x1p119f}) {
      const float value = FromFp8(bits, scale);
      EXPECT_EQ(value, F8E4M3ToFloat(bits) * scale) << byte;
      EXPECT_EQ(ToFp8(value, scale), bits) << byte << " times " << scale;
    }
  }
}

TEST(Fp8EntryTest, RoundsToTheNearestAndInTheMiddleToEven) {
  for (int byte = 0; byte < 0x7E; ++byte) {
    const float low = F8E4M3ToFloat(static_cast<uint8_t>(byte));
    const float high = F8E4M3ToFloat(static_cast<uint8_t>(byte + 1));
    const float middle = (low + high) / 2;
    for (float sign : {1.0f, -1.0f}) {
      const int sign_bit = sign < 0 ? 0x80 : 0;
      const auto written = [&](float value) { return ToFp8(sign * value, 1); };
      EXPECT_EQ(written(middle), sign_bit | (byte + byte % 2)) << byte;
      EXPECT_EQ(written(std::nextafter(middle, 0.0f)), sign_bit | byte) << byte;
      EXPECT_EQ(written(std::nextafter(middle, 1000.0f)), sign_bit | (byte + 1)) << byte;
    }
  }
  // Past the last: only what lies beyond 448 * 2^119 comes so far.
  EXPECT_EQ(ToFp8(1e9f, 1), 0x7E);
  EXPECT_EQ(ToFp8(-1e9f, 1), 0xFE);
}

TEST(Fp8EntryTest, WhatIsReadIsExactInBf16AndNearWhatWasWritten) {
  Random random(3);
  const Fp8Entry layout = {512, 64};
  for (double magnitude : {1e-38, 1e-30, 1e-3, 1.0, 100.0, 1e30, 1e37}) {
    std::vector<float> values(512 + 64);
    for (float& value : values) value = static_cast<float>(random.Normal() * magnitude);
    const std::vector<float> read = RoundTrip(values, layout);
    for (int32_t i = 0; i < layout.r; ++i) {
      ASSERT_EQ(Bf16ToFloat(FloatToBf16(read[i])), read[i]) << magnitude;
      float largest = 0;
      const int32_t begin = i / kFp8Group * kFp8Group;
      for (int32_t j = begin; j < begin + kFp8Group; ++j) {
        largest = std::max(largest, std::abs(values[j]));
      }
      const float error = std::abs(read[i] - values[i]);
      ASSERT_LE(error, std::max(std::abs(values[i]) * 0x1p-4f, ScaleOf(largest) * 0x1p-10f));
    }
    for (int32_t i = layout.r; i < layout.r + layout.p; ++i) {
      ASSERT_EQ(read[i], Bf16ToFloat(FloatToBf16(values[i])));
    }
  }
}

TEST(Fp8EntryTest, ValuesBeyondTheRangeBecomeTheLargest) {
  const Fp8Entry layout = {2, 2};
  const float most = std::numeric_limits<float>::max();
  const std::vector<float> read = RoundTrip({most, -most, 0, 0}, layout);
  EXPECT_EQ(read[0], 448 * 0x1p119f);
  EXPECT_EQ(read[1], -448 * 0x1p119f);
}

TEST(Fp8EntryTest, WhatIsNotFiniteMakesItsGroupNanAndNoOther) {
  const Fp8Entry layout = {300, 2};
  for (float value : {kNan, kInfinity, -kInfinity}) {
    std::vector<float> values(302, 2);
    values[200] = value;
    const std::vector<float> read = RoundTrip(values, layout);
    for (int32_t i = 0; i < 302; ++i) {
      const bool broken = i >= 128 && i < 256;
      EXPECT_TRUE(broken ? std::isnan(read[i]) : read[i] == 2) << i << ": " << read[i];
    }
  }
}

TEST(Fp8EntryTest, AWholeEntryIsWrittenWithZerosWhereItIsFilledUp) {
  const Fp8Entry layout = {20, 2};
  std::vector<uint8_t> entry(layout.bytes() + 1, 0xFF);
  const std::vector<float> values(22, 1);
  WriteFp8Entry(values.data(), layout, entry.data());
  EXPECT_EQ(entry.back(), 0xFF);
  for (int32_t i = 0; i < layout.bytes(); ++i) {
    const bool used = i < 20 || (i >= layout.scales() && i < layout.scales() + 4) ||
                      (i >= layout.keys() && i < layout.keys() + 4);
    EXPECT_TRUE(used || entry[i] == 0) << i;
  }
}

}  // namespace
}  // namespace jevons
