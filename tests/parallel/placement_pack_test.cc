#include "parallel/placement_pack.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>
#include <vector>

#include "base/random.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace jevons {
namespace {

using ::testing::ElementsAre;

TEST(PlacementPackTest, SlotsGoToTheHighestLoadPerReplica) {
  EXPECT_THAT(ReplicaCounts(std::vector<double>{8, 3, 1}, 6, 8), ElementsAre(3, 2, 1));
  EXPECT_THAT(ReplicaCounts(std::vector<double>{8, 3, 1}, 6, 2), ElementsAre(2, 2, 2));
  EXPECT_THAT(ReplicaCounts(std::vector<double>{8, 3, 1}, 9, 2), ElementsAre(2, 2, 2));
  EXPECT_THAT(ReplicaCounts(std::vector<double>{0, 0, 0}, 5, 3), ElementsAre(3, 1, 1));
}

// No other counts have a smaller highest load per replica.
TEST(PlacementPackTest, CountsAreTheBestThatThereAre) {
  Random random(3);
  for (int round = 0; round < 200; ++round) {
    const std::vector<double> load = {random.Uniform(), random.Uniform(), 3 * random.Uniform()};
    const auto worst = [&](int32_t a, int32_t b, int32_t c) {
      return std::max({load[0] / a, load[1] / b, load[2] / c});
    };
    double best = 1e9;
    for (int32_t a = 1; a <= 4; ++a) {
      for (int32_t b = 1; b <= 4; ++b) {
        for (int32_t c = 1; c <= 4 && a + b + c <= 7; ++c) best = std::min(best, worst(a, b, c));
      }
    }
    const std::vector<int32_t> counts = ReplicaCounts(load, 7, 4);
    EXPECT_EQ(worst(counts[0], counts[1], counts[2]), best) << round;
  }
}

TEST(PlacementPackTest, HeaviestGoFirstToTheLightestBin) {
  const std::vector<PackItem> items = {{0, 1}, {1, 5}, {2, 4}, {3, 3}};
  EXPECT_THAT(Pack(items, 2, 2, 1), ElementsAre(0, 0, 1, 1));
}

// Every rank is needed for every expert, so the last items find room only where they may not go.
TEST(PlacementPackTest, MakesRoomWhereAllThatHaveRoomHoldTheItem) {
  for (int round = 0; round < 500; ++round) {
    Random random(static_cast<uint64_t>(round));
    const int32_t num_bins = static_cast<int32_t>(1 + random.Below(5));
    const int32_t capacity = static_cast<int32_t>(1 + random.Below(4));
    const int32_t max_same = static_cast<int32_t>(1 + random.Below(2));
    std::vector<PackItem> items;
    int32_t left = num_bins * capacity;
    for (int32_t id = 0; left > 0; ++id) {
      const int32_t most = std::min(left, num_bins * max_same);
      const int32_t count = static_cast<int32_t>(1 + random.Below(most));
      items.insert(items.end(), count, PackItem{id, random.Uniform()});
      left -= count;
    }
    const std::vector<int32_t> bins = Pack(items, num_bins, capacity, max_same);
    std::vector<int32_t> used(num_bins, 0);
    std::map<std::pair<int32_t, int32_t>, int32_t> same;
    for (size_t i = 0; i < items.size(); ++i) {
      ASSERT_TRUE(bins[i] >= 0 && bins[i] < num_bins);
      EXPECT_LE(++used[bins[i]], capacity);
      EXPECT_LE((++same[{bins[i], items[i].id}]), max_same);
    }
  }
}

TEST(PlacementPackTest, AssignmentIsTheBestOfAllPermutations) {
  Random random(17);
  for (int round = 0; round < 300; ++round) {
    const int32_t n = static_cast<int32_t>(1 + random.Below(6));
    std::vector<int64_t> value(static_cast<size_t>(n) * n);
    for (int64_t& v : value) v = random.Below(round % 2 == 0 ? 3 : 1000);
    const auto sum_of = [&](const std::vector<int32_t>& columns) {
      int64_t sum = 0;
      for (int32_t row = 0; row < n; ++row) sum += value[row * n + columns[row]];
      return sum;
    };
    std::vector<int32_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    const std::vector<int32_t> got = BestAssignment(value, n);
    EXPECT_TRUE(std::is_permutation(got.begin(), got.end(), order.begin(), order.end()));
    int64_t best = 0;
    do {
      best = std::max(best, sum_of(order));
    } while (std::next_permutation(order.begin(), order.end()));
    EXPECT_EQ(sum_of(got), best);
  }
}

}  // namespace
}  // namespace jevons
