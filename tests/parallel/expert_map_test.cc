#include "parallel/expert_map.h"

#include <algorithm>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace jevons {
namespace {

using ::testing::ElementsAre;

std::vector<int32_t> SlotExperts(const ExpertMap& map) {
  std::vector<int32_t> out;
  for (int32_t s = 0; s < map.num_slots(); ++s) out.push_back(map.expert_of(s));
  return out;
}

TEST(ExpertMapTest, EvenGivesEachRankConsecutiveExperts) {
  const auto map = ExpertMap::Even(8, 4, 2);
  ASSERT_TRUE(map.ok()) << map.status();
  EXPECT_THAT(SlotExperts(*map), ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
  EXPECT_THAT(map->slots_of(5), ElementsAre(5));
  EXPECT_THAT(map->experts_of_rank(2), ElementsAre(4, 5));
  EXPECT_EQ(map->rank_of(5), 2);
}

TEST(ExpertMapTest, EvenSharesDifferByOneAndSpareSlotsTakeWhatTheRankLacks) {
  EXPECT_THAT(SlotExperts(*ExpertMap::Even(5, 2, 4)), ElementsAre(0, 1, 2, 3, 2, 3, 4, 0));
  // More slots than experts on a rank: the last stay empty.
  EXPECT_THAT(SlotExperts(*ExpertMap::Even(2, 2, 3)), ElementsAre(0, 1, -1, 1, 0, -1));
  EXPECT_THAT(SlotExperts(*ExpertMap::Even(1, 3, 1)), ElementsAre(0, 0, 0));
  // More ranks than experts.
  EXPECT_THAT(SlotExperts(*ExpertMap::Even(2, 3, 1)), ElementsAre(0, 0, 1));
}

TEST(ExpertMapTest, EvenHoldsItsRulesForManyShapes) {
  for (int32_t experts = 1; experts <= 20; ++experts) {
    for (int32_t ranks = 1; ranks <= 9; ++ranks) {
      for (int32_t slots = (experts + ranks - 1) / ranks; slots <= experts + 1; ++slots) {
        const auto map = ExpertMap::Even(experts, ranks, slots);
        ASSERT_TRUE(map.ok()) << map.status();
        EXPECT_EQ(map->num_slots(), ranks * slots);
        size_t fewest = map->slots_of(0).size(), most = fewest;
        for (int32_t e = 0; e < experts; ++e) {
          fewest = std::min(fewest, map->slots_of(e).size());
          most = std::max(most, map->slots_of(e).size());
        }
        // The last slots may find on their rank what has fewest.
        EXPECT_LE(most - fewest, 2) << experts << " " << ranks << " " << slots;
      }
    }
  }
}

TEST(ExpertMapTest, EvenRefusesTooFewSlots) {
  ExpectError(ExpertMap::Even(256, 8, 31), absl::StatusCode::kInvalidArgument,
              {"num_experts (256)", "8 * 31"});
  ExpectError(ExpertMap::Even(0, 8, 1), absl::StatusCode::kInvalidArgument,
              {"num_experts", "got 0"});
  ExpectError(ExpertMap::Even(8, 0, 1), absl::StatusCode::kInvalidArgument, {"num_ranks", "got 0"});
  ExpectError(ExpertMap::Even(8, 65536, 65536), absl::StatusCode::kInvalidArgument,
              {"65536 * 65536"});
}

TEST(ExpertMapTest, CreateListsTheSlotsOfEachExpert) {
  const std::vector<int32_t> slot_expert = {2, 0, 1, 2, -1, 2};
  const auto map = ExpertMap::Create(3, 3, slot_expert);
  ASSERT_TRUE(map.ok()) << map.status();
  EXPECT_THAT(map->cu_slots(), ElementsAre(0, 1, 2, 5));
  EXPECT_THAT(map->expert_slots(), ElementsAre(1, 2, 0, 3, 5));
  EXPECT_EQ(map->slots_per_rank(), 2);
  EXPECT_EQ(SlotExperts(*map), slot_expert);
  EXPECT_EQ(*map, *ExpertMap::Create(3, 3, slot_expert));
  EXPECT_FALSE(*map == *ExpertMap::Create(3, 2, std::vector<int32_t>{2, 0, 1, 2, -1, 1}));
}

TEST(ExpertMapTest, CreateNamesWhatIsWrong) {
  const auto create = [](int32_t ranks, std::vector<int32_t> slot_expert) {
    return ExpertMap::Create(3, ranks, slot_expert);
  };
  const auto code = absl::StatusCode::kInvalidArgument;
  ExpectError(create(2, {0, 1, 3, 2}), code, {"slot 2", "between -1 and 2", "got 3"});
  ExpectError(create(2, {0, -2, 1, 2}), code, {"slot 1", "got -2"});
  ExpectError(create(2, {0, 1, 1, 0}), code, {"expert 2 has none"});
  ExpectError(create(2, {0, 1, 2, 2}), code, {"rank 1", "expert 2", "slots 2 and 3"});
  ExpectError(create(2, {0, 1, 2}), code, {"num_ranks (2)", "got 3"});
  ExpectError(create(2, {}), code, {"got 0"});
  ExpectError(create(0, {0, 1, 2}), code, {"num_ranks", "got 0"});
}

TEST(ExpertMapTest, SlotForIsAlwaysAReplicaAndOnTheOwnRankWhereItCan) {
  const auto map = ExpertMap::Create(3, 3, std::vector<int32_t>{2, 0, 1, 2, -1, 2});
  ASSERT_TRUE(map.ok());
  for (int32_t e = 0; e < 3; ++e) {
    for (int32_t from = 0; from < 3; ++from) {
      for (int64_t token : {int64_t{0}, int64_t{1}, int64_t{7}, INT64_MAX - 1, INT64_MAX}) {
        const int32_t slot = map->SlotFor(e, from, token);
        EXPECT_EQ(map->expert_of(slot), e);
        const auto own = map->experts_of_rank(from);
        const bool holds = std::find(own.begin(), own.end(), e) != own.end();
        EXPECT_EQ(map->rank_of(slot) == from, holds);
      }
    }
  }
}

TEST(ExpertMapTest, TokensOfOneRankSpreadOverReplicas) {
  const auto map = ExpertMap::Create(2, 5, std::vector<int32_t>{0, 1, 1, 1, 1});
  ASSERT_TRUE(map.ok());
  std::vector<int32_t> count(5, 0);
  for (int64_t token = 0; token < 400; ++token) ++count[map->SlotFor(1, 0, token)];
  EXPECT_THAT(count, ElementsAre(0, 100, 100, 100, 100));
}

TEST(ExpertMapTest, TheOneTokenOfEachRankDoesNotGoToOneReplica) {
  std::vector<int32_t> slot_expert(16, 0);
  slot_expert[8] = slot_expert[9] = 1;
  const auto map = ExpertMap::Create(2, 16, slot_expert);
  ASSERT_TRUE(map.ok());
  std::vector<int32_t> count(16, 0);
  for (int32_t from = 0; from < 8; ++from) ++count[map->SlotFor(1, from, 0)];
  EXPECT_EQ(count[8], 4);
  EXPECT_EQ(count[9], 4);
}

}  // namespace
}  // namespace jevons
