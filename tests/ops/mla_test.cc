#include "ops/mla.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "cpu/reference_mla.h"
#include "tests/support/op_test.h"

namespace jevons {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct MlaShape {
  int64_t num_heads;
  int64_t r;
  int64_t p;
  int64_t block_size;
  int64_t width() const { return r + p; }
};

struct Sequence {
  int32_t context;
  int32_t num_queries;
};

// A paged cache in which only what the sequences hold is written, in blocks of random order, and
// queries for it.
class MlaStep {
 public:
  MlaStep(const MlaShape& shape, std::vector<Sequence> sequences, uint64_t seed = kOpTestSeed)
      : shape_(shape) {
    Random random(seed);
    int64_t max_blocks = 1;
    int64_t total_blocks = 2;
    std::vector<int32_t> cu = {0};
    std::vector<int32_t> contexts;
    for (const Sequence& s : sequences) {
      const int64_t blocks = (s.context + shape.block_size - 1) / shape.block_size;
      max_blocks = std::max(max_blocks, blocks);
      total_blocks += blocks;
      cu.push_back(cu.back() + s.num_queries);
      contexts.push_back(s.context);
    }
    std::vector<int32_t> order(total_blocks);
    std::iota(order.begin(), order.end(), 0);
    for (size_t i = order.size() - 1; i > 0; --i) std::swap(order[i], order[random.Below(i + 1)]);

    cache = TestTensor(DType::kF32, {total_blocks, shape.block_size, shape.width()});
    block_tables =
        TestTensor(DType::kI32, {static_cast<int64_t>(sequences.size()), max_blocks + 1});
    cu_seqlens_q = IntTensor(cu);
    context_lens = IntTensor(contexts);
    for (size_t s = 0; s < sequences.size(); ++s) {
      for (int32_t u = 0; u < sequences[s].context; ++u) {
        int32_t& block = Block(s, u);
        if (u % shape.block_size == 0) {
          block = order.back();
          order.pop_back();
        }
        for (int64_t c = 0; c < shape.width(); ++c) {
          CacheRow(s, u)[c] = TestValue(random.Normal());
        }
      }
    }
    q = NormalTensor(random, {cu.back(), shape.num_heads, shape.width()}, 3);
  }

  float* CacheRow(int64_t seq, int64_t position) {
    return cache.view().row<float>(Block(seq, position)) +
           position % shape_.block_size * shape_.width();
  }

  MlaAttentionArgs Args(const TestTensor& out) const {
    // Scores with a spread of about 3: some keys matter, none alone.
    const float scale = 3 / std::sqrt(static_cast<float>(shape_.width()));
    return {q.view(), cache.view(), block_tables.view(), cu_seqlens_q.view(), context_lens.view(),
            scale,    out.view()};
  }

  TestTensor MakeOut() const {
    return TestTensor(DType::kF32, {q.view().dim(0), shape_.num_heads, shape_.r}, 2);
  }

  TestTensor Run(Backend& backend) const {
    TestTensor out = MakeOut();
    const absl::Status status = backend.MlaAttention(Args(out));
    EXPECT_TRUE(status.ok()) << status;
    return out;
  }

  TestTensor q;
  TestTensor cache;
  TestTensor block_tables;
  TestTensor cu_seqlens_q;
  TestTensor context_lens;

