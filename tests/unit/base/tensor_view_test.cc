#include "base/tensor_view.h"

#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "base/random.h"
#include "gtest/gtest.h"
#include "tests/support/test_data.h"

namespace jevons {
namespace {

// "[0.0, -0.0, null]" to its words.
std::vector<std::string> ReadJsonList(const std::string& path) {
  std::vector<std::string> words;
  std::string word;
  for (char c : ReadFile(path)) {
    if (c == '[' || c == ' ' || c == '\n') continue;
    if (c != ',' && c != ']') {
      word += c;
      continue;
    }
    words.push_back(word);
    word.clear();
  }
  return words;
}

TEST(TensorViewTest, F8E4M3DecodesAsTheTableForAll256Values) {
  const std::vector<std::string> table = ReadJsonList(DataPath("math/fp8-e4m3fn-decode.json"));
  ASSERT_EQ(table.size(), 256u);
  for (int bits = 0; bits < 256; ++bits) {
    const float value = F8E4M3ToFloat(static_cast<uint8_t>(bits));
    if (table[bits] == "null") {
      EXPECT_TRUE(std::isnan(value)) << bits;
      continue;
    }
    const float expected = std::stof(table[bits]);
    EXPECT_EQ(value, expected) << bits;
    EXPECT_EQ(std::signbit(value), bits >= 128) << bits;
  }
  EXPECT_TRUE(std::isnan(F8E4M3ToFloat(0x7F)));
  EXPECT_TRUE(std::isnan(F8E4M3ToFloat(0xFF)));
}

TEST(TensorViewTest, F16SpecialValuesDecodeExactly) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(F16ToFloat(0x3C00), 1.0f);
  EXPECT_EQ(F16ToFloat(0xC000), -2.0f);
  EXPECT_EQ(F16ToFloat(0x3555), 0x1.554p-2f);
  EXPECT_EQ(F16ToFloat(0x7BFF), 65504.0f);
  EXPECT_EQ(F16ToFloat(0x0001), 0x1.0p-24f);
  EXPECT_EQ(F16ToFloat(0x03FF), 0x1.FF8p-15f);
  EXPECT_EQ(F16ToFloat(0x0400), 0x1.0p-14f);
  EXPECT_EQ(F16ToFloat(0x7C00), kInf);
  EXPECT_EQ(F16ToFloat(0xFC00), -kInf);
  EXPECT_EQ(F16ToFloat(0x0000), 0.0f);
  EXPECT_FALSE(std::signbit(F16ToFloat(0x0000)));
  EXPECT_EQ(F16ToFloat(0x8000), 0.0f);
  EXPECT_TRUE(std::signbit(F16ToFloat(0x8000)));
  for (uint16_t mantissa : {0x001, 0x200, 0x3FF}) {
    EXPECT_TRUE(std::isnan(F16ToFloat(static_cast<uint16_t>(0x7C00 | mantissa))));
    EXPECT_TRUE(std::isnan(F16ToFloat(static_cast<uint16_t>(0xFC00 | mantissa))));
  }
}

TEST(TensorViewTest, F16StepsAreExactOverAllFiniteValues) {
  for (int bits = 0; bits < 0x7BFF; ++bits) {
    const float here = F16ToFloat(static_cast<uint16_t>(bits));
    const float next = F16ToFloat(static_cast<uint16_t>(bits + 1));
    const int exponent = std::max(bits >> 10, 1);
    ASSERT_EQ(next - here, std::ldexp(1.0f, exponent - 25)) << bits;
    ASSERT_EQ(F16ToFloat(static_cast<uint16_t>(bits | 0x8000)), -here) << bits;
  }
}

TEST(TensorViewTest, Bf16RoundTripIsExactForEveryValue) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = Bf16ToFloat(static_cast<uint16_t>(bits));
    const uint16_t back = FloatToBf16(value);
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(Bf16ToFloat(back))) << bits;
    } else {
      ASSERT_EQ(back, bits);
    }
  }
}

TEST(TensorViewTest, Bf16RoundsToNearestAndTiesToEven) {
  constexpr uint64_t kSeed = 1;
  Random random(kSeed);
  for (int i = 0; i < 200000; ++i) {
    auto bits = static_cast<uint32_t>(random.Bits());
    if (i % 3 == 0) bits = (bits & 0xFFFF0000) | 0x8000;  // a tie
    const float value = std::bit_cast<float>(bits);
    const auto down = static_cast<uint16_t>(bits >> 16);
    if (!std::isfinite(value) || (down & 0x7F80) == 0x7F80 || (down & 0x7FFF) == 0x7F7F) continue;
    const auto up = static_cast<uint16_t>(down + 1);
    const double to_down = std::abs(double{value} - double{Bf16ToFloat(down)});
    const double to_up = std::abs(double{Bf16ToFloat(up)} - double{value});
    const uint16_t even = down % 2 == 0 ? down : up;
    const uint16_t expected = to_down < to_up ? down : to_down > to_up ? up : even;
    ASSERT_EQ(FloatToBf16(value), expected) << "seed " << kSeed << ", bits " << bits;
  }
}

