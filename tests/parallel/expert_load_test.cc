#include "parallel/expert_load.h"

#include <cmath>
#include <vector>

#include "base/random.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace jevons {
namespace {

using ::testing::ElementsAre;

TEST(ExpertLoadTest, CountsChoicesAndSkipsNone) {
  std::vector<int64_t> counts = {5, 0, 0, 0};
  CountExperts(std::vector<int32_t>{0, 2, -1, 2, 3, -1}, counts);
  EXPECT_THAT(counts, ElementsAre(6, 0, 2, 1));
}

TEST(ExpertLoadTest, HalvesAfterTheHalfLifeHoweverTheTokensCome) {
  for (const int64_t step : {1, 3, 7, 250, 1000}) {
    auto load = ExpertLoad::Create(1, 2, 1000);
    ASSERT_TRUE(load.ok());
    ASSERT_TRUE(load->Add(std::vector<int64_t>{80, 0}, 1).ok());
    const std::vector<int64_t> none = {0, 0};
    int64_t left = 3000;
    for (; left > step; left -= step) ASSERT_TRUE(load->Add(none, step).ok());
    ASSERT_TRUE(load->Add(none, left).ok());
    EXPECT_NEAR(load->of_layer(0)[0], 10, 1e-10) << step;
    EXPECT_EQ(load->of_layer(0)[1], 0);
  }
}

TEST(ExpertLoadTest, FollowsTheFormula) {
  const int64_t half_life = 777;
  auto load = ExpertLoad::Create(2, 3, half_life);
  ASSERT_TRUE(load.ok());
  Random random(11);
  std::vector<double> want(6, 0);
  double want_tokens = 0;
  for (int step = 0; step < 200; ++step) {
    std::vector<int64_t> counts;
    const int64_t tokens = random.Below(2000);
    const double decay = std::exp2(-static_cast<double>(tokens) / half_life);
    for (double& w : want) {
      counts.push_back(random.Below(tokens + 1));
      w = w * decay + static_cast<double>(counts.back());
    }
    want_tokens = want_tokens * decay + static_cast<double>(tokens);
    ASSERT_TRUE(load->Add(counts, tokens).ok());
  }
  for (int i = 0; i < 6; ++i) {
    EXPECT_NEAR(load->of_layer(i / 3)[i % 3], want[i], 1e-12 * want[i]);
  }
  EXPECT_NEAR(load->tokens(), want_tokens, 1e-12 * want_tokens);
}

TEST(ExpertLoadTest, MergedCountsGiveEveryRankTheSameBits) {
  Random random(5);
  auto a = ExpertLoad::Create(3, 8, 4096);
  auto b = ExpertLoad::Create(3, 8, 4096);
  ASSERT_TRUE(a.ok() && b.ok());
  for (int step = 0; step < 50; ++step) {
    std::vector<std::vector<int64_t>> of_rank(4, std::vector<int64_t>(24));
    std::vector<int64_t> forwards(24, 0), backwards(24, 0);
    for (auto& counts : of_rank) {
      for (int64_t& count : counts) count = random.Below(1000);
    }
    for (int i = 0; i < 24; ++i) {
      for (int r = 0; r < 4; ++r) forwards[i] += of_rank[r][i];
      for (int r = 3; r >= 0; --r) backwards[i] += of_rank[r][i];
    }
    ASSERT_TRUE(a->Add(forwards, 512).ok());
    ASSERT_TRUE(b->Add(backwards, 512).ok());
  }
  for (int l = 0; l < 3; ++l) {
    for (int e = 0; e < 8; ++e) EXPECT_EQ(a->of_layer(l)[e], b->of_layer(l)[e]);
  }
}

TEST(ExpertLoadTest, StaysFiniteForTheLargestCounts) {
  auto load = ExpertLoad::Create(1, 2, INT64_MAX);
  ASSERT_TRUE(load.ok());
  for (int i = 0; i < 1000; ++i) {
    ASSERT_TRUE(load->Add(std::vector<int64_t>{INT64_MAX, 0}, INT64_MAX).ok());
  }
  EXPECT_NEAR(load->of_layer(0)[0], 2 * 0x1p63, 1e6);
  auto brief = ExpertLoad::Create(1, 1, 1);
  ASSERT_TRUE(brief.ok());
  ASSERT_TRUE(brief->Add(std::vector<int64_t>{9}, 1).ok());
  ASSERT_TRUE(brief->Add(std::vector<int64_t>{0}, INT64_MAX).ok());
  EXPECT_EQ(brief->of_layer(0)[0], 0);
}

TEST(ExpertLoadTest, WhatIsRefusedChangesNothing) {
  auto load = ExpertLoad::Create(2, 2, 10);
  ASSERT_TRUE(load.ok());
  ASSERT_TRUE(load->Add(std::vector<int64_t>{1, 2, 3, 4}, 5).ok());
  const auto code = absl::StatusCode::kInvalidArgument;
  ExpectError(load->Add(std::vector<int64_t>{1, 2, 3}, 5), code, {"= 4", "got 3"});
  ExpectError(load->Add(std::vector<int64_t>{1, 2, -3, 4}, 5), code,
              {"got -3", "layer 1", "expert 0"});
  ExpectError(load->Add(std::vector<int64_t>{1, 2, 3, 4}, -1), code, {"num_tokens", "got -1"});
  EXPECT_THAT(load->of_layer(1), ElementsAre(3, 4));
  EXPECT_EQ(load->tokens(), 5);
  ExpectError(ExpertLoad::Create(0, 2, 10), code, {"got 0, 2 and 10"});
  ExpectError(ExpertLoad::Create(1, 2, 0), code, {"got 1, 2 and 0"});
}

}  // namespace
}  // namespace jevons