 private:
  int32_t& Block(int64_t seq, int64_t position) {
    return block_tables.view().row<int32_t>(seq)[position / shape_.block_size];
  }
  MlaShape shape_;
};

class MlaTest : public OpTest {};

double LargestLatent(const MlaStep& step, const MlaShape& shape) {
  double largest = 0;
  for (int64_t i = 0; i < step.cache.size(); ++i) {
    if (i % shape.width() >= shape.r || std::isnan(step.cache.Value(i))) continue;
    largest = std::max(largest, std::abs(step.cache.Value(i)));
  }
  return largest;
}

// Against the twin, and the cache untouched.
void CheckAttention(const MlaShape& shape, const std::vector<Sequence>& sequences,
                    const std::function<void(const std::function<Outputs(Backend&)>&)>& check) {
  SCOPED_TRACE(::testing::Message()
               << "heads " << shape.num_heads << " r " << shape.r << " p " << shape.p << " block "
               << shape.block_size << " sequences " << sequences.size() << " first context "
               << (sequences.empty() ? 0 : sequences[0].context));
  const MlaStep step(shape, sequences);
  const double bound =
      Tolerance(kMlaAttentionTolerance, kMlaAttentionBf16Tolerance) * LargestLatent(step, shape);
  const std::vector<uint8_t> before = step.cache.ElementBytes();
  check([&](Backend& b) -> Outputs {
    return {{step.Run(b)}, {[bound](int64_t, double) { return bound; }}};
  });
  EXPECT_TRUE(before == step.cache.ElementBytes());
}

const MlaShape kSmallShapes[] = {{1, 1, 2, 4},   {2, 7, 8, 4},   {3, 16, 4, 16},  {5, 33, 2, 8},
                                 {16, 64, 8, 4}, {17, 24, 8, 4}, {33, 15, 16, 8}, {48, 32, 8, 16}};

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
  CheckAttention({16, 512, 64, 64}, {{700, 1}}, check);
  CheckAttention({16, 512, 64, 64}, {{130, 33}, {65, 1}, {300, 2}}, check);
  CheckAttention({128, 512, 64, 64}, {{70, 2}}, check);
  // So many chunks that their partial results do not all exist at once.
  CheckAttention({2, 512, 64, 1}, {{2500, 1}}, check);
  CheckAttention({64, 512, 64, 1}, {{600, 1}, {40, 2}}, check);
}

TEST_F(MlaTest, AttentionWithManyTilesAgreesWithTwin) {
  const auto check = [this](const std::function<Outputs(Backend&)>& run) { CheckAgainstTwin(run); };
  CheckAttention({2, 24, 8, 16}, {{200, 150}, {90, 90}, {33, 1}}, check);
}

// Row `token` of the outputs of all heads.
std::vector<double> OutRow(const TestTensor& out, int64_t token) {
  const int64_t n = out.view().dim(1) * out.view().dim(2);
  std::vector<double> row;
  for (int64_t i = 0; i < n; ++i) row.push_back(out.Value(token * n + i));
  return row;
}

TEST_F(MlaTest, AttentionIsBitwiseEqualHoweverThePromptIsChunked) {
  for (const MlaShape& shape :
       {MlaShape{16, 64, 8, 16}, MlaShape{3, 40, 8, 8}, MlaShape{20, 33, 8, 4}}) {
    const int32_t length = 150;
    const MlaStep whole(shape, {{length, length}});
    const TestTensor want = whole.Run(*two_threads_);
    for (int32_t size : {1, 2, 7, 64, 100}) {
      for (int32_t begin = 0; begin < length; begin += size) {
        const int32_t count = std::min(size, length - begin);
        // The cache and the queries of the whole prompt, of which this step sees a part.
        MlaStep step = whole;
        step.cu_seqlens_q = IntTensor({0, count});
        step.context_lens = IntTensor({begin + count});
        TestTensor out(DType::kF32, {count, shape.num_heads, shape.r});
        MlaAttentionArgs args = step.Args(out);
        args.q = step.q.view().Slice(begin, count);
        Backend& backend = begin % 2 ? *one_thread_ : *two_threads_;
        ASSERT_TRUE(backend.MlaAttention(args).ok());
        for (int32_t i = 0; i < count; ++i) {
          ASSERT_EQ(OutRow(out, i), OutRow(want, begin + i)) << "chunk " << size << " at " << begin;
        }
      }
    }
  }
}

TEST_F(MlaTest, AttentionOfASequenceIsTheSameAloneAndInABatch) {
  const MlaShape shape = {16, 64, 8, 16};
  const std::vector<Sequence> sequences = {{200, 1}, {64, 64}, {130, 7}, {1, 1}, {97, 1}};
  const MlaStep batch(shape, sequences);
  const TestTensor want = batch.Run(*two_threads_);
  int32_t first = 0;
  for (size_t s = 0; s < sequences.size(); ++s) {
    const int32_t count = sequences[s].num_queries;
    MlaStep alone = batch;
    alone.cu_seqlens_q = IntTensor({0, count});
    alone.context_lens = IntTensor({sequences[s].context});
    TestTensor out(DType::kF32, {count, shape.num_heads, shape.r});
    MlaAttentionArgs args = alone.Args(out);
    args.q = alone.q.view().Slice(first, count);
    args.block_tables = alone.block_tables.view().Slice(static_cast<int64_t>(s), 1);
    ASSERT_TRUE(one_thread_->MlaAttention(args).ok());
    for (int32_t i = 0; i < count; ++i) ASSERT_EQ(OutRow(out, i), OutRow(want, first + i));
    first += count;
  }
}

