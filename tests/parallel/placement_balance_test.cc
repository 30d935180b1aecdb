// How even placements are, against bounds and against the best of all.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <limits>
#include <numeric>
#include <vector>

#include "bench/skewed_load.h"
#include "gtest/gtest.h"
#include "parallel/placement.h"
#include "tests/parallel/placement_cases.h"

namespace jevons {
namespace {

// No placement whatever has a busiest rank below this: the mean, or the least t such that the
// replicas which keep every share L / c at or below t fit in the slots and, expert by expert, in the
// ranks.
double LowerBound(std::span<const double> load, int32_t num_ranks, int32_t num_slots) {
  double low = std::accumulate(load.begin(), load.end(), 0.0) / num_ranks;
  double high = *std::max_element(load.begin(), load.end());
  const auto fits = [&](double t) {
    double slots = 0;
    for (const double l : load) {
      const double count = std::max(1.0, std::ceil(l / t));
      if (count > num_ranks) return false;
      slots += count;
    }
    return slots <= num_slots;
  };
  if (high <= low || fits(low)) return low;
  for (int i = 0; i < 100; ++i) {
    const double middle = (low + high) / 2;
    (fits(middle) ? high : low) = middle;
  }
  return low;
}

// The bound where groups stay on nodes: also that of the node with the heaviest groups, at best the
// heaviest group with the lightest others.
double LowerBoundWithGroups(std::span<const double> load, const PlacementShape& shape) {
  std::vector<double> groups;
  const size_t size = load.size() / static_cast<size_t>(shape.num_groups);
  for (int32_t g = 0; g < shape.num_groups; ++g) {
    const auto experts = load.subspan(g * size, size);
    groups.push_back(std::accumulate(experts.begin(), experts.end(), 0.0));
  }
  std::sort(groups.begin(), groups.end());
  double heaviest = groups.back();
  for (int32_t i = 0; i + 1 < shape.num_groups / shape.num_nodes; ++i) heaviest += groups[i];
  double bound =
      std::max(heaviest / shape.ranks_per_node,
               LowerBound(load, shape.num_ranks(), shape.num_ranks() * shape.slots_per_rank));
  return std::max(bound, *std::max_element(load.begin(), load.end()) / shape.ranks_per_node);
}

TEST(PlacementTest, BusiestRankIsWithin115PercentOfTheMeanWhereThatIsPossible) {
  for (const ModelShape& c : kShapes) {
    const int32_t num_ranks = c.shape.num_ranks();
    double worst = 0, worst_even = 0, worst_to_bound = 0;
    for (const double s : {0.5, 0.8, 0.9, 1.0, 1.1, 1.2}) {
      for (uint64_t seed = 0; seed < 6; ++seed) {
        const std::vector<double> load = PowerLawLoad(c.num_experts, s, seed);
        const ExpertMap map = Plan(load, c.shape);
        const RankBalance balance = MeanAndBusiest(map, load);
        const double bound = LowerBound(load, num_ranks, map.num_slots());
        EXPECT_GE(balance.busiest, bound * (1 - 1e-9));
        // With two slots a rank the bound says little: it does not know that a hot replica shares
        // its rank with the whole of a cold expert.
        if (c.shape.slots_per_rank == 2) {
          EXPECT_LE(balance.busiest, 1.3 * bound) << c.name << " s=" << s << " seed=" << seed;
        } else {
          EXPECT_LE(bound, 1.15 * balance.mean) << "these can all be balanced";
          EXPECT_LE(balance.imbalance(), 1.15) << c.name << " s=" << s << " seed=" << seed;
        }
        worst = std::max(worst, balance.imbalance());
        worst_to_bound = std::max(worst_to_bound, balance.busiest / bound);
        const auto even = ExpertMap::Even(c.num_experts, num_ranks, c.shape.slots_per_rank);
        ASSERT_TRUE(even.ok());
        worst_even = std::max(worst_even, MeanAndBusiest(*even, load).imbalance());
      }
    }
    std::printf("%-34s busiest/mean %.3f at most, even %.3f; over the bound %.3f\n", c.name.c_str(),
                worst, worst_even, worst_to_bound);
  }
}

// Groups that stay on a node leave its ranks what the node's share is; beyond that all is as good as
// without.
TEST(PlacementTest, WithGroupsTheBusiestRankIsNearTheBound) {
  for (const int32_t num_nodes : {1, 2, 4, 8}) {
    const PlacementShape shape{.num_nodes = num_nodes,
                               .ranks_per_node = 32 / num_nodes,
                               .slots_per_rank = 9,
                               .num_groups = 8};
    double worst = 0, worst_to_bound = 0;
    for (uint64_t seed = 0; seed < 20; ++seed) {
      const std::vector<double> load = PowerLawLoad(256, 0.8, seed);
      const RankBalance balance = MeanAndBusiest(Plan(load, shape), load);
      const double bound = LowerBoundWithGroups(load, shape);
      EXPECT_GE(balance.busiest, bound * (1 - 1e-9));
      worst = std::max(worst, balance.imbalance());
      worst_to_bound = std::max(worst_to_bound, balance.busiest / bound);
    }
    std::printf("8 groups on %d nodes: busiest/mean %.3f at most; over the bound %.3f\n", num_nodes,
                worst, worst_to_bound);
    EXPECT_LE(worst_to_bound, 1.1);
  }
}

// The busiest rank of the best of all placements: every set of at most `slots` experts on every rank.
double BestBusiest(std::span<const double> load, int32_t num_ranks, int32_t slots) {
  const int32_t num_experts = static_cast<int32_t>(load.size());
  std::vector<uint32_t> sets;
  for (uint32_t set = 0; set < 1u << num_experts; ++set) {
    if (std::popcount(set) <= slots) sets.push_back(set);
  }
  double best = std::numeric_limits<double>::max();
  std::vector<size_t> at(num_ranks, 0);
  for (;;) {
    std::vector<int32_t> counts(num_experts, 0);
    for (const size_t a : at) {
      for (int32_t e = 0; e < num_experts; ++e) counts[e] += sets[a] >> e & 1;
    }
    if (std::find(counts.begin(), counts.end(), 0) == counts.end()) {
      double busiest = 0;
      for (const size_t a : at) {
        double sum = 0;
        for (int32_t e = 0; e < num_experts; ++e) sum += sets[a] >> e & 1 ? load[e] / counts[e] : 0;
        busiest = std::max(busiest, sum);
      }
      best = std::min(best, busiest);
    }
    // Ranks are alike: their sets ascend.
    size_t rank = 0;
    while (rank < at.size() && at[rank] + 1 == sets.size()) ++rank;
    if (rank == at.size()) return best;
    ++at[rank];
    for (size_t r = 0; r < rank; ++r) at[r] = at[rank];
  }
}

TEST(PlacementTest, IsNearTheBestOfAllPlacementsInSmallCases) {
  struct Small {
    int32_t experts, ranks, slots;
  };
  for (const Small c : {Small{4, 2, 3}, Small{5, 3, 2}, Small{6, 3, 3}, Small{6, 4, 2}}) {
    double worst = 0, sum = 0;
    constexpr int kRounds = 40;
    for (uint64_t seed = 0; seed < kRounds; ++seed) {
      const std::vector<double> load = PowerLawLoad(c.experts, 0.5 + 0.05 * seed, seed);
      const PlacementShape shape{.ranks_per_node = c.ranks, .slots_per_rank = c.slots};
      const double best = BestBusiest(load, c.ranks, c.slots);
      const double got = MeanAndBusiest(Plan(load, shape), load).busiest;
      EXPECT_GE(got, best * (1 - 1e-9));
      worst = std::max(worst, got / best);
      sum += got / best;
    }
    std::printf("%d experts on %d ranks of %d: over the best %.3f at most, %.3f on average\n",
                c.experts, c.ranks, c.slots, worst, sum / kRounds);
    EXPECT_LE(sum / kRounds, 1.02);
    EXPECT_LE(worst, 1.15);
  }
}

}  // namespace
}  // namespace jevons
