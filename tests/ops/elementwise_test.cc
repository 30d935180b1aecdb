#include "ops/elementwise.h"

#include <cmath>
#include <limits>

#include "tests/support/op_test.h"

namespace jevons {
namespace {

constexpr int32_t kVocab = 7;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// Around every vector width and every unrolled step, and the sizes of real models.
const int64_t kWidths[] = {1,  2,  3,  4,  5,  7,  8,   9,   15,   16,   17,
                           31, 32, 33, 63, 64, 65, 127, 512, 1408, 2048, 7168};
const int64_t kTokens[] = {0, 1, 2, 5, 33};

class ElementwiseTest : public OpTest {};

Outputs RunEmbed(Backend& backend, DType dtype, int64_t num_tokens, int64_t hidden) {
  Random random(kOpTestSeed);
  TestTensor table(dtype, {kVocab, hidden});
  table.FillNormal(random);
  TestTensor ids(DType::kI32, {num_tokens});
  for (int64_t t = 0; t < num_tokens; ++t)
    ids.at<int32_t>(t) = static_cast<int32_t>(random.Below(kVocab));
  // Out of range on both sides, the last row, and specials.
  const int32_t edges[] = {-1, kVocab, kVocab - 1, INT32_MAX, INT32_MIN};
  for (int64_t t = 0; t < 5 && num_tokens > 5; ++t) ids.at<int32_t>(t) = edges[t];
  if (dtype != DType::kF32) {
    const uint16_t specials[] = {0x0000, 0x8000, 0x0001, 0x83FF, 0x7C00, 0xFC00, 0x7F80, 0x7E00};
    for (int64_t i = 0; i < std::min<int64_t>(8, hidden); ++i) {
      table.at<uint16_t>((kVocab - 1) * hidden + i) = specials[i];
    }
  }
  TestTensor out(DType::kF32, {num_tokens, hidden}, 3);
  EXPECT_TRUE(backend.Embed({ids.view(), table.view(), out.view()}).ok());
  return {{out}, {Exact()}};
}

TEST_F(ElementwiseTest, EmbedEqualsTheTableRowAndNanForUnknownIds) {
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (int64_t hidden : kWidths) {
      for (int64_t num_tokens : kTokens) {
        SCOPED_TRACE(std::to_string(hidden) + " x " + std::to_string(num_tokens));
        CheckAgainstTwin([&](Backend& b) { return RunEmbed(b, dtype, num_tokens, hidden); });
      }
    }
  }
}

TEST_F(ElementwiseTest, EmbedGivesNanForIdsOutsideTheTable) {
  const Outputs out = RunEmbed(*one_thread_, DType::kBF16, 33, 8);
  for (int64_t t : {0, 1, 3, 4}) EXPECT_TRUE(std::isnan(out.tensors[0].Value(t * 8 + 7)));
  EXPECT_EQ(out.tensors[0].Value(2 * 8), 0);
}

// Ids that were drawn, in any order, one of them lost, one no id of the table, among others.
Outputs RunEmbedOfDrawn(Backend& backend, DType dtype, int64_t hidden) {
  Random random(kOpTestSeed);
  TestTensor table(dtype, {kVocab, hidden});
  table.FillNormal(random);
  TestTensor drawn(DType::kI32, {5});
  const int32_t tokens[] = {kVocab - 1, -1, 0, kVocab, DrawnId(0)};
  for (int64_t i = 0; i < 5; ++i) drawn.at<int32_t>(i) = tokens[i];
  TestTensor ids(DType::kI32, {10});
  const int32_t marks[] = {DrawnId(2), 3,          DrawnId(0), DrawnId(1), DrawnId(3),
                           DrawnId(4), DrawnId(5), -1,         INT32_MIN,  DrawnId(0)};
  for (int64_t t = 0; t < 10; ++t) ids.at<int32_t>(t) = marks[t];
  TestTensor out(DType::kF32, {10, hidden}, 3);
  EXPECT_TRUE(backend.Embed({ids.view(), table.view(), out.view(), drawn.view()}).ok());
  // The tokens themselves as ids.
  TestTensor plain_ids(DType::kI32, {10});
  const int32_t plain[] = {0, 3, kVocab - 1, -1, -1, -1, -1, -1, -1, kVocab - 1};
  for (int64_t t = 0; t < 10; ++t) plain_ids.at<int32_t>(t) = plain[t];
  TestTensor plain_out(DType::kF32, {10, hidden}, 3);
  EXPECT_TRUE(backend.Embed({plain_ids.view(), table.view(), plain_out.view()}).ok());
  for (int64_t i = 0; i < 10 * hidden; ++i) {
    const double got = out.Value(i);
    const double want = plain_out.Value(i);
    EXPECT_TRUE(got == want || (std::isnan(got) && std::isnan(want))) << i;
  }
  return {{out}, {Exact()}};
}

TEST_F(ElementwiseTest, EmbedTakesDrawnTokensFromWhereTheyWereDrawnTo) {
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (int64_t hidden : {1, 8, 33, 2048}) {
      SCOPED_TRACE(hidden);
      CheckAgainstTwin([&](Backend& b) { return RunEmbedOfDrawn(b, dtype, hidden); });
    }
  }
}

