#include "parallel/held_experts.h"

#include <algorithm>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace jevons {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

using Held = std::vector<std::vector<int32_t>>;

std::vector<int32_t> SlotsOf(const absl::StatusOr<ExpertMap>& map) {
  EXPECT_TRUE(map.ok()) << map.status();
  std::vector<int32_t> out;
  for (int32_t s = 0; map.ok() && s < map->num_slots(); ++s) out.push_back(map->expert_of(s));
  return out;
}

TEST(HeldExpertsTest, NothingMovesWhereNothingIsMissing) {
  EXPECT_THAT(SlotsOf(MapOfHeld(4, Held{{0, 1, 2}, {3, 0, -1}})), ElementsAre(0, 1, 2, 3, 0, -1));
}

TEST(HeldExpertsTest, TheMissingTakeEmptySlotsThenReplicas) {
  // 2 and 5 are missing. The first rank has three places, then as many as the others.
  EXPECT_THAT(SlotsOf(MapOfHeld(6, Held{{0, 1, -1}, {0, 1, 3}, {4, 0, 1}})),
              ElementsAre(5, 1, 2, 0, 1, 3, 4, 0, 1));
}

TEST(HeldExpertsTest, SlotsAreAddedWhereThePlacesAreTooFew) {
  // Of 6 experts the lost rank had 4 and 5.
  EXPECT_THAT(SlotsOf(MapOfHeld(6, Held{{0, 1}, {2, 3}})), ElementsAre(0, 1, 4, 2, 3, 5));
  EXPECT_THAT(SlotsOf(MapOfHeld(5, Held{{0, 1}, {2, 3}})), ElementsAre(0, 1, 4, 2, 3, -1));
  EXPECT_THAT(SlotsOf(MapOfHeld(3, Held{{}})), ElementsAre(0, 1, 2));
}

TEST(HeldExpertsTest, ARankThatHoldsLessGetsEmptySlots) {
  EXPECT_THAT(SlotsOf(MapOfHeld(3, Held{{0, 1, 2}, {1}})), ElementsAre(0, 1, 2, 1, -1, -1));
}

TEST(HeldExpertsTest, WhatDoesNotFitIsAnErrorWithTheLimit) {
  EXPECT_THAT(std::string(MapOfHeld(3, Held{{0, 3}}).status().message()),
              HasSubstr("must be in [-1, 3), given 3"));
  EXPECT_EQ(MapOfHeld(3, Held{{0, 1, 1, 2}}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MapOfHeld(3, Held{}).status().code(), absl::StatusCode::kInvalidArgument);
}

// Ranks are lost one by one, at random, from maps with replicas: every expert has a slot, and one that
// was held stays held by the same ranks unless its replica made room.
TEST(HeldExpertsTest, NoExpertIsEverMissing) {
  std::mt19937 random(3);
  for (int round = 0; round < 50; ++round) {
    const int32_t num_ranks = 2 + static_cast<int32_t>(random() % 7);
    const int32_t num_experts = num_ranks * (1 + static_cast<int32_t>(random() % 6));
    const int32_t slots = num_experts / num_ranks + static_cast<int32_t>(random() % 3);
    absl::StatusOr<ExpertMap> map = ExpertMap::Even(num_experts, num_ranks, slots);
    ASSERT_TRUE(map.ok());
    for (int32_t left = num_ranks - 1; left > 0; --left) {
      const int32_t lost = static_cast<int32_t>(random() % (left + 1));
      Held held;
      std::vector<int32_t> holders(num_experts);
      for (int32_t r = 0; r <= left; ++r) {
        if (r == lost) continue;
        const auto own = map->experts_of_rank(r);
        held.emplace_back(own.begin(), own.end());
        for (int32_t e : own) holders[e < 0 ? 0 : e] += e < 0 ? 0 : 1;
      }
      map = MapOfHeld(num_experts, held);
      ASSERT_TRUE(map.ok()) << map.status();
      ASSERT_EQ(map->num_ranks(), left);
      for (int32_t r = 0; r < left; ++r) {
        const auto own = map->experts_of_rank(r);
        for (size_t i = 0; i < held[r].size(); ++i) {
          const int32_t before = held[r][i];
          if (own[i] == before) continue;
          EXPECT_TRUE(before < 0 || holders[before] > 1);
          EXPECT_EQ(holders[own[i]], 0);
        }
      }
    }
  }
}

}  // namespace
}  // namespace jevons
