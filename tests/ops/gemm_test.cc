// What the packed matrix products promise beyond agreeing with the twin: the order of the sum, the
// exact value of every weight, and the same bits for a row in any company.
#include "cpu/gemm.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "gtest/gtest.h"
#include "ops/backend.h"
#include "tests/support/cpu_target.h"

namespace jevons {
namespace {

constexpr uint64_t kSeed = 90210;
const DType kWeightTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kF8E4M3};

// A stored matrix with the values that it stands for.
struct Stored {
  DType dtype;
  int64_t rows;
  int64_t k;
  std::vector<uint8_t> bytes;
  std::vector<float> scale;
  std::vector<float> values;

  WeightPart Part() {
    WeightPart part;
    part.data = TensorView(bytes.data(), dtype, {rows, k});
    if (dtype == DType::kF8E4M3) {
      part.scale = TensorView(scale.data(), DType::kF32, {(rows + 127) / 128, (k + 127) / 128});
    }
    return part;
  }
  // Sets an element from its bits, low bytes first.
  void Set(int64_t i, uint32_t bits) {
    std::memcpy(bytes.data() + i * DTypeBytes(dtype), &bits, DTypeBytes(dtype));
    switch (dtype) {
      case DType::kF16:
        values[i] = F16ToFloat(static_cast<uint16_t>(bits));
        break;
      case DType::kBF16:
        values[i] = Bf16ToFloat(static_cast<uint16_t>(bits));
        break;
      case DType::kF8E4M3:
        values[i] = F8E4M3ToFloat(static_cast<uint8_t>(bits)) *
                    scale[i / k / 128 * ((k + 127) / 128) + i % k / 128];
        break;
      default:
        std::memcpy(&values[i], &bits, sizeof(bits));
    }
  }
};

Stored Empty(DType dtype, int64_t rows, int64_t k) {
  Stored out{dtype, rows, k, {}, {}, {}};
  out.bytes.resize(rows * k * DTypeBytes(dtype));
  out.scale.assign((rows + 127) / 128 * ((k + 127) / 128), 1.0f);
  out.values.resize(rows * k);
  return out;
}

uint32_t RandomBitsOf(DType dtype, Random& random) {
  const auto normal = static_cast<float>(random.Normal());
  const auto bits = static_cast<uint32_t>(random.Bits());
  switch (dtype) {
    case DType::kF16:  // any finite value below 4
      return bits % 0x4400 | (bits >> 16 & 0x8000);
    case DType::kBF16:
      return FloatToBf16(normal);
    case DType::kF8E4M3:
      return (bits & 0x7F) == 0x7F ? 0x11 : bits & 0xFF;
    default:
      uint32_t out;
      std::memcpy(&out, &normal, sizeof(out));
      return out;
  }
}

Stored RandomStored(DType dtype, int64_t rows, int64_t k, Random& random) {
  Stored out = Empty(dtype, rows, k);
  for (float& s : out.scale) s = static_cast<float>(0.001 + 0.01 * random.Uniform());
  for (int64_t i = 0; i < rows * k; ++i) out.Set(i, RandomBitsOf(dtype, random));
  return out;
}

std::vector<float> NormalFloats(int64_t count, Random& random) {
  std::vector<float> out(count);
  for (float& value : out) value = static_cast<float>(random.Normal());
  return out;
}

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

class GemmTest : public ::testing::Test {
 protected:
  void SetUp() override {
    SKIP_WITHOUT_CPU_TARGET();
    target_ = *ParseCpuTarget(TestCpuTarget());
    one_thread_ = *CreateCpuBackend({.num_threads = 1, .target = target_});
    two_threads_ = *CreateCpuBackend({.num_threads = 2, .target = target_});
    fused_ = one_thread_->Description().find("baseline") == std::string::npos;
    RecordProperty("seed", std::to_string(kSeed));
  }

  std::unique_ptr<Weight> Pack(std::vector<std::vector<Stored>>& groups) {
    WeightSpec spec;
    for (std::vector<Stored>& group : groups) {
      std::vector<WeightPart> parts;
      for (Stored& stored : group) parts.push_back(stored.Part());
      spec.groups.push_back(std::move(parts));
    }
    auto weight = two_threads_->PackWeight(spec);
    EXPECT_TRUE(weight.ok()) << weight.status();
    return *std::move(weight);
  }
  std::unique_ptr<Weight> PackOne(const Stored& stored) {
    std::vector<std::vector<Stored>> groups = {{stored}};
    return Pack(groups);
  }

