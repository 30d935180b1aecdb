#include "server/group_breaks.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace jevons {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

class GroupBreaksTest : public testing::Test {
 protected:
  GroupBreaksTest() { breaks_.Form(0, now_); }

  void Pass(absl::Duration time) { now_ += absl::ToChronoNanoseconds(time); }
  void Note(int32_t by, std::vector<int32_t> unreached) {
    breaks_.Note(by,
                 {.epoch = epoch_,
                  .status = absl::UnavailableError("broken"),
                  .unreached = std::move(unreached)},
                 now_);
  }
  // The next group, after what is due.
  GroupBreaks::Verdict Next() {
    EXPECT_FALSE(breaks_.Due(now_).has_value()) << "a lost rank would not have been noticed";
    Pass(absl::Milliseconds(1200));
    std::optional<GroupBreaks::Verdict> verdict = breaks_.Due(now_);
    EXPECT_TRUE(verdict.has_value());
    EXPECT_FALSE(breaks_.Due(now_).has_value());
    if (!verdict) return {};
    for (size_t i = 0; i < verdict->lost.size(); ++i) breaks_.LostRank();
    breaks_.Form(++epoch_, now_);
    return *verdict;
  }

  SteadyTime now_ = SteadyTime() + std::chrono::hours(1);
  int64_t epoch_ = 0;
  GroupBreaks breaks_{absl::Milliseconds(900)};
};

TEST_F(GroupBreaksTest, TheSecondTimeTheOthersGoOnWithoutWhoIsNotReached) {
  Note(1, {2});
  Note(2, {1});
  EXPECT_THAT(Next().lost, IsEmpty());
  Note(1, {2});
  Note(3, {});
  Note(2, {1});
  EXPECT_THAT(Next().lost, ElementsAre(2));
  // It is a first attempt again.
  Note(1, {3});
  EXPECT_THAT(Next().lost, IsEmpty());
}

TEST_F(GroupBreaksTest, AfterThreeInARowWithoutAnybodyToBlameItIsOver) {
  for (int i = 0; i < 3; ++i) {
    Note(1, {});
    EXPECT_FALSE(Next().is_final);
  }
  Note(1, {});
  const GroupBreaks::Verdict last = Next();
  EXPECT_TRUE(last.is_final);
  EXPECT_EQ(last.status, absl::UnavailableError("no group could be formed in 3 attempts: broken"));
}

TEST_F(GroupBreaksTest, AGroupThatLivedForLongerEndsTheRow) {
  for (int i = 0; i < 5; ++i) {
    Pass(absl::Seconds(31));
    Note(1, {2});
    const GroupBreaks::Verdict verdict = Next();
    EXPECT_THAT(verdict.lost, IsEmpty());
    EXPECT_FALSE(verdict.is_final);
  }
}

TEST_F(GroupBreaksTest, WhatIsSaidOfAnEarlierGroupDoesNotCount) {
  Note(1, {2});
  Next();
  breaks_.Note(1, {.epoch = 0, .status = absl::UnavailableError("late")}, now_);
  Pass(absl::Seconds(2));
  EXPECT_FALSE(breaks_.Due(now_).has_value());
}

// Whoever is silent would have been noticed meanwhile.
TEST_F(GroupBreaksTest, AWaitForWhatWasSentIsDueAtOnce) {
  const std::vector<RankWays::Rank> ranks = {{.rank = 1, .place = {.position = 5, .waits_for = 2}},
                                             {.rank = 2, .place = {.position = 5}}};
  breaks_.Look(ranks, now_);
  EXPECT_FALSE(breaks_.Due(now_).has_value());
  Pass(absl::Seconds(3));
  breaks_.Look(ranks, now_);
  const std::optional<GroupBreaks::Verdict> verdict = breaks_.Due(now_);
  ASSERT_TRUE(verdict.has_value());
  EXPECT_EQ(verdict->status, absl::UnavailableError("what rank 2 sends does not arrive at rank 1"));
}

}  // namespace
}  // namespace jevons