struct NormCase {
  int64_t num_tokens;
  int64_t hidden;
  bool delta;
  bool in_place;
  double sigma;
};

Outputs RunRmsNorm(Backend& backend, const NormCase& c, int64_t nan_row) {
  Random random(kOpTestSeed);
  TestTensor x = NormalTensor(random, {c.num_tokens, c.hidden}, 5, c.sigma);
  TestTensor delta = NormalTensor(random, {c.num_tokens, c.hidden}, 1, c.sigma);
  TestTensor weight = NormalTensor(random, {c.hidden});
  if (nan_row >= 0) x.at<float>(nan_row * c.hidden + c.hidden / 2) = kNan;
  TestTensor out(DType::kF32, {c.num_tokens, c.hidden}, 2);
  RmsNormArgs args = {x.view(), {}, weight.view(), 1e-6f, c.in_place ? x.view() : out.view()};
  if (c.delta) args.delta = delta.view();
  EXPECT_TRUE(backend.RmsNorm(args).ok());
  if (c.in_place) return {{x}, {Relative(kRmsNormTolerance)}};
  return {{x, out}, {Exact(), Relative(kRmsNormTolerance)}};
}

TEST_F(ElementwiseTest, RmsNormAgreesWithTwin) {
  for (int64_t hidden : kWidths) {
    for (int64_t num_tokens : kTokens) {
      for (int variant = 0; variant < 4; ++variant) {
        const NormCase c = {num_tokens, hidden, variant % 2 == 1, variant / 2 == 1,
                            variant == 2 ? 1e-4 : 3};
        SCOPED_TRACE(std::to_string(hidden) + " x " + std::to_string(num_tokens));
        CheckAgainstTwin([&](Backend& b) { return RunRmsNorm(b, c, -1); });
      }
    }
  }
}

TEST_F(ElementwiseTest, RmsNormKeepsNanInItsRow) {
  const NormCase c = {4, 65, true, false, 1};
  CheckAgainstTwin([&](Backend& b) { return RunRmsNorm(b, c, 2); });
  const Outputs with = RunRmsNorm(*one_thread_, c, 2);
  const Outputs without = RunRmsNorm(*one_thread_, c, -1);
  for (int64_t i = 0; i < with.tensors[1].size(); ++i) {
    if (i / 65 == 2) {
      EXPECT_TRUE(std::isnan(with.tensors[1].Value(i)));
    } else {
      EXPECT_EQ(with.tensors[1].Value(i), without.tensors[1].Value(i));
    }
  }
}

TEST_F(ElementwiseTest, RmsNormOfARowIsTheSameAloneAndInABatch) {
  const NormCase c = {33, 2047, true, false, 1};
  const Outputs batch = RunRmsNorm(*two_threads_, c, -1);
  Random random(kOpTestSeed);
  TestTensor x = NormalTensor(random, {33, 2047}, 5, 1);
  TestTensor delta = NormalTensor(random, {33, 2047}, 1, 1);
  TestTensor weight = NormalTensor(random, {2047});
  for (int64_t t = 0; t < 33; ++t) {
    TestTensor out(DType::kF32, {1, 2047});
    ASSERT_TRUE(one_thread_
                    ->RmsNorm({x.view().Slice(t, 1), delta.view().Slice(t, 1), weight.view(), 1e-6f,
                               out.view()})
                    .ok());
    for (int64_t i = 0; i < 2047; ++i) {
      ASSERT_EQ(out.Value(i), batch.tensors[1].Value(t * 2047 + i)) << t << " " << i;
    }
  }
}

