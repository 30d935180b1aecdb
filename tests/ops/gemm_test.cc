// What the packed matrix products promise beyond agreeing with the twin: the order of the sum, the
// exact value of every weight, and the same bits for a row in any company.
#include "cpu/gemm.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "tests/ops/gemm_fixture.h"

namespace jevons {
namespace {

const Shape kShapes[] = {{1, 1},    {31, 1},  {33, 1},   {1, 255},   {31, 255},  {33, 256},
                         {33, 257}, {1, 257}, {64, 512}, {97, 1000}, {33, 10944}};

// As the contract of cpu/gemm_kernels.h says.
float SumInOrder(const float* w, const float* x, int64_t k, bool fused) {
  float total = 0;
  for (int64_t begin = 0; begin < k; begin += fast::kSumBlock) {
    float sum = 0;
    for (int64_t i = begin; i < std::min(k, begin + fast::kSumBlock); ++i) {
      sum = fused ? std::fma(x[i], w[i], sum) : x[i] * w[i] + sum;
    }
    total = begin == 0 ? sum : total + sum;
  }
  return total;
}

uint32_t Bits(float value) {
  uint32_t out;
  std::memcpy(&out, &value, sizeof(out));
  return out;
}

TEST_F(GemmTest, SumIsOneChainOfEachBlockAndBlocksInOrderThenBias) {
  for (DType dtype : kWeightTypes) {
    for (const Shape& shape : kShapes) {
      SCOPED_TRACE(::testing::Message() << DTypeName(dtype) << " " << shape.n << "x" << shape.k);
      Random random(kSeed);
      const Stored stored = RandomStored(dtype, shape.n, shape.k, random);
      const auto weight = PackOne(stored);
      constexpr int64_t kRows = 14;
      const std::vector<float> x = NormalFloats(kRows * shape.k, random);
      const std::vector<float> bias = NormalFloats(shape.n, random);
      const std::vector<float> out = RunLinear(*two_threads_, *weight, x.data(), kRows, bias);
      for (int64_t t = 0; t < kRows; ++t) {
        for (int64_t j = 0; j < shape.n; ++j) {
          const float sum =
              SumInOrder(&stored.values[j * shape.k], &x[t * shape.k], shape.k, fused_);
          ASSERT_EQ(Bits(out[t * shape.n + j]), Bits(sum + bias[j])) << "row " << t << " of " << j;
        }
      }
    }
  }
}

TEST_F(GemmTest, ErrorAgainstFp64IsWithinTolerance) {
  for (DType dtype : kWeightTypes) {
    for (const Shape& shape : kShapes) {
      Random random(kSeed + 1);
      const Stored stored = RandomStored(dtype, shape.n, shape.k, random);
      const auto weight = PackOne(stored);
      const std::vector<float> x = NormalFloats(shape.k, random);
      const std::vector<float> out = RunLinear(*one_thread_, *weight, x.data(), 1);
      for (int64_t j = 0; j < shape.n; ++j) {
        double sum = 0;
        double magnitude = 0;
        for (int64_t i = 0; i < shape.k; ++i) {
          const double term = double{stored.values[j * shape.k + i]} * x[i];
          sum += term;
          magnitude += std::abs(term);
        }
        const double error = std::abs(out[j] - sum);
        ASSERT_TRUE(error <= kLinearTolerance * magnitude)
            << DTypeName(dtype) << " " << shape.n << "x" << shape.k << " output " << j;
      }
    }
  }
}

TEST_F(GemmTest, RowGivesTheSameBitsInAnyCompanyAndWithAnyThreads) {
  for (DType dtype : kWeightTypes) {
    Random random(kSeed + 2);
    const Shape shape = {95, 600};
    const auto weight = PackOne(RandomStored(dtype, shape.n, shape.k, random));
    // More than one part of the largest size that is packed at once.
    const int64_t num_rows = dtype == DType::kBF16 ? 1600 : 60;
    const std::vector<float> x = NormalFloats(num_rows * shape.k, random);
    std::vector<float> alone;
    for (int64_t t = 0; t < num_rows; ++t) {
      const std::vector<float> row = RunLinear(*one_thread_, *weight, &x[t * shape.k], 1);
      alone.insert(alone.end(), row.begin(), row.end());
    }
    for (int64_t count = 2; count <= num_rows; count = count < 40 ? count + 1 : count * 3 / 2) {
      const std::vector<float> expected(alone.end() - count * shape.n, alone.end());
      const float* last = &x[(num_rows - count) * shape.k];
      ASSERT_EQ(RunLinear(*one_thread_, *weight, last, count), expected) << count << " rows";
      ASSERT_EQ(RunLinear(*two_threads_, *weight, last, count), expected) << count << " rows";
    }
  }
}

TEST_F(GemmTest, EveryF8ValueWithItsScaleIsRoundedOnce) {
  Stored stored = Empty(DType::kF8E4M3, 160, 260);
  Random random(kSeed + 3);
  for (float& scale : stored.scale) scale = static_cast<float>(std::exp(random.Normal() * 8));
  stored.scale[1] = 0x1.234568p-130f;
  stored.scale[2] = -3e20f;
  for (int64_t i = 0; i < 160 * 260; ++i) stored.Set(i, (i % 128 == 127 ? 0 : i % 256));
  ExpectExactValues(*PackOne(stored), stored.values);
}

TEST_F(GemmTest, EveryF16AndBf16ValueIsExact) {
  for (DType dtype : {DType::kF16, DType::kBF16}) {
    Stored stored = Empty(dtype, 256, 256);
    const uint32_t exponent = dtype == DType::kF16 ? 0x7C00 : 0x7F80;
    for (uint32_t i = 0; i < 256 * 256; ++i) stored.Set(i, (i & exponent) == exponent ? 1 : i);
    ExpectExactValues(*PackOne(stored), stored.values);
  }
}

TEST_F(GemmTest, InfinityAndNanAmongWeightsReachTheOutput) {
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    Stored stored = Empty(dtype, 40, 3);
    const uint32_t infinity = dtype == DType::kF32   ? 0x7F800000
                              : dtype == DType::kF16 ? 0x7C00
                                                     : 0x7F80;
    const uint32_t nan = dtype == DType::kF32 ? 0x7FC00000 : dtype == DType::kF16 ? 0x7E00 : 0x7FC0;
    stored.Set(5 * 3 + 1, infinity);
    stored.Set(37 * 3 + 2, nan);
    const std::vector<float> x = {1, 1, 1};
    const std::vector<float> out = RunLinear(*one_thread_, *PackOne(stored), x.data(), 1);
    for (int64_t j = 0; j < 40; ++j) {
      EXPECT_EQ(std::isnan(out[j]), j == 37) << DTypeName(dtype) << " " << j;
      EXPECT_EQ(std::isinf(out[j]), j == 5) << DTypeName(dtype) << " " << j;
    }
  }
}

TEST_F(GemmTest, PartsOfAnyTypesAndSizesKeepTheirValues) {
  const std::vector<std::vector<std::pair<DType, int64_t>>> cases = {
      {{DType::kBF16, 5}, {DType::kBF16, 60}, {DType::kBF16, 1}},
      {{DType::kF8E4M3, 96}, {DType::kF8E4M3, 70}},   // stays f8
      {{DType::kF8E4M3, 33}, {DType::kF8E4M3, 150}},  // becomes f32
      {{DType::kF8E4M3, 64}, {DType::kBF16, 3}, {DType::kF16, 40}, {DType::kF32, 2}}};
  for (const auto& parts : cases) {
    Random random(kSeed + 4);
    constexpr int64_t kInputs = 140;
    std::vector<std::vector<Stored>> groups(1);
    std::vector<float> values;
    for (const auto& [dtype, rows] : parts) {
      groups[0].push_back(RandomStored(dtype, rows, kInputs, random));
      values.insert(values.end(), groups[0].back().values.begin(), groups[0].back().values.end());
    }
    ExpectExactValues(*Pack(groups), values);
  }
}

TEST_F(GemmTest, F8WithAScaleBeyondTheRangeOfTheKernelsKeepsItsValues) {
  Random random(kSeed + 5);
  Stored stored = Empty(DType::kF8E4M3, 4, 3);
  stored.scale[0] = 0x1.8p118f;
  for (int64_t i = 0; i < 12; ++i) stored.Set(i, static_cast<uint32_t>(0x70 + i));
  ExpectExactValues(*PackOne(stored), stored.values);
}

TEST_F(GemmTest, WeightsKeepTheirStoredSize) {
  Random random(kSeed + 6);
  const int64_t padded = 64 * 256;
  EXPECT_EQ(PackOne(RandomStored(DType::kF32, 64, 256, random))->bytes(), padded * 4);
  EXPECT_EQ(PackOne(RandomStored(DType::kF16, 33, 256, random))->bytes(), padded * 2);
  EXPECT_EQ(PackOne(RandomStored(DType::kBF16, 64, 256, random))->bytes(), padded * 2);
  EXPECT_EQ(PackOne(RandomStored(DType::kF8E4M3, 64, 256, random))->bytes(), padded + 2 * 2 * 4);
}

TEST_F(GemmTest, NanAmongF8NamesItsPlace) {
  Random random(kSeed + 7);
  std::vector<std::vector<Stored>> groups(2);
  for (auto& group : groups) group.push_back(RandomStored(DType::kF8E4M3, 70, 50, random));
  groups[1][0].Set(66 * 50 + 7, 0xFF);
  WeightSpec spec = {{{groups[0][0].Part()}, {groups[1][0].Part()}}};
  const auto weight = two_threads_->PackWeight(spec);
  ASSERT_EQ(weight.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(weight.status().message()).find("group 1, row 66, column 7"),
            std::string::npos)
      << weight.status();
}

TEST_F(GemmTest, WeightOfAnotherBackendIsRefused) {
  Random random(kSeed + 9);
  Stored stored = RandomStored(DType::kF32, 2, 2, random);
  const auto weight = CreateReferenceBackend()->PackWeight({{{stored.Part()}}});
  ASSERT_TRUE(weight.ok());
  float x[2] = {};
  float out[2] = {};
  LinearArgs args;
  args.x = TensorView(x, DType::kF32, {1, 2});
  args.weight = weight->get();
  args.out = TensorView(out, DType::kF32, {1, 2});
  EXPECT_EQ(one_thread_->Linear(args).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace jevons