  static std::vector<float> RunLinear(Backend& backend, const Weight& weight, const float* x,
                                      int64_t num_rows, std::vector<float> bias = {}) {
    std::vector<float> out(num_rows * weight.n(), NAN);
    LinearArgs args;
    args.x = TensorView(const_cast<float*>(x), DType::kF32, {num_rows, weight.k()});
    args.weight = &weight;
    if (!bias.empty()) args.bias = TensorView(bias.data(), DType::kF32, {weight.n()});
    args.out = TensorView(out.data(), DType::kF32, {num_rows, weight.n()});
    const absl::Status status = backend.Linear(args);
    EXPECT_TRUE(status.ok()) << status;
    return out;
  }

  // The weight of one group as the kernels see it: its product with the unit rows.
  void ExpectExactValues(const Weight& weight, const std::vector<float>& values) {
    const int64_t k = weight.k();
    std::vector<float> unit(k * k, 0.0f);
    for (int64_t i = 0; i < k; ++i) unit[i * k + i] = 1;
    const std::vector<float> out = RunLinear(*one_thread_, weight, unit.data(), k);
    for (int64_t i = 0; i < k; ++i) {
      const std::vector<float> row = RunLinear(*one_thread_, weight, &unit[i * k], 1);
      for (int64_t j = 0; j < weight.n(); ++j) {
        ASSERT_EQ(out[i * weight.n() + j], values[j * k + i]) << "output " << j << " input " << i;
        ASSERT_EQ(row[j], values[j * k + i]) << "output " << j << " input " << i;
      }
    }
  }

