// Products of FP8 weights whose input is rounded to FP8.
#include <limits>

#include "ops/linear.h"
#include "tests/support/test_weight.h"

namespace jevons {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

TestWeight Fp8Weight(Random& random, int64_t groups, std::vector<int64_t> parts, int64_t k) {
  TestWeight weight(random, DType::kF8E4M3, groups, std::move(parts), k);
  weight.RoundInput(ActivationPrecision::kFp8);
  return weight;
}

// Each 128 columns of each row have a magnitude of their own.
TestTensor UnevenRows(Random& random, int64_t rows, int64_t k, int64_t gap) {
  TestTensor x = NormalTensor(random, {rows, k}, gap);
  for (int64_t i = 0; i < x.size(); ++i) {
    const int64_t power = (i / k * 5 + i % k / 128 * 7) % 23 - 11;
    x.at<float>(i) = std::ldexp(x.at<float>(i), static_cast<int>(power));
  }
  return x;
}

double ProductTolerance() { return Tolerance(kLinearTolerance, kLinearFp8Tolerance); }

class Fp8InputTest : public OpTest {
 protected:
  // What a product reads of x.
  TestTensor Rounded(const TestTensor& x) {
    const int64_t rows = x.view().dim(0);
    const int64_t k = x.view().dim(1);
    std::vector<int32_t> order(rows);
    for (int64_t i = 0; i < rows; ++i) order[i] = static_cast<int32_t>(i);
    TestTensor idx = IntTensor(order);
    TestTensor packed(DType::kU8, {rows, PackedRowBytes(k)});
    TestTensor out(DType::kF32, {rows, k});
    EXPECT_TRUE(reference_->PackRows({x.view(), idx.view(), packed.view()}).ok());
    EXPECT_TRUE(reference_->UnpackRows({packed.view(), out.view()}).ok());
    return out;
  }
  TestTensor Product(Backend& backend, const Weight& weight, const TensorView& x) {
    TestTensor out(DType::kF32, {x.dim(0), weight.n()}, 5);
    const absl::Status status = backend.Linear({x, &weight, {}, out.view()});
    EXPECT_TRUE(status.ok()) << status;
    return out;
  }
};

struct LinearCase {
  int64_t num_tokens;
  std::vector<int64_t> parts;
  int64_t k;
  bool bias = false;
};

Outputs RunLinear(Backend& backend, const LinearCase& c) {
  Random random(kOpTestSeed);
  TestWeight weight = Fp8Weight(random, 1, c.parts, c.k);
  const auto packed = weight.Pack(backend);
  const int64_t n = packed->n();
  TestTensor x = UnevenRows(random, c.num_tokens, c.k, 3);
  TestTensor bias = NormalTensor(random, {n});
  TestTensor out(DType::kF32, {c.num_tokens, n}, 5);
  LinearArgs args = {x.view(), packed.get(), c.bias ? bias.view() : TensorView(), out.view()};
  EXPECT_TRUE(backend.Linear(args).ok());

  return {{out}, {SumBound(LinearSums(weight, x, c.num_tokens), ProductTolerance())}};
}

TEST_F(Fp8InputTest, LinearAgreesWithTwinForRaggedSizes) {
  for (int64_t num_tokens : {0, 1, 7, 17}) {
    for (int64_t n : {1, 65}) {
      for (int64_t k : {1, 33, 128, 129, 300}) {
        SCOPED_TRACE(testing::Message() << "m " << num_tokens << " n " << n << " k " << k);
        CheckAgainstTwin([&](Backend& b) {
          return RunLinear(b, {num_tokens, {n}, k, (n + k) % 2 == 0});
        });
      }
    }
  }
}

TEST_F(Fp8InputTest, LinearAgreesWithTwinForLargerShapes) {
  for (int64_t num_tokens : {1, 8, 33, 65, 130}) {
    SCOPED_TRACE(testing::Message() << "m " << num_tokens);
    CheckAgainstTwin([&](Backend& b) { return RunLinear(b, {num_tokens, {200, 56}, 1110}); });
  }
  // Parts that cut through eights of rows: CUDA keeps such f8 as bf16.
  if (kTestsCuda) return;
  CheckAgainstTwin([&](Backend& b) { return RunLinear(b, {4, {129, 1, 127}, 520}); });
}

struct GroupedCase {
  std::vector<int32_t> rows;  // of each group
  int64_t n;
  int64_t k;
  bool indexed = false;
  bool gated = false;
  int64_t extra_rows = 0;  // past cu_rows[num_groups]
};

// The arguments of a grouped product, with their memory; without a weight and an output.
struct GroupedRows {
  GroupedRows(Random& random, const GroupedCase& c) {
    std::vector<int32_t> cu = {0};
    for (int32_t rows : c.rows) cu.push_back(cu.back() + rows);
    num_rows = cu.back() + c.extra_rows;
    const int64_t num_tokens = c.indexed ? 11 : num_rows;
    x = UnevenRows(random, num_tokens, c.k, 2);
    // Rows that no group has may be anything.
    for (int64_t i = cu.back() * c.k; i < num_rows * c.k && !c.indexed; ++i) x.at<float>(i) = kNan;
    cu_rows = IntTensor(cu);
    if (!c.indexed) return;
    row_idx = TestTensor(DType::kI32, {num_rows});
    for (int64_t i = 0; i < cu.back(); ++i) {
      row_idx.at<int32_t>(i) = static_cast<int32_t>(random.Below(num_tokens));
    }
  }
  int64_t num_rows;
  TestTensor x, cu_rows, row_idx;
};

TestTensor Grouped(Backend& backend, const Weight& weight, const GroupedRows& rows,
                   const TestTensor& x) {
  TestTensor out(DType::kF32, {rows.num_rows, weight.n()}, 1);
  const absl::Status status = backend.GroupedGemm(
      {x.view(), rows.cu_rows.view(), rows.row_idx.view(), &weight, out.view()});
  EXPECT_TRUE(status.ok()) << status;
  return out;
}

Outputs RunGroupedGemm(Backend& backend, const GroupedCase& c) {
  Random random(kOpTestSeed);
  TestWeight weight = Fp8Weight(random, static_cast<int64_t>(c.rows.size()), {c.n}, c.k);
  const GroupedRows rows(random, c);
  const TestTensor out = Grouped(backend, *weight.Pack(backend), rows, rows.x);
  const auto reference = CreateReferenceBackend();
  weight.DropSigns();
  const TestTensor sums = Grouped(*reference, *weight.Pack(*reference), rows, Absolute(rows.x));
  return {{out}, {SumBound(sums, ProductTolerance())}};
}

// Gate and up of each row beside each other, and what they give.
struct Gated {
  TestTensor both, out;
};
Gated RunGated(Backend& backend, const Weight& weight, const GroupedRows& rows,
               const TestTensor& x) {
  Gated gated = {TestTensor(DType::kF32, {rows.num_rows, weight.n()}, 1),
                 TestTensor(DType::kF32, {rows.num_rows, weight.n() / 2}, 1)};
  const absl::Status status = backend.GatedUp({x.view(), rows.cu_rows.view(), rows.row_idx.view(),
                                               &weight, gated.both.view(), gated.out.view()});
  EXPECT_TRUE(status.ok()) << status;
  return gated;
}

Outputs RunGatedUp(Backend& backend, const GroupedCase& c) {
  Random random(kOpTestSeed);
  TestWeight weight = Fp8Weight(random, static_cast<int64_t>(c.rows.size()), {c.n, c.n}, c.k);
  weight.ForGatedUp();
  const GroupedRows rows(random, c);
  const Gated got = RunGated(backend, *weight.Pack(backend), rows, rows.x);
  const auto reference = CreateReferenceBackend();
  const Gated want = RunGated(*reference, *weight.Pack(*reference), rows, rows.x);
  weight.DropSigns();
  const Gated sums = RunGated(*reference, *weight.Pack(*reference), rows, Absolute(rows.x));
  const auto bound = [want, sums, n = c.n](int64_t i, double value) {
    const int64_t gate = i / n * 2 * n + i % n;
    const int64_t up = gate + n;
    const double gate_error = ProductTolerance() * sums.both.Value(gate);
    const double up_error = ProductTolerance() * sums.both.Value(up);
    // The slope of silu is at most 1.1.
    return 1.1 * gate_error * (std::abs(want.both.Value(up)) + up_error) +
           std::abs(want.both.Value(gate)) * up_error + kSiluMulTolerance * std::abs(value) + 1e-30;
  };
  return {{got.out}, {bound}};
}

TEST_F(Fp8InputTest, ProductsOfExpertsAgreeWithTwinForRaggedAndEmptyGroups) {
  const std::vector<int32_t> ragged = {0, 1, 3, 0, 17, 2, 33, 0};
  for (bool indexed : {false, true}) {
    for (const auto& rows : {ragged, std::vector<int32_t>{0, 0}, std::vector<int32_t>{70, 5}}) {
      SCOPED_TRACE(testing::Message() << rows.size() << " groups, indexed " << indexed);
      CheckAgainstTwin([&](Backend& b) { return RunGroupedGemm(b, {rows, 33, 200, indexed}); });
      CheckAgainstTwin([&](Backend& b) {
        return RunGatedUp(b, {rows, 24, 200, indexed, true, indexed ? 0 : 4});
      });
    }
    CheckAgainstTwin([&](Backend& b) {
      return RunGroupedGemm(b, {{2, 0, 9, 1}, 260, 700, indexed, false, 4});
    });
  }
}

TEST_F(Fp8InputTest, ARowIsTheSameAloneAndInABatch) {
  Random random(kOpTestSeed);
  const auto weight = Fp8Weight(random, 1, {77}, 700).Pack(*two_threads_);
  const TestTensor x = UnevenRows(random, 200, 700, 3);
  const TestTensor all = Product(*two_threads_, *weight, x.view());
  for (const auto& [begin, count] :
       {std::pair(0, 1), {199, 1}, {57, 1}, {3, 8}, {192, 8}, {100, 33}, {13, 70}}) {
    const TestTensor part = Product(*two_threads_, *weight, x.view().Slice(begin, count));
    for (int64_t i = 0; i < part.size(); ++i) {
      ASSERT_EQ(part.Value(i), all.Value(begin * 77 + i)) << begin << " of " << count;
    }
  }
}

TEST_F(Fp8InputTest, NanAndInfinityLoseTheirRowAlone) {
  Random random(kOpTestSeed);
  const auto weight = Fp8Weight(random, 1, {40}, 300).Pack(*one_thread_);
  TestTensor x = UnevenRows(random, 9, 300, 0);
  const TestTensor clean = Product(*one_thread_, *weight, x.view());
  x.at<float>(3 * 300 + 299) = kNan;
  x.at<float>(7 * 300) = kInf;
  const TestTensor out = Product(*one_thread_, *weight, x.view());
  for (int64_t i = 0; i < out.size(); ++i) {
    if (i / 40 == 3 || i / 40 == 7) {
      EXPECT_TRUE(std::isnan(out.Value(i))) << i;
    } else {
      EXPECT_EQ(out.Value(i), clean.Value(i)) << i;
    }
  }
}

// So experts read the same whether their rows have come from another rank as FP8 or not.
TEST_F(Fp8InputTest, RoundingTwiceIsAsOnce) {
  Random random(kOpTestSeed);
  TestWeight stored = Fp8Weight(random, 1, {65}, 300);
  const auto weight = stored.Pack(*one_thread_);
  const TestTensor x = UnevenRows(random, 21, 300, 0);
  const TestTensor rounded = Rounded(x);
  const TestTensor once = Product(*one_thread_, *weight, x.view());
  ExpectSameBits(once, Product(*one_thread_, *weight, rounded.view()));
  if (kTestsCuda) return;
  // Where the instruction is the same it is nothing but that.
  const auto exact = stored.RoundInput(ActivationPrecision::kExact).Pack(*one_thread_);
  ExpectSameBits(once, Product(*one_thread_, *exact, rounded.view()));
}

TEST_F(Fp8InputTest, AWeightThatIsNotFp8IsRefused) {
  Random random(kOpTestSeed);
  TestTensor data = NormalTensor(random, {8, 64});
  WeightSpec spec = {{{{data.view(), {}}}}};
  spec.input = ActivationPrecision::kFp8;
  const absl::Status status = one_thread_->PackWeight(spec).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(),
            "PackWeight: group 0 part 0: data must be f8_e4m3 where the input is fp8");
}

TEST_F(Fp8InputTest, ProductsOfHeadsRefuseSuchAWeight) {
  Random random(kOpTestSeed);
  const auto weight = Fp8Weight(random, 2, {16}, 64).Pack(*one_thread_);
  const TestTensor x = NormalTensor(random, {3, 2, 64});
  const TestTensor out(DType::kF32, {3, 2, 16});
  EXPECT_EQ(one_thread_->HeadLinear({x.view(), weight.get(), out.view()}).message(),
            "HeadLinear: weight must not be packed for an input of fp8");
}

}  // namespace
}  // namespace jevons