TEST(TensorViewTest, Bf16EdgesOverflowToInfinityAndKeepNan) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(FloatToBf16(std::numeric_limits<float>::max()), 0x7F80);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x7F7F7FFFu)), 0x7F7F);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x7F7F8000u)), 0x7F80);
  EXPECT_EQ(FloatToBf16(kInf), 0x7F80);
  EXPECT_EQ(FloatToBf16(-kInf), 0xFF80);
  EXPECT_EQ(FloatToBf16(-0.0f), 0x8000);
  // NaNs whose payload lies in the lower half alone, or would carry into the sign.
  for (uint32_t bits : {0x7F800001u, 0x7FFFFFFFu, 0xFF800001u, 0xFFFFFFFFu}) {
    EXPECT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16(std::bit_cast<float>(bits))))) << bits;
  }
}

TEST(TensorViewTest, DTypesHaveTheirSizesAndNames) {
  struct Case {
    DType dtype;
    int64_t bytes;
    const char* name;
  };
  for (const Case& c :
       {Case{DType::kF32, 4, "f32"}, Case{DType::kF16, 2, "f16"}, Case{DType::kBF16, 2, "bf16"},
        Case{DType::kF8E4M3, 1, "f8_e4m3"}, Case{DType::kI32, 4, "i32"},
        Case{DType::kI64, 8, "i64"}, Case{DType::kU8, 1, "u8"}}) {
    EXPECT_EQ(DTypeBytes(c.dtype), c.bytes) << c.name;
    EXPECT_EQ(DTypeName(c.dtype), c.name);
  }
}

TEST(TensorViewTest, DefaultMadeViewIsAbsent) {
  EXPECT_FALSE(TensorView().present());
  int32_t value = 0;
  EXPECT_TRUE(TensorView(&value, DType::kI32, {1}).present());
}

TEST(TensorViewTest, ContiguousStridesAreProductsOfInnerDimensions) {
  std::vector<float> data(2 * 3 * 4 * 5);
  const TensorView view(data.data(), DType::kF32, {2, 3, 4, 5});
  EXPECT_EQ(view.rank, 4);
  EXPECT_EQ(view.num_elements(), 120);
  EXPECT_EQ(view.stride, (std::array<int64_t, 4>{60, 20, 5, 1}));
  EXPECT_TRUE(view.contiguous());
  EXPECT_EQ(view.row<float>(1), data.data() + 60);
  EXPECT_EQ(view.ToString(), "f32 [2, 3, 4, 5]");
}

TEST(TensorViewTest, SliceKeepsStridesAndMovesTheStart) {
  std::vector<uint16_t> data(10 * 8);
  TensorView view(data.data(), DType::kBF16, {10, 3});
  view.stride[0] = 8;  // rows of 3 in rows of 8
  EXPECT_FALSE(view.contiguous());
  const TensorView slice = view.Slice(4, 5);
  EXPECT_EQ(slice.dim(0), 5);
  EXPECT_EQ(slice.dim(1), 3);
  EXPECT_EQ(slice.stride[0], 8);
  EXPECT_EQ(slice.ptr<uint16_t>(), data.data() + 32);
  EXPECT_EQ(slice.row<uint16_t>(2), data.data() + 48);
  EXPECT_EQ(slice.ToString(), "bf16 [5, 3]");
  EXPECT_EQ(view.Slice(10, 0).num_elements(), 0);
  EXPECT_EQ(view.Slice(0, 10).ptr<uint16_t>(), data.data());
}

TEST(TensorViewTest, ContiguousLooksAtNoStrideOfASingleRow) {
  std::vector<float> data(16);
  TensorView view(data.data(), DType::kF32, {1, 4});
  view.stride[0] = 16;
  EXPECT_TRUE(view.contiguous());
}

TEST(TensorViewTest, SliceOutsideIsOurBug) {
  std::vector<float> data(4);
  const TensorView view(data.data(), DType::kF32, {4});
  EXPECT_DEATH(view.Slice(3, 2), "CHECK failed");
  EXPECT_DEATH(view.Slice(-1, 1), "CHECK failed");
}

}  // namespace
}  // namespace jevons