TEST_F(MlaTest, AttentionOfEarlierTokensDoesNotSeeANanInLaterOnes) {
  const MlaShape shape = {16, 32, 8, 8};
  const TestTensor want = MlaStep(shape, {{20, 20}}).Run(*one_thread_);
  // The whole entry, or the rotated key alone: then only the score is NaN.
  for (int64_t first_column : {int64_t{0}, shape.r}) {
    MlaStep broken(shape, {{20, 20}});
    for (int64_t c = first_column; c < shape.width(); ++c) broken.CacheRow(0, 13)[c] = kNan;
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
      Tolerance(kMlaAttentionTolerance, kMlaAttentionBf16Tolerance) * LargestLatent(step, shape);
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
      step.CacheRow(0, u)[shape.r] = -std::numeric_limits<float>::infinity();
    }
    const double bound =
        Tolerance(kMlaAttentionTolerance, kMlaAttentionBf16Tolerance) * LargestLatent(step, shape);
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

  TestTensor naive(DType::kF32, {10, shape.num_heads, v});
  reference::MlaNaiveAttention({q.view(), kv_b.view(), step.cache.view(), step.block_tables.view(),
                                step.cu_seqlens_q.view(), step.context_lens.view(), 0.3f,
                                naive.view()});

  MlaStep absorbed = step;
  absorbed.q = TestTensor(DType::kF32, {10, shape.num_heads, shape.width()});
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

struct StoreCase {
  int64_t num_tokens;
  int64_t r;
  int64_t p;
  int64_t block_size;
};

Outputs RunStoreKv(Backend& backend, const StoreCase& c) {
  Random random(kOpTestSeed);
  TestTensor kv = NormalTensor(random, {c.num_tokens, c.r + c.p}, 3);
  TestTensor weight = NormalTensor(random, {c.r});
  TestTensor table = NormalTensor(random, {50, c.p});
  TestTensor positions(DType::kI32, {c.num_tokens});
  TestTensor slots(DType::kI64, {c.num_tokens});
  TestTensor cache(DType::kF32, {c.num_tokens + 2, c.block_size, c.r + c.p});
  for (int64_t t = 0; t < c.num_tokens; ++t) {
    positions.at<int32_t>(t) = static_cast<int32_t>(random.Below(50));
    // One slot in each block but the first and last, so that the rest must stay NaN.
    slots.at<int64_t>(t) = (c.num_tokens - t) * c.block_size + random.Below(c.block_size);
  }
  EXPECT_TRUE(backend
                  .MlaStoreKv({kv.view(), weight.view(), 1e-6f, positions.view(), table.view(),
                               slots.view(), cache.view()})
                  .ok());
  const auto bound = [c](int64_t i, double want) {
    const bool latent = i % (c.r + c.p) < c.r;
    const double relative =
        latent ? Tolerance(kRmsNormTolerance, kBf16Step) : Tolerance(0, kBf16Step);
    return relative * std::abs(want) + (latent ? 0 : 4e-6);
  };
  return {{cache}, {bound}};
}

TEST_F(MlaTest, StoreKvAgreesWithTwinAndTouchesOnlyItsSlots) {
  for (int64_t num_tokens : {0, 1, 5, 40}) {
    for (const StoreCase& c : {StoreCase{num_tokens, 7, 8, 4}, StoreCase{num_tokens, 512, 64, 64},
                               StoreCase{num_tokens, 33, 2, 1}, StoreCase{num_tokens, 16, 34, 3}}) {
      SCOPED_TRACE(std::to_string(num_tokens) + " tokens, r " + std::to_string(c.r));
      CheckAgainstTwin([&](Backend& b) { return RunStoreKv(b, c); });
    }
  }
}

}  // namespace
}  // namespace jevons
