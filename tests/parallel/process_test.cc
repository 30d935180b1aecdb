// Ranks that are processes, killed and stopped.
#include <csignal>
#include <memory>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "tests/parallel/free_address.h"
#include "tests/support/process.h"

namespace jevons {
namespace {

constexpr absl::Duration kLimit = absl::Seconds(60);

class GlooProcessTest : public testing::Test {
 protected:
  void Start(int32_t world_size, absl::Duration timeout, int64_t bytes, int64_t num_calls) {
    const std::string leader = FreeAddress();
    for (int32_t rank = 0; rank < world_size; ++rank) {
      ranks_.push_back(
          Process::Start({JEVONS_RANK_BINARY, absl::StrCat(rank), absl::StrCat(world_size), leader,
                          absl::StrCat(absl::ToInt64Milliseconds(timeout)), absl::StrCat(bytes),
                          absl::StrCat(num_calls)}));
    }
    for (auto& rank : ranks_) ASSERT_EQ(rank->ReadLine(kLimit), "running");
  }

  std::vector<std::unique_ptr<Process>> ranks_;
};

TEST_F(GlooProcessTest, FourProcessesExchangeAndEnd) {
  Start(4, kLimit, 100'000, 50);
  for (auto& rank : ranks_) {
    EXPECT_EQ(rank->ReadLine(kLimit), "done");
    EXPECT_EQ(rank->Wait(kLimit), 0);
  }
}

TEST_F(GlooProcessTest, AKilledRankIsAbortedAtOnce) {
  for (const int64_t bytes : {8, 4096, 8 << 20}) {
    for (int32_t victim = 0; victim < 3; ++victim) {
      ranks_.clear();
      Start(3, kLimit, bytes, 0);
      ranks_[victim]->Signal(SIGKILL);
      const absl::Time killed = absl::Now();
      for (int32_t r = 0; r < 3; ++r) {
        if (r == victim) continue;
        const std::string line = ranks_[r]->ReadLine(kLimit);
        EXPECT_TRUE(absl::StartsWith(line, "ABORTED: AllToAll (call ")) << line;
        EXPECT_TRUE(absl::StrContains(line, absl::StrCat("rank ", victim, " is gone"))) << line;
        EXPECT_FALSE(absl::StrContains(line, ".cc:")) << line;
      }
      EXPECT_LT(absl::Now() - killed, kLimit / 4);
    }
  }
}

TEST_F(GlooProcessTest, AStoppedRankIsADeadlineThatNamesItAndHearsOfItLater) {
  const absl::Duration timeout = absl::Seconds(1);
  for (const int64_t bytes : {8, 8 << 20}) {
    ranks_.clear();
    Start(3, timeout, bytes, 0);
    ranks_[1]->Signal(SIGSTOP);
    const absl::Time stopped = absl::Now();
    for (const int32_t r : {0, 2}) {
      const std::string line = ranks_[r]->ReadLine(kLimit);
      EXPECT_TRUE(absl::StartsWith(line, "DEADLINE_EXCEEDED: AllToAll (call ")) << line;
      EXPECT_TRUE(absl::StrContains(line, "rank 1 did not take part within 1s")) << line;
    }
    EXPECT_GE(absl::Now() - stopped, timeout / 2);
    ranks_[1]->Signal(SIGCONT);
    const std::string line = ranks_[1]->ReadLine(kLimit);
    EXPECT_TRUE(absl::StartsWith(line, "DEADLINE_EXCEEDED") || absl::StartsWith(line, "ABORTED"))
        << line;
    EXPECT_EQ(ranks_[1]->Wait(kLimit), 0);
  }
}

TEST_F(GlooProcessTest, ARankStoppedForLessThanTheTimeoutLosesNothing) {
  Start(3, kLimit, 300'000, 60);
  ranks_[2]->Signal(SIGSTOP);
  absl::SleepFor(absl::Milliseconds(300));
  ranks_[2]->Signal(SIGCONT);
  for (auto& rank : ranks_) EXPECT_EQ(rank->ReadLine(kLimit), "done");
}

}  // namespace
}  // namespace jevons
