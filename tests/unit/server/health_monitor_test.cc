#include "server/health_monitor.h"

#include "gtest/gtest.h"
#include "tests/support/fake_engine.h"

namespace jevons {
namespace {

constexpr absl::Duration kStall = absl::Seconds(30);

RankStats At(int32_t rank, absl::Duration step_age, int32_t waits_for = -1) {
  return {.rank = rank, .stats = {.step_age = step_age, .place = {.waits_for = waits_for}}};
}

class HealthMonitorTest : public testing::Test {
 protected:
  Health Look(std::vector<RankStats> ranks) {
    engine_.SetRanks(std::move(ranks));
    return monitor_.Look();
  }

  FakeEngine engine_;
  HealthMonitor monitor_{&engine_, kStall};
};

TEST_F(HealthMonitorTest, IdleAndBusyRanksAreReadyAndProgress) {
  const Health health = Look({At(0, absl::ZeroDuration()), At(1, absl::Seconds(29))});
  EXPECT_TRUE(health.ready);
  EXPECT_TRUE(health.progresses);
  EXPECT_EQ(health.reason, "");
}

TEST_F(HealthMonitorTest, ARankThatStandsStillIsNamedBeforeThoseThatWaitForIt) {
  const Health health = Look(
      {At(0, absl::Seconds(31), 2), At(1, absl::Seconds(1)), At(2, absl::Milliseconds(32500))});
  EXPECT_FALSE(health.ready);
  EXPECT_FALSE(health.progresses);
  EXPECT_EQ(
      health.reason,
      "rank 2 has work and has made no step for 32.5s; rank 0 has work and has made no step for "
      "31s, waiting for rank 2");
  EXPECT_FALSE(health.ranks[0].progresses);
  EXPECT_TRUE(health.ranks[1].progresses);
  EXPECT_FALSE(health.ranks[2].progresses);
}

TEST_F(HealthMonitorTest, ALostRankCountsForNothing) {
  RankStats lost = At(1, absl::Hours(1));
  lost.failure = absl::UnavailableError("rank 1 is lost");
  const Health health = Look({At(0, absl::ZeroDuration()), lost});
  EXPECT_TRUE(health.ready);
  EXPECT_EQ(health.ranks[1].known.failure, lost.failure);
}

TEST_F(HealthMonitorTest, IsNotReadyWhileTheQueuesOfAllRanksAreFull) {
  const int64_t limit = engine_.options().max_queued_requests;
  const auto queued = [](int64_t count) { return RankStats{.stats = {.num_queued = count}}; };
  EXPECT_TRUE(Look({queued(limit), queued(limit - 1)}).ready);
  const Health health = Look({queued(limit), queued(limit)});
  EXPECT_FALSE(health.ready);
  EXPECT_TRUE(health.progresses);
  EXPECT_EQ(health.reason, "the queue is full: the limit is 1024 requests");
}

TEST_F(HealthMonitorTest, IsNotReadyWhileItDrainsAndProgressesAllTheSame) {
  monitor_.SetDraining();
  const Health health = monitor_.Look();
  EXPECT_FALSE(health.ready);
  EXPECT_TRUE(health.progresses);
  EXPECT_EQ(health.reason, "the server is shutting down");
}

TEST_F(HealthMonitorTest, AFailedEngineNeitherTakesRequestsNorProgresses) {
  engine_.FailWith(absl::UnavailableError("the device failed"));
  const Health health = monitor_.Look();
  EXPECT_FALSE(health.ready);
  EXPECT_FALSE(health.progresses);
  EXPECT_EQ(health.reason, "the device failed");
}

}  // namespace
}  // namespace jevons