Outputs RunSiluMul(Backend& backend, int64_t num_tokens, int64_t m, double sigma) {
  Random random(kOpTestSeed);
  TestTensor gate_up = NormalTensor(random, {num_tokens, 2 * m}, 3, sigma);
  const float edges[] = {0, -0.0f, 88, -88, 200, -200, -1e30f, 1e30f, kInf, kNan, -kInf, -87.5f};
  for (int64_t i = 0; i < std::min<int64_t>(12, m) && num_tokens > 1; ++i) {
    gate_up.at<float>(2 * m + i) = edges[i];
  }
  TestTensor out(DType::kF32, {num_tokens, m}, 1);
  EXPECT_TRUE(backend.SiluMul({gate_up.view(), out.view()}).ok());
  return {{out}, {Relative(kSiluMulTolerance, 1e-30)}};
}

TEST_F(ElementwiseTest, SiluMulAgreesWithTwinAndAtTheEdges) {
  for (int64_t m : kWidths) {
    for (int64_t num_tokens : kTokens) {
      for (double sigma : {1.0, 12.0}) {
        SCOPED_TRACE(std::to_string(m) + " x " + std::to_string(num_tokens));
        CheckAgainstTwin([&](Backend& b) { return RunSiluMul(b, num_tokens, m, sigma); });
      }
    }
  }
}

TestTensor RotationTable(int64_t num_positions, int64_t d) {
  TestTensor table(DType::kF32, {num_positions, d});
  for (int64_t p = 0; p < num_positions; ++p) {
    for (int64_t i = 0; i < d / 2; ++i) {
      const double angle =
          static_cast<double>(p) * std::pow(1e4, -2.0 * static_cast<double>(i) / d);
      table.at<float>(p * d + i) = static_cast<float>(std::cos(angle));
      table.at<float>(p * d + d / 2 + i) = static_cast<float>(std::sin(angle));
    }
  }
  return table;
}

Outputs RunRope(Backend& backend, int64_t num_tokens, int64_t heads, int64_t d, bool in_place) {
  Random random(kOpTestSeed);
  TestTensor x = NormalTensor(random, {num_tokens, heads, d}, 7);
  TestTensor table = RotationTable(64, d);
  TestTensor positions(DType::kI32, {num_tokens});
  for (int64_t t = 0; t < num_tokens; ++t)
    positions.at<int32_t>(t) = static_cast<int32_t>((t * 63) % 64);
  TestTensor out(DType::kF32, {num_tokens, heads, d}, 2);
  // A pair's bound is in the length of the pair, which rotation keeps.
  TestTensor before = x;
  const auto bound = [before](int64_t i, double) {
    return Tolerance(kRopeTolerance, kBf16Step) *
           (std::abs(before.Value(i)) + std::abs(before.Value(i ^ 1)));
  };
  TestTensor& target = in_place ? x : out;
  EXPECT_TRUE(backend.Rope({x.view(), positions.view(), table.view(), target.view()}).ok());
  return {{target}, {bound}};
}

TEST_F(ElementwiseTest, RopeAgreesWithTwin) {
  for (int64_t d : {2, 4, 8, 14, 16, 18, 30, 32, 34, 64, 128}) {
    for (int64_t heads : {1, 3, 16}) {
      for (int64_t num_tokens : kTokens) {
        SCOPED_TRACE(std::to_string(d) + " x " + std::to_string(heads));
        CheckAgainstTwin([&](Backend& b) { return RunRope(b, num_tokens, heads, d, false); });
        CheckAgainstTwin([&](Backend& b) { return RunRope(b, num_tokens, heads, d, true); });
      }
    }
  }
}

TEST_F(ElementwiseTest, GatherRowsCopiesRowsInAnyOrderAndLeavesOutMinusOne) {
  for (int64_t n : kWidths) {
    for (int64_t num_rows : kTokens) {
      CheckAgainstTwin([&](Backend& b) -> Outputs {
        Random random(kOpTestSeed);
        TestTensor x = NormalTensor(random, {7, n}, 4);
        x.at<float>(0) = kNan;
        TestTensor row_idx(DType::kI32, {num_rows});
        for (int64_t i = 0; i < num_rows; ++i) {
          row_idx.at<int32_t>(i) = static_cast<int32_t>(random.Below(8)) - 1;
        }
        TestTensor out(DType::kF32, {num_rows, n}, 1);
        EXPECT_TRUE(b.GatherRows({x.view(), row_idx.view(), out.view()}).ok());
        return {{out}, {Exact()}};
      });
    }
  }
}

}  // namespace
}  // namespace jevons
