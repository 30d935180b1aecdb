#include "parallel/move_plan.h"

#include <cmath>
#include <limits>
#include <vector>

#include "bench/skewed_load.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "parallel/placement.h"
#include "tests/support/status_matchers.h"

namespace jevons {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

ExpertMap Map(int32_t num_experts, int32_t num_ranks, std::vector<int32_t> slot_expert) {
  const auto map = ExpertMap::Create(num_experts, num_ranks, slot_expert);
  EXPECT_TRUE(map.ok()) << map.status();
  return map.ok() ? *map : ExpertMap();
}

// A copied expert costs 2 s; a layer's experts take 0.1 s of each second for the next 100 s.
constexpr MoveCosts kCosts = {.bytes_per_expert = 1000,
                              .seconds_per_byte = 0.002,
                              .expert_seconds_per_second = 0.1,
                              .horizon_seconds = 100};

TEST(MovePlanTest, ADiffNamesSlotExpertAndWhoHoldsIt) {
  const ExpertMap present = Map(4, 3, {0, 1, 2, 0, 3, -1});
  const ExpertMap wanted = Map(4, 3, {1, 3, 2, -1, 3, 0});
  const auto copies = DiffMaps(7, present, wanted);
  ASSERT_TRUE(copies.ok()) << copies.status();
  ASSERT_EQ(copies->size(), 3u);
  // Already on the rank, in another slot.
  EXPECT_EQ((*copies)[0].layer, 7);
  EXPECT_EQ((*copies)[0].slot, 0);
  EXPECT_EQ((*copies)[0].expert, 1);
  EXPECT_THAT((*copies)[0].source_ranks, ElementsAre(0));
  EXPECT_EQ((*copies)[1].slot, 1);
  EXPECT_EQ((*copies)[1].expert, 3);
  EXPECT_THAT((*copies)[1].source_ranks, ElementsAre(2));
  EXPECT_EQ((*copies)[2].slot, 5);
  EXPECT_EQ((*copies)[2].expert, 0);
  EXPECT_THAT((*copies)[2].source_ranks, ElementsAre(0, 1));
}

TEST(MovePlanTest, SourcesTakeTurns) {
  const ExpertMap present = Map(4, 4, {0, 1, 0, 2, 1, 3, 2, 3});
  const ExpertMap wanted = Map(4, 4, {0, 1, 0, 2, 0, 3, 0, 3});
  const auto copies = DiffMaps(0, present, wanted);
  ASSERT_TRUE(copies.ok());
  ASSERT_EQ(copies->size(), 2u);
  EXPECT_THAT((*copies)[0].source_ranks, ElementsAre(0, 1));
  EXPECT_THAT((*copies)[1].source_ranks, ElementsAre(1, 0));
}

// Whatever the copies read is there before any of them is written, so applied to the present slots
// they give the wanted ones.
TEST(MovePlanTest, CopiesMakeTheWantedMap) {
  const PlacementShape shape{.num_nodes = 2, .ranks_per_node = 4, .slots_per_rank = 9};
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const auto present = PlanPlacement({.load = PowerLawLoad(64, 1.0, seed), .shape = shape});
    const auto wanted = PlanPlacement(
        {.load = PowerLawLoad(64, 1.0, seed + 100), .shape = shape, .present = &*present});
    ASSERT_TRUE(present.ok() && wanted.ok());
    const auto copies = DiffMaps(0, *present, *wanted);
    ASSERT_TRUE(copies.ok());
    std::vector<int32_t> slot_expert;
    for (int32_t s = 0; s < 72; ++s) slot_expert.push_back(present->expert_of(s));
    for (const SlotCopy& copy : *copies) {
      for (const int32_t rank : copy.source_ranks) {
        EXPECT_THAT(present->experts_of_rank(rank), ::testing::Contains(copy.expert));
      }
      slot_expert[copy.slot] = copy.expert;
    }
    EXPECT_EQ(Map(64, 8, slot_expert), *wanted);
  }
}

