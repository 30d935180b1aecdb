#include "model/sampler.h"

#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "base/random.h"
#include "gtest/gtest.h"

namespace jevons {
namespace {

std::vector<float> RandomLogits(int n, uint64_t seed) {
  Random random(seed);
  std::vector<float> out(n);
  for (float& x : out) x = static_cast<float>(3 * random.Normal());
  return out;
}

int32_t Draw(const std::vector<float>& logits, const SamplingParams& params,
             int64_t token_idx = 0) {
  const auto token = SampleToken(logits, static_cast<int32_t>(logits.size()), params, token_idx);
  EXPECT_TRUE(token.ok()) << token.status();
  return token.value_or(-1);
}

SamplingParams Params() { return SamplingParams(); }

TEST(SampleToken, TemperatureZeroIsTheLargestWithTiesToTheLowerId) {
  SamplingParams params = Params();
  params.temperature = 0;
  EXPECT_EQ(Draw({1, 5, 3, 5}, params), 1);
}

TEST(SampleToken, EveryTinyTemperatureIsGreedy) {
  const std::vector<float> logits = RandomLogits(1000, 3);
  SamplingParams params = Params();
  params.temperature = 0;
  const int32_t greedy = Draw(logits, params);
  for (double t : {1e-4, 1e-6, 1e-30, 5e-324}) {
    params.temperature = static_cast<float>(t);
    EXPECT_EQ(Draw(logits, params), greedy) << t;
  }
  params.temperature = 1;
  params.top_p = 1e-9f;
  EXPECT_EQ(Draw(logits, params), greedy);
  params.top_p = 1;
  params.min_p = 1;
  EXPECT_EQ(Draw(logits, params), greedy);
}

TEST(SampleToken, FrequenciesFollowTheSoftmax) {
  const std::vector<float> logits = {0.0f, 1.0f, 2.0f};
  const double total = 1 + std::exp(1.0) + std::exp(2.0);
  for (const bool filtered : {false, true}) {
    SamplingParams params = Params();
    params.seed = 17;
    if (filtered) params.top_k = 3;
    std::map<int32_t, int> counts;
    constexpr int kDraws = 20000;
    for (int i = 0; i < kDraws; ++i) ++counts[Draw(logits, params, i)];
    for (int32_t id = 0; id < 3; ++id) {
      const double want = std::exp(logits[id]) / total;
      EXPECT_NEAR(counts[id] / static_cast<double>(kDraws), want, 0.015) << id;
    }
  }
}

TEST(SampleToken, FiltersKeepExactlyWhatTheyPromise) {
  // Probabilities 0.5, 0.25, 0.15, 0.1.
  const std::vector<float> logits = {std::log(0.15f), std::log(0.5f), std::log(0.1f),
                                     std::log(0.25f)};
  const auto seen = [&](const SamplingParams& base) {
    std::set<int32_t> ids;
    for (int i = 0; i < 2000; ++i) ids.insert(Draw(logits, base, i));
    return ids;
  };
  SamplingParams params = Params();
  EXPECT_EQ(seen(params), (std::set<int32_t>{0, 1, 2, 3}));
  params.top_k = 2;
  EXPECT_EQ(seen(params), (std::set<int32_t>{1, 3}));
  params = Params();
  params.top_p = 0.74f;
  EXPECT_EQ(seen(params), (std::set<int32_t>{1, 3}));
  params.top_p = 0.4f;
  EXPECT_EQ(seen(params), (std::set<int32_t>{1}));
  params = Params();
  params.min_p = 0.29f;
  EXPECT_EQ(seen(params), (std::set<int32_t>{0, 1, 3}));
  params = Params();
  params.top_k = 3;  // leaves 0.9, of which 0.55 is more than the first alone holds
  params.top_p = 0.55f;
  EXPECT_EQ(seen(params), (std::set<int32_t>{1}));
  params.top_p = 0.56f;
  EXPECT_EQ(seen(params), (std::set<int32_t>{1, 3}));
}

TEST(SampleToken, FiltersThatKeepAllDrawFromAVocabularyOfRealSize) {
  const std::vector<float> logits = RandomLogits(102400, 5);
  SamplingParams params = Params();
  params.top_p = 0.95f;
  params.min_p = 0.001f;
  std::set<int32_t> ids;
  for (int i = 0; i < 50; ++i) ids.insert(Draw(logits, params, i));
  EXPECT_GT(ids.size(), 20u);
}

TEST(SampleToken, PaddingRowsAreNeverDrawn) {
  std::vector<float> logits(64, 0.0f);
  for (int i = 48; i < 64; ++i) logits[i] = 50;
  SamplingParams params = Params();
  params.logit_bias = {{60, 100.0f}};
  for (int i = 0; i < 200; ++i) {
    const auto token = SampleToken(logits, 48, params, i);
    ASSERT_TRUE(token.ok());
    EXPECT_LT(*token, 48);
  }
}

TEST(SampleToken, BiasMovesTheChoice) {
  SamplingParams params = Params();
  params.temperature = 0;
  params.logit_bias = {{0, 10.0f}, {1, -100.0f}};
  EXPECT_EQ(Draw({1, 5, 3}, params), 0);
}

TEST(SampleToken, NotANumberIsInternalAndNeverAToken) {
  SamplingParams params = Params();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  for (const std::vector<float>& logits :
       {std::vector<float>{1, nan, 2}, {-inf, -inf}, {1, inf}, {}}) {
    const auto token = SampleToken(logits, static_cast<int32_t>(logits.size()), params, 0);
    EXPECT_EQ(token.status().code(), absl::StatusCode::kInternal);
  }
}

TEST(SampleToken, DependsOnSeedAndTokenIndexAlone) {
  const std::vector<float> logits = RandomLogits(500, 9);
  SamplingParams params = Params();
  params.seed = 4;
  std::vector<int32_t> first, again, other;
  for (int i = 0; i < 30; ++i) first.push_back(Draw(logits, params, i));
  for (int i = 29; i >= 0; --i) again.insert(again.begin(), Draw(logits, params, i));
  params.seed = 5;
  for (int i = 0; i < 30; ++i) other.push_back(Draw(logits, params, i));
  EXPECT_EQ(first, again);
  EXPECT_NE(first, other);
}

TEST(ComputeLogprobs, IsTheLogOfTheSoftmaxWithTheTopInOrder) {
  const std::vector<float> logits = {0.5f, 2.0f, -1.0f, 2.0f};
  double total = 0;
  for (float l : logits) total += std::exp(l);
  const Logprobs out = ComputeLogprobs(logits, 2, 3);
  EXPECT_EQ(out.chosen.id, 2);
  EXPECT_NEAR(out.chosen.logprob, -1 - std::log(total), 1e-6);
  ASSERT_EQ(out.top.size(), 3u);
  EXPECT_EQ(out.top[0].id, 1);
  EXPECT_EQ(out.top[1].id, 3);
  EXPECT_EQ(out.top[2].id, 0);
  EXPECT_NEAR(out.top[2].logprob, 0.5 - std::log(total), 1e-6);
  EXPECT_EQ(ComputeLogprobs(logits, 0, 99).top.size(), 4u);
}

}  // namespace
}  // namespace jevons
