// Attention of models with 64 heads and more, which a backend may take together.
#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/ops/mla_step.h"

namespace jevons {
namespace {

constexpr DType kF32 = DType::kF32;
constexpr DType kU8 = DType::kU8;
constexpr DType kCacheTypes[] = {kF32, kU8};
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

constexpr MlaShape Shape(int64_t num_heads, int64_t block_size, DType cache = kF32) {
  return {num_heads, 512, 64, block_size, cache};
}

class MlaWideTest : public OpTest {};

TEST_F(MlaWideTest, AgreesWithTwinAroundTheEdgesOfTilesAndSplits) {
  for (const MlaStep& step :
       {MlaStep(Shape(64, 16), {{0, 0}, {1, 1}, {65, 2}, {5, 0}, {512, 1}, {513, 1}, {1025, 1}}),
        MlaStep(Shape(64, 1), {{1090, 1}}), MlaStep(Shape(128, 64), {{530, 1}}),
        MlaStep(Shape(192, 8), {{7, 7}}), MlaStep(Shape(64, 4), {}),
        MlaStep(Shape(64, 16, kU8), {{1, 1}, {65, 2}, {513, 1}}),
        MlaStep(Shape(64, 64, kU8), {{1090, 1}})}) {
    const double bound =
        Tolerance(kMlaAttentionTolerance, kMlaAttentionBf16Tolerance) * step.LargestLatent();
    CheckAgainstTwin([&](Backend& b) -> Outputs {
      return {{step.Run(b)}, {[bound](int64_t, double) { return bound; }}};
    });
  }
}

// Together they fill a small device, and alone most are cut, the last one so that a piece has two
// splits. Splits get longer at position 1,024, in the middle of a sequence's queries.
TEST_F(MlaWideTest, ARowHasTheSameBitsInABatchAndHoweverItsSequenceIsCut) {
  const auto check = [this](const MlaShape& shape, const std::vector<MlaSequence>& sequences) {
    const MlaStep batch(shape, sequences);
    const TestTensor want = batch.Run(*two_threads_);
    int32_t first = 0;
    for (size_t s = 0; s < sequences.size(); ++s) {
      const int32_t count = sequences[s].num_queries;
      const int32_t begin = sequences[s].context - count;
      for (int32_t size = 1; size <= count; ++size) {
        for (int32_t i = 0; i + size <= count; i += size) {
          const TestTensor part = batch.RunPart(*one_thread_, static_cast<int64_t>(s),
                                                begin + i + size, first + i, size);
          for (int32_t t = 0; t < size; ++t) {
            EXPECT_EQ(OutRow(part, t), OutRow(want, first + i + t)) << "sequence " << s;
          }
        }
      }
      first += count;
    }
  };
  check(Shape(64, 16), {{2100, 1}, {700, 1}, {130, 1}, {1025, 2}});
  check(Shape(64, 16, kU8), {{1100, 1}, {700, 1}, {130, 2}});
  check(Shape(128, 64), {{3000, 1}, {3970, 1}});
}

bool IsNan(const std::vector<double>& row) {
  return std::all_of(row.begin(), row.end(), [](double value) { return std::isnan(value); });
}

TEST_F(MlaWideTest, AnEntryThatIsNotFiniteIsSeenFromItsPositionOn) {
  for (DType cache : kCacheTypes) {
    const MlaStep whole(Shape(64, 16, cache), {{70, 8}});
    const TestTensor want = whole.Run(*one_thread_);
    const int32_t first = 62;
    const int32_t position = 65;
    const auto with = [&](int64_t first_column, int64_t num_columns, float value) {
      MlaStep broken = whole;
      std::vector<float> values = broken.Entry(0, position);
      std::fill_n(values.begin() + first_column, num_columns, value);
      broken.SetEntry(0, position, values);
      return broken.Run(*one_thread_);
    };
    // All of it; the rotated key; where a backend makes NaN of that a latent with which some scores
    // are -inf and others +inf (with FP8 entries all are NaN).
    for (const TestTensor& got :
         {with(0, 576, kNan), with(512, 64, kNan), with(300, 1, kTestsCuda ? kInfinity : kNan)}) {
      for (int32_t t = 0; t < 8; ++t) {
        if (first + t < position) {
          EXPECT_EQ(OutRow(got, t), OutRow(want, t)) << t;
        } else {
          EXPECT_TRUE(IsNan(OutRow(got, t))) << t;
        }
      }
    }
  }
}

TEST_F(MlaWideTest, AQueryThatIsNotFiniteStaysInItsHead) {
  const MlaShape shape = Shape(64, 16);
  MlaStep step(shape, {{40, 3}});
  step.q.at<float>((64 + 5) * shape.width() + 7) = kNan;
  const TestTensor got = step.Run(*one_thread_);
  for (int64_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(std::isnan(got.Value(i)), i / 512 == 64 + 5) << i;
  }
}

TEST_F(MlaWideTest, KeysWithAScoreOfMinusInfinityHaveNoWeight) {
  const MlaShape shape = Shape(64, 16);
  // A whole tile, then a whole split, at the start.
  for (int32_t num_keys : {64, 520}) {
    MlaStep step(shape, {{num_keys + 9, 1}});
    for (int64_t h = 0; h < 64; ++h) step.q.at<float>(h * shape.width() + shape.r) = 1;
    for (int64_t u = 0; u < num_keys; ++u) {
      std::vector<float> values = step.Entry(0, u);
      values[shape.r] = -kInfinity;
      step.SetEntry(0, u, values);
    }
    const double bound =
        Tolerance(kMlaAttentionTolerance, kMlaAttentionBf16Tolerance) * step.LargestLatent();
    CheckAgainstTwin([&](Backend& b) -> Outputs {
      return {{step.Run(b)}, {[bound](int64_t, double) { return bound; }}};
    });
    EXPECT_FALSE(std::isnan(step.Run(*one_thread_).Value(0)));
  }
}

}  // namespace
}  // namespace jevons