TEST(MovePlanTest, AMoveThatCostsMoreThanItGainsIsRefusedWithTheNumbers) {
  const ExpertMap present = Map(4, 2, {0, 1, 2, 3});
  const ExpertMap wanted = Map(4, 2, {0, 2, 1, 3});
  const std::vector<ExpertMap> from(4, present);
  const std::vector<ExpertMap> to = {wanted, wanted, wanted, present};
  // Ranks have 7 and 5, 10 and 2, 18 and 2; the wanted map makes them equal. The last layer stays.
  const std::vector<double> load = {4, 3, 2, 3, 6, 4, 0, 2, 9, 9, 1, 1, 5, 5, 0, 0};
  const auto plan = PlanMoves(from, to, load, kCosts);
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->refused.size(), 1u);
  const LayerMove& refused = plan->refused[0];
  EXPECT_EQ(refused.layer, 0);
  EXPECT_DOUBLE_EQ(refused.present_imbalance, 7.0 / 6);
  EXPECT_DOUBLE_EQ(refused.wanted_imbalance, 1);
  EXPECT_NEAR(refused.gain_seconds, 10.0 / 6, 1e-12);
  EXPECT_DOUBLE_EQ(refused.cost_seconds, 4);
  ASSERT_EQ(plan->moves.size(), 2u);
  EXPECT_EQ(plan->moves[0].layer, 2) << "the highest gain for its cost first";
  EXPECT_NEAR(plan->moves[0].gain_seconds, 8, 1e-12);
  EXPECT_DOUBLE_EQ(plan->moves[0].cost_seconds, 4);
  EXPECT_EQ(plan->moves[1].layer, 1);
  EXPECT_NEAR(plan->moves[1].gain_seconds, 40.0 / 6, 1e-12);
  EXPECT_EQ(plan->moves[1].copies.size(), 2u);
  EXPECT_EQ(plan->moves[1].copies[0].layer, 1);
}

TEST(MovePlanTest, AMapThatIsWorseIsRefusedEvenForNothing) {
  const std::vector<ExpertMap> from = {Map(4, 2, {0, 2, 1, 3})};
  const std::vector<ExpertMap> to = {Map(4, 2, {0, 1, 2, 3})};
  const std::vector<double> load = {9, 9, 1, 1};
  MoveCosts costs = kCosts;
  costs.seconds_per_byte = 0;
  const auto plan = PlanMoves(from, to, load, costs);
  ASSERT_TRUE(plan.ok());
  EXPECT_THAT(plan->moves, IsEmpty());
  ASSERT_EQ(plan->refused.size(), 1u);
  EXPECT_NEAR(plan->refused[0].gain_seconds, -8, 1e-12);
}

TEST(MovePlanTest, ADifferenceThatMayBeChanceIsNoGain) {
  const std::vector<ExpertMap> from(2, Map(4, 2, {0, 1, 2, 3}));
  const std::vector<ExpertMap> to(2, Map(4, 2, {0, 2, 1, 3}));
  // Ranks with 51 and 49, and with 70 and 30 in the hundred.
  const std::vector<double> load = {26, 25, 24, 25, 40, 30, 10, 20};
  MoveCosts costs = kCosts;
  costs.seconds_per_byte = 0;
  EXPECT_EQ(PlanMoves(from, to, load, costs)->moves.size(), 2u);
  costs.noise = NoiseOfCounts(10000, 2);
  EXPECT_NEAR(costs.noise, 4 * std::sqrt(2.0) / 100, 1e-15);
  const auto plan = PlanMoves(from, to, load, costs);
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->moves.size(), 1u);
  EXPECT_EQ(plan->moves[0].layer, 1);
  EXPECT_NEAR(plan->moves[0].gain_seconds, 4, 1e-12);
  ASSERT_EQ(plan->refused.size(), 1u);
  EXPECT_EQ(plan->refused[0].gain_seconds, 0);
  EXPECT_GT(NoiseOfCounts(0, 2), 1e6);
}

// Counts of one and the same traffic differ, and a placement fits the ones that it saw. What it gains
// on others is no reason to move.
TEST(MovePlanTest, NewCountsOfTheSameTrafficMoveNothing) {
  const PlacementShape shape{.num_nodes = 2, .ranks_per_node = 4, .slots_per_rank = 9};
  constexpr int64_t kChoices = 40000;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    ChoiceSampler sampler(PowerLawLoad(64, 0.8, seed), seed);
    const auto count = [&] {
      std::vector<double> load(64, 0);
      for (int64_t i = 0; i < kChoices; ++i) {
        int32_t expert = -1;
        sampler.Draw(std::span(&expert, 1));
        ++load[expert];
      }
      return load;
    };
    const std::vector<double> first = count(), second = count();
    const std::vector<ExpertMap> present = {*PlanPlacement({.load = first, .shape = shape})};
    const std::vector<ExpertMap> wanted = {
        *PlanPlacement({.load = second, .shape = shape, .present = present.data()})};
    MoveCosts costs = kCosts;
    costs.seconds_per_byte = 0;
    EXPECT_EQ(PlanMoves(present, wanted, second, costs)->moves.size(), 1u);
    costs.noise = NoiseOfCounts(kChoices, 8);
    EXPECT_THAT(PlanMoves(present, wanted, second, costs)->moves, IsEmpty()) << seed;
  }
}

