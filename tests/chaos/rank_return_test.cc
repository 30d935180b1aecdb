// Ranks that were lost and come back into a group that serves.
#include <csignal>

#include "tests/chaos/canaries.h"
#include "tests/chaos/long_calls.h"
#include "tests/e2e/rank_group.h"
#include "tests/parallel/free_address.h"

namespace jevons {
namespace {

constexpr int kNumRanks = 3;

class RankReturnTest : public testing::Test {
 protected:
  Arguments Rank(int rank, const Arguments& more = {}) const {
    return Join(ServeArguments(model_.path(), kNumRanks),
                Join({"--rank", absl::StrCat(rank), "--leader", leader_}, more));
  }
  void Start(const Arguments& more = {}) {
    for (int rank = 1; rank < kNumRanks; ++rank) {
      others_.push_back(Process::Start(Rank(rank, more)));
    }
    group_ = std::make_unique<RankServer>(Rank(0, more));
    ASSERT_TRUE(group_->ok());
  }
  v1::RankStatus StatusOf(int rank) const {
    const auto status = group_->client().GetStatus();
    EXPECT_TRUE(status.ok()) << status.status();
    return status.ok() ? status->ranks(rank) : v1::RankStatus();
  }
  // Kills the process of the rank and starts another one in its place, in the middle of the calls.
  void KillAndReturn(int rank, const LongCalls& calls) {
    std::unique_ptr<Process>& process = others_[rank - 1];
    process->Signal(SIGKILL);
    ASSERT_TRUE(WaitFor([&] { return !StatusOf(rank).lost().empty(); }));
    EXPECT_LT(calls.UntilAllGoOn(kLongest), kSoon);
    process = Process::Start(Rank(rank));
    ASSERT_TRUE(WaitFor([&] { return StatusOf(rank).lost().empty(); }));
    const absl::Duration paused = calls.UntilAllGoOn(kLongest);
    RecordProperty(absl::StrCat("rank_", rank, "_back_ms"),
                   absl::StrCat(absl::ToInt64Milliseconds(paused)));
    EXPECT_LT(paused, kSoon);
  }
  void ExpectBeginnings(const LongCalls& calls) const {
    std::vector<v1::GenerateRequest> requests;
    size_t most = 0;
    for (int i = 0; i < calls.count(); ++i) most = std::max(most, calls.got(i).token_ids.size());
    for (int i = 0; i < calls.count(); ++i) {
      requests.push_back(TinyRequest(i, static_cast<int>(most)));
    }
    const auto want = AnswerAlone(ServeArguments(model_.path(), 1), requests);
    ASSERT_TRUE(want.ok()) << want.status();
    for (int i = 0; i < calls.count(); ++i) {
      EXPECT_EQ(calls.got(i).status.code(), absl::StatusCode::kCancelled) << calls.got(i).status;
      EXPECT_EQ(DifferenceOfCut(calls.got(i), (*want)[i].want), "") << "call " << i;
    }
  }
  void End() {
    group_->process().Signal(SIGTERM);
    EXPECT_EQ(group_->process().Wait(kSoon), 0);
    for (const auto& process : others_) EXPECT_EQ(process->Wait(kSoon), 0);
  }

  const TinyModelFolder model_;
  const std::string leader_ = FreeAddress();
  std::vector<std::unique_ptr<Process>> others_;  // from rank 1 on
  std::unique_ptr<RankServer> group_;
};

TEST_F(RankReturnTest, ARankThatIsStartedAgainIsTakenInAndNothingIsSeenOfIt) {
  ASSERT_NO_FATAL_FAILURE(Start());
  LongCalls calls(group_->address(), 2 * kNumRanks);
  ASSERT_TRUE(calls.AllStarted());
  // All of them, so that rank 0 holds every expert in between, then one once more.
  for (const int rank : {2, 1, 2}) ASSERT_NO_FATAL_FAILURE(KillAndReturn(rank, calls));
  // The next requests go where the fewest are.
  LongCalls more(group_->address(), kNumRanks);
  EXPECT_TRUE(WaitFor([&] { return StatusOf(2).num_new_tokens() > 20; }));
  EXPECT_LT(more.UntilAllGoOn(kLongest), kSoon);
  calls.Join();
  more.Join();
  ExpectBeginnings(calls);
  ExpectBeginnings(more);
  for (int rank = 0; rank < kNumRanks; ++rank) {
    EXPECT_TRUE(WaitFor([&] {
      const v1::RankStatus status = StatusOf(rank);
      return status.num_blocks() > 0 && status.num_free_blocks() == status.num_blocks();
    })) << rank;
  }
  End();
}

TEST_F(RankReturnTest, ARankThatDiesWhileItComesBackChangesNothing) {
  ASSERT_NO_FATAL_FAILURE(Start());
  LongCalls calls(group_->address(), kNumRanks);
  ASSERT_TRUE(calls.AllStarted());
  others_[1]->Signal(SIGKILL);
  ASSERT_TRUE(WaitFor([&] { return !StatusOf(2).lost().empty(); }));
  for (const absl::Duration lives : {absl::Milliseconds(100), absl::Milliseconds(200)}) {
    const std::unique_ptr<Process> back = Process::Start(Rank(2));
    absl::SleepFor(lives);
    back->Signal(SIGKILL);
    EXPECT_LT(calls.UntilAllGoOn(kLongest), kSoon);
  }
  ASSERT_NO_FATAL_FAILURE(KillAndReturn(1, calls));
  calls.Join();
  ExpectBeginnings(calls);
  others_.pop_back();
  End();
}

TEST_F(RankReturnTest, ARankThatWasStartedHereIsStartedAgain) {
  group_ = std::make_unique<RankServer>(
      ServeArguments(model_.path(), kNumRanks, {"--restart-seconds", "1"}));
  ASSERT_TRUE(group_->ok());
  LongCalls calls(group_->address(), 2 * kNumRanks);
  ASSERT_TRUE(calls.AllStarted());
  const std::map<int, pid_t> first = group_->ranks();
  // The second stands still: it is lost by its silence, and ended before another one begins.
  for (const int rank : {1, 2}) {
    kill(first.at(rank), rank == 1 ? SIGKILL : SIGSTOP);
    ASSERT_TRUE(WaitFor([&] { return !StatusOf(rank).lost().empty(); }));
    ASSERT_TRUE(WaitFor([&] { return StatusOf(rank).lost().empty(); }));
    EXPECT_LT(calls.UntilAllGoOn(kLongest), kSoon);
    EXPECT_FALSE(ProcRuns(first.at(rank)));
  }
  const std::map<int, pid_t> now = RankChildrenOf(group_->process().pid());
  EXPECT_EQ(now.size(), size_t{kNumRanks - 1});
  calls.Join();
  ExpectBeginnings(calls);
  End();
  for (const auto& [rank, pid] : now) EXPECT_FALSE(ProcRuns(pid)) << rank;
}

}  // namespace
}  // namespace jevons
