#include "parallel/placement.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>

#include "base/random.h"
#include "bench/skewed_load.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/parallel/placement_cases.h"
#include "tests/support/status_matchers.h"

namespace jevons {
namespace {

using ::testing::ElementsAre;

// Experts that came to a rank, and those that changed slots within one.
struct Changes {
  int32_t copies = 0;
  int32_t shuffled = 0;
};

Changes ChangesOf(const ExpertMap& before, const ExpertMap& after) {
  Changes out;
  for (int32_t slot = 0; slot < after.num_slots(); ++slot) {
    const int32_t expert = after.expert_of(slot);
    if (expert < 0 || expert == before.expert_of(slot)) continue;
    const auto held = before.experts_of_rank(after.rank_of(slot));
    const bool was_there = std::find(held.begin(), held.end(), expert) != held.end();
    ++(was_there ? out.shuffled : out.copies);
  }
  return out;
}

TEST(PlacementTest, ReplicasShareTheLoad) {
  const auto map = ExpertMap::Create(3, 3, std::vector<int32_t>{2, 0, 1, 2, -1, 2});
  ASSERT_TRUE(map.ok());
  const std::vector<double> load = {10, 1, 6};
  EXPECT_THAT(RankLoads(*map, load), ElementsAre(12, 3, 2));
  const RankBalance balance = MeanAndBusiest(*map, load);
  EXPECT_DOUBLE_EQ(balance.mean, 17.0 / 3);
  EXPECT_EQ(balance.busiest, 12);
  EXPECT_EQ(balance.busiest_rank, 0);
  EXPECT_DOUBLE_EQ(balance.imbalance(), 36.0 / 17);
  EXPECT_EQ(MeanAndBusiest(*map, std::vector<double>{0, 0, 0}).imbalance(), 1);
}

// Tokens that are routed one by one arrive where RankLoads says.
TEST(PlacementTest, RankLoadsAreWhatSlotForGives) {
  constexpr int32_t kTokens = 4096;
  const std::vector<double> weight = PowerLawLoad(64, 1.0, 7);
  const PlacementShape shape{.num_nodes = 2, .ranks_per_node = 4, .slots_per_rank = 9};
  const ExpertMap map = Plan(weight, shape);
  ChoiceSampler sampler(weight, 8);
  std::vector<int64_t> counts(64, 0);
  std::vector<double> arrived(8, 0);
  std::vector<int32_t> topk_idx(6);
  for (int32_t from = 0; from < 8; ++from) {
    for (int64_t token = 0; token < kTokens; ++token) {
      sampler.Draw(topk_idx);
      for (const int32_t e : topk_idx) {
        ++counts[e];
        ++arrived[map.rank_of(map.SlotFor(e, from, token))];
      }
    }
  }
  const std::vector<double> load(counts.begin(), counts.end());
  const std::vector<double> want = RankLoads(map, load);
  for (int32_t rank = 0; rank < 8; ++rank) {
    // Five deviations of a count, and what replicas may be apart.
    EXPECT_NEAR(arrived[rank], want[rank], 5 * std::sqrt(want[rank])) << rank;
  }
}

// Any shape that is allowed, of random loads with ties and zeros.
struct RandomCase {
  explicit RandomCase(uint64_t seed) {
    Random random(seed);
    shape.num_nodes = static_cast<int32_t>(1 + random.Below(3));
    shape.ranks_per_node = static_cast<int32_t>(1 + random.Below(4));
    shape.num_groups = random.Below(2) == 0 ? 1 : shape.num_nodes * (1 + seed % 2);
    const int64_t num_experts = shape.num_groups * (1 + random.Below(6));
    const int64_t least = (num_experts + shape.num_ranks() - 1) / shape.num_ranks();
    const int64_t of_node = num_experts / shape.num_nodes;
    shape.slots_per_rank = static_cast<int32_t>(
        std::max(least, shape.num_groups > 1
                            ? (of_node + shape.ranks_per_node - 1) / shape.ranks_per_node
                            : int64_t{1}) +
        random.Below(4));
    for (int64_t e = 0; e < num_experts; ++e) {
      load.push_back(random.Below(3) == 0 ? static_cast<double>(random.Below(3))
                                          : 100 * random.Uniform());
    }
  }
  PlacementShape shape;
  std::vector<double> load;
};

TEST(PlacementTest, KeepsItsRulesForRandomShapes) {
  for (uint64_t seed = 0; seed < 400; ++seed) {
    const RandomCase c(seed);
    // Create refuses an expert without a slot or twice on a rank.
    const ExpertMap map = Plan(c.load, c.shape);
    EXPECT_EQ(map.num_experts(), static_cast<int32_t>(c.load.size()));
    EXPECT_EQ(map.num_ranks(), c.shape.num_ranks());
    EXPECT_EQ(map.slots_per_rank(), c.shape.slots_per_rank);
    EXPECT_EQ(map, Plan(c.load, c.shape)) << seed;
    const int32_t group_size = map.num_experts() / c.shape.num_groups;
    for (int32_t e = 0; c.shape.num_groups > 1 && e < map.num_experts(); ++e) {
      const int32_t first = map.slots_of(e / group_size * group_size)[0];
      for (const int32_t slot : map.slots_of(e)) {
        EXPECT_EQ(map.rank_of(slot) / c.shape.ranks_per_node,
                  map.rank_of(first) / c.shape.ranks_per_node);
      }
    }
    // A slot is empty only where all that may be on the rank are.
    for (int32_t slot = 0; slot < map.num_slots(); ++slot) {
      if (map.expert_of(slot) >= 0) continue;
      const auto held = map.experts_of_rank(map.rank_of(slot));
      EXPECT_EQ(std::count_if(held.begin(), held.end(), [](int32_t e) { return e >= 0; }),
                c.shape.num_groups > 1 ? map.num_experts() / c.shape.num_nodes : map.num_experts())
          << seed;
    }
  }
}

TEST(PlacementTest, ASuccessorIsNoWorseInBalanceAndCopiesTogether) {
  for (uint64_t seed = 0; seed < 400; ++seed) {
    const RandomCase c(seed);
    const ExpertMap present = Plan(RandomCase(seed).load, c.shape);
    std::vector<double> load = c.load;
    Random random(seed + 1000);
    for (double& l : load) l *= random.Uniform();
    for (const double price : {0.0, 0.001, 0.05, 1e30}) {
      const ExpertMap next = Plan(load, c.shape, &present, price);
      const Changes changes = ChangesOf(present, next);
      EXPECT_EQ(changes.shuffled, 0) << "an expert that stays on its rank stays in its slot";
      EXPECT_LE(MeanAndBusiest(next, load).imbalance() + price * changes.copies,
                MeanAndBusiest(present, load).imbalance() + 1e-6);
      EXPECT_EQ(next, Plan(load, c.shape, &present, price));
      if (price == 1e30) {
        EXPECT_EQ(next, present);
      }
    }
  }
}

TEST(PlacementTest, TheSameLoadMovesNothing) {
  for (const ModelShape& c : kShapes) {
    for (const double s : {0.8, 1.2}) {
      const std::vector<double> load = PowerLawLoad(c.num_experts, s, 4);
      const ExpertMap present = Plan(load, c.shape);
      for (const double price : {0.0, 0.001}) {
        EXPECT_EQ(Plan(load, c.shape, &present, price), present) << c.name;
      }
      // Nor does twice the traffic.
      std::vector<double> twice;
      for (const double l : load) twice.push_back(2 * l);
      EXPECT_EQ(Plan(twice, c.shape, &present), present) << c.name;
    }
  }
}

// The nodes, the ranks of a node and the slots of a rank may be in any order.
TEST(PlacementTest, APlacementInAnotherOrderMovesNothing) {
  const PlacementShape shape{
      .num_nodes = 4, .ranks_per_node = 8, .slots_per_rank = 9, .num_groups = 8};
  const std::vector<double> load = PowerLawLoad(256, 1.0, 2);
  const ExpertMap planned = Plan(load, shape);
  std::vector<int32_t> slot_expert;
  for (const int32_t node : {2, 0, 3, 1}) {
    for (const int32_t rank : {7, 2, 1, 0, 5, 6, 4, 3}) {
      const auto experts = planned.experts_of_rank(node * 8 + rank);
      slot_expert.insert(slot_expert.end(), experts.rbegin(), experts.rend());
    }
  }
  const auto present = ExpertMap::Create(256, 32, slot_expert);
  ASSERT_TRUE(present.ok());
  EXPECT_EQ(Plan(load, shape, &*present), *present);
}

TEST(PlacementTest, ASmallChangeOfTheLoadTakesFewCopies) {
  const PlacementShape shape{.num_nodes = 4, .ranks_per_node = 8, .slots_per_rank = 9};
  int32_t most = 0;
  for (uint64_t seed = 0; seed < 8; ++seed) {
    std::vector<double> load = PowerLawLoad(256, 1.0, seed);
    const ExpertMap present = Plan(load, shape);
    // One of the coldest becomes as hot as the third.
    std::vector<double> sorted = load;
    std::sort(sorted.rbegin(), sorted.rend());
    *std::min_element(load.begin(), load.end()) = sorted[2];
    const ExpertMap next = Plan(load, shape, &present, 0.001);
    const int32_t copies = ChangesOf(present, next).copies;
    most = std::max(most, copies);
    EXPECT_GT(MeanAndBusiest(present, load).imbalance(), 1.5);
    EXPECT_LE(MeanAndBusiest(next, load).imbalance(), 1.15);
    EXPECT_GT(copies, 0);
  }
  std::printf("at most %d of 288 slots\n", most);
  EXPECT_LE(most, 60);
}

// Groups that the present map spreads over nodes come together, whatever the steps could do.
TEST(PlacementTest, GroupsOfAPresentMapThatSpreadsThemAreMadeWhole) {
  const PlacementShape shape{
      .num_nodes = 2, .ranks_per_node = 2, .slots_per_rank = 3, .num_groups = 2};
  const auto present =
      ExpertMap::Create(8, 4, std::vector<int32_t>{0, 2, 4, 6, 1, 3, 5, 7, 0, 2, 4, 6});
  ASSERT_TRUE(present.ok());
  const std::vector<double> load(8, 1.0);
  const ExpertMap next = Plan(load, shape, &*present);
  for (int32_t e = 0; e < 8; ++e) {
    for (const int32_t slot : next.slots_of(e)) {
      EXPECT_EQ(slot / 6, next.slots_of(e / 4 * 4)[0] / 6);
    }
  }
}

TEST(PlacementTest, EdgesOfTheLoad) {
  const PlacementShape shape{.num_nodes = 2, .ranks_per_node = 2, .slots_per_rank = 3};
  const std::vector<double> none(8, 0.0);
  const auto even = ExpertMap::Even(8, 4, 3);
  ASSERT_TRUE(even.ok());
  EXPECT_EQ(Plan(none, shape, &*even), *even) << "no load keeps what is there";
  EXPECT_EQ(MeanAndBusiest(Plan(none, shape), none).imbalance(), 1);

  std::vector<double> one = none;
  one[5] = 3;
  EXPECT_EQ(Plan(one, shape).slots_of(5).size(), 4u) << "one hot expert is everywhere";
  EXPECT_EQ(MeanAndBusiest(Plan(one, shape), one).imbalance(), 1);

  for (const double scale : {std::numeric_limits<double>::denorm_min(), 1e-300, 1e300}) {
    std::vector<double> load;
    for (int i = 1; i <= 8; ++i) load.push_back(i * scale);
    const double imbalance = MeanAndBusiest(Plan(load, shape, &*even), load).imbalance();
    EXPECT_TRUE(imbalance >= 1 - 1e-9 && imbalance < 2) << scale;
  }

  const std::vector<double> single = {4};
  EXPECT_EQ(Plan(single, {.ranks_per_node = 3, .slots_per_rank = 2}).slots_of(0).size(), 3u);
}

TEST(PlacementTest, RefusesWhatDoesNotFitWithTheLimit) {
  const std::vector<double> load(8, 1.0);
  const auto plan = [&](const PlacementShape& shape) {
    return PlanPlacement({.load = load, .shape = shape});
  };
  const auto code = absl::StatusCode::kInvalidArgument;
  ExpectError(plan({2, 2, 1}), code, {"the 4 slots", "got 8"});
  ExpectError(plan({0, 2, 1}), code, {"at least 1", "got 0, 2, 1 and 1"});
  ExpectError(plan({2, 2, 2, 3}), code, {"num_experts (8)", "num_nodes (2)", "got 3"});
  ExpectError(plan({4, 2, 2, 2}), code, {"num_nodes (4)", "got 2"});
  ExpectError(plan({INT32_MAX, INT32_MAX, INT32_MAX}), code, {"1048576", "2147483647"});
  ExpectError(PlanPlacement({}), code, {"num_experts", "got 0"});

  const PlacementShape shape{2, 2, 2};
  std::vector<double> bad = load;
  bad[3] = -1;
  ExpectError(PlanPlacement({.load = bad, .shape = shape}), code, {"got -1", "expert 3"});
  bad[3] = std::numeric_limits<double>::quiet_NaN();
  ExpectError(PlanPlacement({.load = bad, .shape = shape}), code, {"nan", "expert 3"});
  bad.assign(8, std::numeric_limits<double>::max());
  ExpectError(PlanPlacement({.load = bad, .shape = shape}), code, {"sum", "inf"});
  ExpectError(PlanPlacement({.load = load, .shape = shape, .copy_price = -0.5}), code,
              {"copy_price", "got -0.5"});
  const auto other = ExpertMap::Even(8, 4, 3);
  ExpectError(PlanPlacement({.load = load, .shape = shape, .present = &*other}), code,
              {"8 experts and 4 ranks of 2", "got 8, 4 and 3"});
}

}  // namespace
}  // namespace jevons