TEST(MovePlanTest, CopyPriceIsWhereGainAndCostMeet) {
  const auto price = CopyPrice(kCosts);
  ASSERT_TRUE(price.ok());
  EXPECT_DOUBLE_EQ(*price, 0.2);
  MoveCosts costs = kCosts;
  costs.horizon_seconds = 0;
  EXPECT_EQ(*CopyPrice(costs), kMaxCopyPrice);
  costs.bytes_per_expert = 0;
  EXPECT_EQ(*CopyPrice(costs), 0);
}

// A placement that was asked for with the price of a copy is never refused: all that does not pay
// has been left out of it.
TEST(MovePlanTest, WhatIsPlannedWithThePriceOfACopyIsWorthIt) {
  const PlacementShape shape{.num_nodes = 4, .ranks_per_node = 8, .slots_per_rank = 9};
  constexpr int32_t kLayers = 6;
  std::vector<ExpertMap> present, wanted;
  std::vector<double> load;
  MoveCosts costs = kCosts;
  costs.seconds_per_byte = 0.00002;
  const auto price = CopyPrice(costs);
  ASSERT_TRUE(price.ok());
  for (uint64_t layer = 0; layer < kLayers; ++layer) {
    const std::vector<double> before = PowerLawLoad(256, 0.9, layer);
    std::vector<double> now = PowerLawLoad(256, 0.9, layer + 50);
    // The load of later layers has changed less.
    for (size_t e = 0; e < now.size(); ++e) {
      now[e] = before[e] + (now[e] - before[e]) * std::pow(0.2, layer);
    }
    present.push_back(*PlanPlacement({.load = before, .shape = shape}));
    wanted.push_back(*PlanPlacement(
        {.load = now, .shape = shape, .present = &present.back(), .copy_price = *price}));
    load.insert(load.end(), now.begin(), now.end());
  }
  const auto plan = PlanMoves(present, wanted, load, costs);
  ASSERT_TRUE(plan.ok());
  EXPECT_THAT(plan->refused, IsEmpty());
  EXPECT_FALSE(plan->moves.empty());
  EXPECT_LT(plan->moves.size(), kLayers) << "what hardly changed stays";
  for (size_t i = 1; i < plan->moves.size(); ++i) {
    const LayerMove& a = plan->moves[i - 1];
    const LayerMove& b = plan->moves[i];
    EXPECT_GE(a.gain_seconds / a.cost_seconds, b.gain_seconds / b.cost_seconds);
  }
}

TEST(MovePlanTest, RefusesWhatDoesNotFitTogether) {
  const ExpertMap map = Map(4, 2, {0, 1, 2, 3});
  const ExpertMap other = Map(4, 2, {0, 1, 2, 3, 0, 1});
  const std::vector<ExpertMap> one = {map};
  const std::vector<double> load(4, 1.0);
  const auto code = absl::StatusCode::kInvalidArgument;
  ExpectError(DiffMaps(3, map, other), code, {"layer 3", "4, 2, 4 and 4, 2, 6"});
  ExpectError(PlanMoves(one, std::vector<ExpertMap>{other}, load, kCosts), code, {"layer 0"});
  ExpectError(PlanMoves(one, std::vector<ExpertMap>{map, map}, load, kCosts), code,
              {"(1)", "got 2"});
  ExpectError(PlanMoves(one, one, std::span(load).first(3), kCosts), code,
              {"needs 4 loads", "got 3"});
  ExpectError(PlanMoves(one, one, std::vector<double>(5, 1.0), kCosts), code,
              {"4 experts", "got 5"});
  for (const double bad :
       {-1.0, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    MoveCosts costs = kCosts;
    costs.horizon_seconds = bad;
    ExpectError(PlanMoves(one, one, load, costs), code, {"horizon_seconds", "1e+30"});
    ExpectError(CopyPrice(costs), code, {"horizon_seconds"});
  }
}

}  // namespace
}  // namespace jevons
