#include <algorithm>
#include <limits>

#include "cpu/reference_mla.h"
#include "tests/ops/mla_step.h"

namespace jevons {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

constexpr DType kF32 = DType::kF32;
constexpr DType kU8 = DType::kU8;
// The backend's own type, which the twin has as f32, and FP8 entries.
constexpr DType kCacheTypes[] = {kF32, kU8};

class MlaTest : public OpTest {};

// Against the twin, and the cache untouched.
void CheckAttention(const MlaShape& shape, const std::vector<MlaSequence>& sequences,
                    const std::function<void(const std::function<Outputs(Backend&)>&)>& check) {
  SCOPED_TRACE(::testing::Message()
               << "heads " << shape.num_heads << " r " << shape.r << " p " << shape.p << " block "
               << shape.block_size << " cache " << DTypeName(shape.cache) << " sequences "
               << sequences.size() << " first context "
               << (sequences.empty() ? 0 : sequences[0].context));
  const MlaStep step(shape, sequences);
  const double bound =
      Tolerance(kMlaAttentionTolerance, kMlaAttentionBf16Tolerance) * step.LargestLatent();
  const std::vector<uint8_t> before = step.cache.ElementBytes();
  check([&](Backend& b) -> Outputs {
    return {{step.Run(b)}, {[bound](int64_t, double) { return bound; }}};
  });
  EXPECT_TRUE(before == step.cache.ElementBytes());
}

const MlaShape kSmallShapes[] = {{1, 1, 2, 4, kF32},    {2, 7, 8, 4, kF32},    {3, 16, 4, 16, kF32},
                                 {5, 33, 2, 8, kF32},   {16, 64, 8, 4, kF32},  {17, 24, 8, 4, kF32},
                                 {33, 15, 16, 8, kF32}, {48, 32, 8, 16, kF32}, {2, 7, 8, 4, kU8},
                                 {16, 64, 8, 4, kU8},   {17, 33, 2, 8, kU8}};

TEST_F(MlaTest, AttentionAgreesWithTwinAroundBlockAndChunkBounds) {
  const auto check = [this](const std::function<Outputs(Backend&)>& run) { CheckAgainstTwin(run); };
  for (const MlaShape& shape : kSmallShapes) {
    const int32_t block = static_cast<int32_t>(shape.block_size);
    const int32_t chunk = block * kMlaChunkBlocks;
    for (int32_t context :
         {1, 2, block - 1, block, block + 1, chunk - 1, chunk, chunk + 1, 3 * chunk + 2}) {
      CheckAttention(shape, {{context, 1}}, check);
      CheckAttention(shape, {{context, context}}, check);
      CheckAttention(shape, {{context, (context + 1) / 2}}, check);
    }
    CheckAttention(shape, {}, check);
    CheckAttention(shape, {{5, 0}}, check);
    CheckAttention(shape, {{0, 0}, {9, 9}, {chunk + 3, 1}, {4, 0}, {7, 2}, {1, 1}}, check);
  }
}

TEST_F(MlaTest, AttentionAgreesWithTwinForModelShapes) {
  const auto check = [this](const std::function<Outputs(Backend&)>& run) { CheckAgainstTwin(run); };
  for (DType cache : kCacheTypes) {
    CheckAttention({16, 512, 64, 64, cache}, {{700, 1}}, check);
    CheckAttention({16, 512, 64, 64, cache}, {{130, 33}, {65, 1}, {300, 2}}, check);
    CheckAttention({128, 512, 64, 64, cache}, {{70, 2}}, check);
    // So many chunks that their partial results do not all exist at once.
    CheckAttention({2, 512, 64, 1, cache}, {{2500, 1}}, check);
    CheckAttention({64, 512, 64, 1, cache}, {{600, 1}, {40, 2}}, check);
  }
  // Latents that do not fill their columns or their last group.
  CheckAttention({16, 200, 24, 16, kU8}, {{90, 3}}, check);
  CheckAttention({5, 130, 6, 16, kU8}, {{40, 2}, {130, 1}}, check);
}

TEST_F(MlaTest, AttentionWithManyTilesAgreesWithTwin) {
  const auto check = [this](const std::function<Outputs(Backend&)>& run) { CheckAgainstTwin(run); };
  for (DType cache : kCacheTypes) {
    CheckAttention({2, 24, 8, 16, cache}, {{200, 150}, {90, 90}, {33, 1}}, check);
  }
}

TEST_F(MlaTest, AttentionIsBitwiseEqualHoweverThePromptIsChunked) {
  for (const MlaShape& shape :
       {MlaShape{16, 64, 8, 16}, MlaShape{3, 40, 8, 8}, MlaShape{20, 33, 8, 4},
        MlaShape{16, 64, 8, 16, kU8}, MlaShape{20, 33, 8, 4, kU8}}) {
    const int32_t length = 150;
    const MlaStep whole(shape, {{length, length}});
    const TestTensor want = whole.Run(*two_threads_);
    for (int32_t size : {1, 2, 7, 64, 100}) {
      for (int32_t begin = 0; begin < length; begin += size) {
        const int32_t count = std::min(size, length - begin);
        Backend& backend = begin % 2 ? *one_thread_ : *two_threads_;
        const TestTensor out = whole.RunPart(backend, 0, begin + count, begin, count);
        for (int32_t i = 0; i < count; ++i) {
          ASSERT_EQ(OutRow(out, i), OutRow(want, begin + i)) << "chunk " << size << " at " << begin;
        }
      }
    }
  }
}

TEST_F(MlaTest, AttentionOfASequenceIsTheSameAloneAndInABatch) {
  const std::vector<MlaSequence> sequences = {{200, 1}, {64, 64}, {130, 7}, {1, 1}, {97, 1}};
  for (DType cache : kCacheTypes) {
    SCOPED_TRACE(DTypeName(cache));
    const MlaShape shape = {16, 64, 8, 16, cache};
    const MlaStep batch(shape, sequences);
    const TestTensor want = batch.Run(*two_threads_);
    int32_t first = 0;
    for (size_t s = 0; s < sequences.size(); ++s) {
      const int32_t count = sequences[s].num_queries;
      const TestTensor out =
          batch.RunPart(*one_thread_, static_cast<int64_t>(s), sequences[s].context, first, count);
      for (int32_t i = 0; i < count; ++i) ASSERT_EQ(OutRow(out, i), OutRow(want, first + i));
      first += count;
    }
  }
}

TEST_F(MlaTest, AttentionOverFp8EntriesHasTheBitsOfTheValuesThatTheyReadAs) {
  for (const MlaStep& step : {MlaStep({16, 64, 8, 16, kU8}, {{200, 1}, {64, 64}, {130, 7}}),
                              MlaStep({16, 512, 64, 64, kU8}, {{700, 1}, {70, 3}}),
                              MlaStep({64, 512, 64, 64, kU8}, {{1100, 1}, {70, 3}}),
                              MlaStep({3, 512, 64, 16, kU8}, {{130, 40}})}) {
    ExpectSameBits(step.Run(*one_thread_), step.Decoded().Run(*one_thread_));
  }
}

TEST_F(MlaTest, AttentionOfEarlierTokensDoesNotSeeANanInLaterOnes) {
  for (DType cache : kCacheTypes) {
    SCOPED_TRACE(DTypeName(cache));
    const MlaShape shape = {16, 32, 8, 8, cache};
    const TestTensor want = MlaStep(shape, {{20, 20}}).Run(*one_thread_);
    // The whole entry, or the rotated key alone: then only the score is NaN.
    for (int64_t first_column : {int64_t{0}, shape.r}) {
      MlaStep broken(shape, {{20, 20}});
      std::vector<float> values = broken.Entry(0, 13);
      std::fill(values.begin() + first_column, values.end(), kNan);
      broken.SetEntry(0, 13, values);
      const TestTensor got = broken.Run(*one_thread_);
      for (int64_t t = 0; t < 20; ++t) {
        const std::vector<double> row = OutRow(got, t);
        if (t < 13) {
          EXPECT_EQ(row, OutRow(want, t)) << t;
        } else {
          EXPECT_TRUE(std::all_of(row.begin(), row.end(), [](double v) { return std::isnan(v); }))
              << t;
        }
      }
    }
  }
}

TEST_F(MlaTest, AttentionKeepsNanOfAQueryInItsHead) {
  const MlaShape shape = {18, 32, 8, 8};
  MlaStep step(shape, {{40, 3}});
  step.q.at<float>((1 * 18 + 5) * 40 + 7) = kNan;
  const TestTensor got = step.Run(*one_thread_);
  for (int64_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(std::isnan(got.Value(i)), i / 32 == 18 + 5) << i;
  }
}

TEST_F(MlaTest, AttentionWithLargeScoresTakesTheLargest) {
  const MlaShape shape = {2, 8, 2, 4};
  MlaStep step(shape, {{40, 1}});
  for (int64_t i = 0; i < step.q.size(); ++i) step.q.at<float>(i) *= 256;
  const double bound =
      Tolerance(kMlaAttentionTolerance, kMlaAttentionBf16Tolerance) * step.LargestLatent();
  CheckAgainstTwin([&](Backend& b) -> Outputs {
    return {{step.Run(b)}, {[bound](int64_t, double) { return 20 * bound; }}};
  });
}

TEST_F(MlaTest, AttentionGivesNoWeightToKeysWithAScoreOfMinusInfinity) {
  const MlaShape shape = {3, 8, 2, 4};
  const int32_t chunk = static_cast<int32_t>(shape.block_size) * kMlaChunkBlocks;
  // A whole block, then a whole chunk, at the start.
  for (int32_t num_keys : {4, chunk}) {
    MlaStep step(shape, {{2 * chunk + 1, 1}});
    for (int64_t h = 0; h < 3; ++h) step.q.at<float>(h * shape.width() + shape.r) = 1;
    for (int64_t u = 0; u < num_keys; ++u) {
      std::vector<float> values = step.Entry(0, u);
      values[shape.r] = -std::numeric_limits<float>::infinity();
      step.SetEntry(0, u, values);
    }
    const double bound =
        Tolerance(kMlaAttentionTolerance, kMlaAttentionBf16Tolerance) * step.LargestLatent();
    CheckAgainstTwin([&](Backend& b) -> Outputs {
      return {{step.Run(b)}, {[bound](int64_t, double) { return bound; }}};
    });
    EXPECT_FALSE(std::isnan(step.Run(*two_threads_).Value(0)));
  }
}

TEST_F(MlaTest, NaiveTwinAgreesWithAbsorbedTwin) {
  const int64_t nope = 6;
  const int64_t v = 5;
  const MlaShape shape = {3, 7, 8, 4};
  const MlaStep step(shape, {{11, 4}, {6, 6}});
  Random random(kOpTestSeed);
  TestTensor kv_b = NormalTensor(random, {shape.num_heads * (nope + v), shape.r});
  TestTensor q = NormalTensor(random, {10, shape.num_heads, nope + shape.p});

  TestTensor naive(kF32, {10, shape.num_heads, v});
  reference::MlaNaiveAttention({q.view(), kv_b.view(), step.cache.view(), step.block_tables.view(),
                                step.cu_seqlens_q.view(), step.context_lens.view(), 0.3f,
                                naive.view()});

  MlaStep absorbed = step;
  absorbed.q = TestTensor(kF32, {10, shape.num_heads, shape.width()});
  for (int64_t th = 0; th < 10 * shape.num_heads; ++th) {
    const int64_t h = th % shape.num_heads;
    for (int64_t c = 0; c < shape.r; ++c) {
      double sum = 0;
      for (int64_t i = 0; i < nope; ++i) {
        sum += kv_b.Value((h * (nope + v) + i) * shape.r + c) * q.Value(th * (nope + shape.p) + i);
      }
      absorbed.q.at<float>(th * shape.width() + c) = static_cast<float>(sum);
    }
    for (int64_t c = 0; c < shape.p; ++c) {
      absorbed.q.at<float>(th * shape.width() + shape.r + c) =
          q.at<float>(th * (nope + shape.p) + nope + c);
    }
  }
  // Its queries are sums and no bf16 numbers.
  const std::vector<Backend*> absorbing =
      kTestsCuda ? std::vector<Backend*>{reference_.get()}
                 : std::vector<Backend*>{reference_.get(), one_thread_.get()};
  for (Backend* backend : absorbing) {
    TestTensor latent = absorbed.MakeOut();
    MlaAttentionArgs args = absorbed.Args(latent);
    args.scale = 0.3f;
    ASSERT_TRUE(backend->MlaAttention(args).ok());
    for (int64_t i = 0; i < naive.size(); ++i) {
      const int64_t th = i / v;
      const int64_t row = th % shape.num_heads * (nope + v) + nope + i % v;
      double sum = 0;
      for (int64_t c = 0; c < shape.r; ++c) {
        sum += kv_b.Value(row * shape.r + c) * latent.Value(th * shape.r + c);
      }
      EXPECT_NEAR(sum, naive.Value(i), 1e-5) << i;
    }
  }
}

}  // namespace
}  // namespace jevons
