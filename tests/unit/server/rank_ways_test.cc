#include "server/rank_ways.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace jevons {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

std::vector<int32_t> Lose(const std::vector<Unreached>& accusations) {
  std::vector<Unreached> reversed(accusations.rbegin(), accusations.rend());
  EXPECT_EQ(RanksToLose(reversed), RanksToLose(accusations));
  return RanksToLose(accusations);
}

TEST(RanksToLoseTest, OfAPairTheHigherNumberGoesButNeverRankZero) {
  EXPECT_THAT(Lose({{1, 2}, {2, 1}}), ElementsAre(2));
  EXPECT_THAT(Lose({{3, 0}, {0, 3}}), ElementsAre(3));
}

TEST(RanksToLoseTest, TheOneInMostPairsGoes) {
  EXPECT_THAT(Lose({{1, 2}, {2, 1}, {1, 3}, {3, 1}}), ElementsAre(1));
  EXPECT_THAT(Lose({{1, 2}, {2, 1}, {3, 4}, {4, 3}}), ElementsAre(2, 4));
  EXPECT_THAT(Lose({{1, 2}, {2, 1}, {2, 3}, {3, 2}, {1, 3}, {3, 1}}), ElementsAre(2, 3));
}

// Rank 3 waits for rank 1, which is held up by rank 2.
TEST(RanksToLoseTest, APairCountsBeforeWhoIsHeldUpByIt) {
  EXPECT_THAT(Lose({{1, 2}, {2, 1}, {3, 1}, {4, 1}}), ElementsAre(2));
}

TEST(RanksToLoseTest, WithoutAPairTheMostAccusedGoes) {
  EXPECT_THAT(Lose({{0, 2}}), ElementsAre(2));
  EXPECT_THAT(Lose({{0, 1}, {3, 1}, {1, 3}, {3, 2}}), ElementsAre(3));
  EXPECT_THAT(Lose({{0, 1}, {2, 1}, {0, 3}}), ElementsAre(1));
}

TEST(RanksToLoseTest, WhoAloneAccusesRankZeroGoes) {
  EXPECT_THAT(Lose({{2, 0}, {2, 0}}), ElementsAre(2));
  EXPECT_THAT(Lose({{2, 0}, {1, 0}}), IsEmpty());
  EXPECT_THAT(Lose({}), IsEmpty());
}

class RankWaysTest : public testing::Test {
 protected:
  static ExchangePlace At(int64_t position, int32_t waits_for = -1, bool behind_rows = false) {
    return {.position = position, .waits_for = waits_for, .behind_rows = behind_rows};
  }
  // What is found after `after`, where the ranks stand from the start to the end.
  std::vector<Unreached> After(absl::Duration after, const std::vector<ExchangePlace>& places) {
    std::vector<RankWays::Rank> ranks;
    for (const ExchangePlace& place : places) {
      ranks.push_back({.rank = static_cast<int32_t>(ranks.size()), .place = place});
    }
    const SteadyTime start;
    ways_.Look(ranks, start, patience_);
    return ways_.Look(ranks, start + absl::ToChronoNanoseconds(after), patience_);
  }

  absl::Duration patience_ = absl::Seconds(1);
  RankWays ways_;
};

TEST_F(RankWaysTest, RanksThatWaitForEachOtherAtOnePositionAreCutOff) {
  const std::vector<ExchangePlace> places = {At(7, 1), At(6, 2), At(6, 1)};
  EXPECT_THAT(After(absl::Seconds(3), places), ElementsAre(Unreached{1, 2}, Unreached{2, 1}));
  EXPECT_THAT(After(absl::Milliseconds(2900), places), IsEmpty());
}

TEST_F(RankWaysTest, ARankThatIsBehindIsWaitedForHoweverLong) {
  EXPECT_THAT(After(absl::Hours(1), {At(7, 1), At(6), At(7, 1)}), IsEmpty());
}

TEST_F(RankWaysTest, ARankThatIsFurtherHasSentWhatDoesNotArrive) {
  EXPECT_THAT(After(absl::Seconds(3), {At(9, 2), At(9, 2), At(6, 1)}),
              ElementsAre(Unreached{2, 1}));
}

TEST_F(RankWaysTest, RowsAndALongSilenceAreGivenMoreTime) {
  EXPECT_THAT(After(absl::Seconds(9), {At(7, 1, true), At(8)}), IsEmpty());
  EXPECT_THAT(After(absl::Seconds(10), {At(7, 1, true), At(8)}), ElementsAre(Unreached{0, 1}));
  patience_ = absl::Seconds(20);
  EXPECT_THAT(After(absl::Seconds(19), {At(7, 1), At(8)}), IsEmpty());
}

TEST_F(RankWaysTest, WhoGoesOnWaitsAnew) {
  const SteadyTime start;
  const auto look = [&](int seconds, int64_t position) {
    const std::vector<RankWays::Rank> ranks = {{.rank = 0, .place = At(position, 1)},
                                               {.rank = 1, .place = At(position)}};
    return ways_.Look(ranks, start + std::chrono::seconds(seconds), patience_);
  };
  EXPECT_THAT(look(0, 6), IsEmpty());
  EXPECT_THAT(look(2, 9), IsEmpty());
  EXPECT_THAT(look(4, 9), IsEmpty());
  EXPECT_THAT(look(5, 9), ElementsAre(Unreached{0, 1}));
  ways_.Forget();
  EXPECT_THAT(look(6, 9), IsEmpty());
}

}  // namespace
}  // namespace jevons