  CpuTarget target_ = CpuTarget::kBest;
  bool fused_ = true;
  std::unique_ptr<Backend> one_thread_;
  std::unique_ptr<Backend> two_threads_;
};

struct Shape {
  int64_t n;
  int64_t k;
};
const Shape kShapes[] = {{1, 1},    {31, 1},  {33, 1},   {1, 255},   {31, 255},  {33, 256},
                         {33, 257}, {1, 257}, {64, 512}, {97, 1000}, {33, 10944}};

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

// Groups of a grouped product, which share one x.
void FillGroups(const std::vector<int32_t>& sizes, int64_t num_tokens, Random& random,
                std::vector<int32_t>* cu_rows, std::vector<int32_t>* row_idx) {
  *cu_rows = {0};
  for (int32_t size : sizes) cu_rows->push_back(cu_rows->back() + size);
  for (int32_t i = 0; i < cu_rows->back(); ++i) {
    row_idx->push_back(static_cast<int32_t>(random.Below(num_tokens)));
  }
}

TEST_F(GemmTest, GroupedRowsEqualLinearRowsOfTheirGroup) {
  // The last case has more rows than are packed at once.
  const std::vector<std::pair<std::vector<int32_t>, Shape>> cases = {
      {{0, 1, 0, 13, 2, 0}, {33, 257}},
      {{0, 0}, {5, 7}},
      {{40, 0, 12}, {200, 40}},
      {{600, 1, 700, 600}, {3, 10944}}};
  constexpr int64_t kTokens = 20;
  for (const auto& [sizes, shape] : cases) {
    Random random(kSeed + 8);
    std::vector<std::vector<Stored>> groups;
    for (size_t g = 0; g < sizes.size(); ++g) {
      groups.push_back({RandomStored(DType::kBF16, shape.n, shape.k, random)});
    }
    const auto weight = Pack(groups);
    std::vector<float> x = NormalFloats(kTokens * shape.k, random);
    std::vector<int32_t> cu_rows;
    std::vector<int32_t> row_idx;
    FillGroups(sizes, kTokens, random, &cu_rows, &row_idx);
    const int64_t num_rows = cu_rows.back();
    std::vector<float> out((num_rows + 1) * shape.n, -7.0f);

    GroupedGemmArgs args;
    args.x = TensorView(x.data(), DType::kF32, {kTokens, shape.k});
    args.cu_rows = TensorView(cu_rows.data(), DType::kI32, {static_cast<int64_t>(cu_rows.size())});
    row_idx.push_back(-1);
    args.row_idx = TensorView(row_idx.data(), DType::kI32, {num_rows + 1});
    args.weight = weight.get();
    args.out = TensorView(out.data(), DType::kF32, {num_rows + 1, shape.n});
    ASSERT_TRUE(two_threads_->GroupedGemm(args).ok());

    for (size_t g = 0; g < sizes.size(); ++g) {
      const auto own = PackOne(groups[g][0]);
      const std::vector<float> expected = RunLinear(*one_thread_, *own, x.data(), kTokens);
      for (int64_t r = cu_rows[g]; r < cu_rows[g + 1]; ++r) {
        const float* want = &expected[row_idx[r] * shape.n];
        ASSERT_EQ(std::memcmp(&out[r * shape.n], want, shape.n * 4), 0) << "row " << r;
      }
    }
    for (int64_t j = 0; j < shape.n; ++j) ASSERT_EQ(out[num_rows * shape.n + j], -7.0f);
  }
}

TEST_F(GemmTest, JoinedGroupsGiveTheBitsOfTheWeightsThatTheyAreOf) {
  constexpr Shape kShape = {33, 150};
  for (DType dtype : kWeightTypes) {
    SCOPED_TRACE(DTypeName(dtype));
    Random random(kSeed + 10);
    std::vector<std::vector<Stored>> stored;
    for (int g = 0; g < 5; ++g) stored.push_back({RandomStored(dtype, kShape.n, kShape.k, random)});
    std::vector<std::vector<Stored>> of_a(stored.begin(), stored.begin() + 3);
    std::vector<std::vector<Stored>> of_b(stored.begin() + 3, stored.end());
    const auto a = Pack(of_a);
    const auto b = Pack(of_b);
    const std::vector<int> order = {4, 2, 0, 3, 2};
    std::vector<PackedGroup> groups;
    for (int g : order)
      groups.push_back(g < 3 ? PackedGroup{a.get(), g} : PackedGroup{b.get(), g - 3});
    const auto joined = two_threads_->JoinGroups(groups);
    ASSERT_TRUE(joined.ok()) << joined.status();

    const std::vector<float> row = NormalFloats(kShape.k, random);
    std::vector<float> x;
    std::vector<int32_t> cu_rows = {0};
    for (size_t g = 0; g < order.size(); ++g) {
      x.insert(x.end(), row.begin(), row.end());
      cu_rows.push_back(static_cast<int32_t>(g) + 1);
    }
    std::vector<float> out(order.size() * kShape.n, NAN);
    GroupedGemmArgs args;
    args.x = TensorView(x.data(), DType::kF32, {5, kShape.k});
    args.cu_rows = TensorView(cu_rows.data(), DType::kI32, {6});
    args.weight = joined->get();
    args.out = TensorView(out.data(), DType::kF32, {5, kShape.n});
    ASSERT_TRUE(one_thread_->GroupedGemm(args).ok());
    for (size_t g = 0; g < order.size(); ++g) {
      const auto own = PackOne(stored[order[g]][0]);
      const std::vector<float> want = RunLinear(*one_thread_, *own, row.data(), 1);
      ASSERT_EQ(std::memcmp(&out[g * kShape.n], want.data(), kShape.n * 4), 0) << "group " << g;
    }
  }
}

TEST_F(GemmTest, JoinGroupsRefusesWhatDoesNotFitTogether) {
  Random random(kSeed + 11);
  const auto a = PackOne(RandomStored(DType::kBF16, 32, 128, random));
  const auto wider = PackOne(RandomStored(DType::kBF16, 32, 256, random));
  const auto f8 = PackOne(RandomStored(DType::kF8E4M3, 32, 128, random));
  Stored stored = RandomStored(DType::kBF16, 32, 128, random);
  const auto foreign = CreateReferenceBackend()->PackWeight({{{stored.Part()}}});
  const auto code = [&](std::vector<PackedGroup> groups) {
    return one_thread_->JoinGroups(groups).status().code();
  };
  EXPECT_EQ(code({{a.get(), 0}}), absl::StatusCode::kOk);
  EXPECT_EQ(code({}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{a.get(), 1}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{a.get(), 0}, {wider.get(), 0}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{a.get(), 0}, {f8.get(), 0}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{a.get(), 0}, {foreign->get(), 0}}), absl::StatusCode::kInvalidArgument);
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
