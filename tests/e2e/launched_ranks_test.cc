// Ranks that a launcher started, and groups that do not fit together.
#include <csignal>

#include "gmock/gmock.h"
#include "server/rank_follower.h"
#include "tests/e2e/rank_group.h"
#include "tests/parallel/free_address.h"

namespace jevons {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// Nothing but the control plane binds them.
class LaunchedRanksTest : public testing::Test {
 protected:
  Arguments Rank(int rank, const Arguments& more = {}) const {
    return RankOf(rank, 2, model_.path(), more);
  }
  Arguments RankOf(int rank, int num_ranks, const std::string& model, const Arguments& more) const {
    return Join(ServeArguments(model, num_ranks),
                Join({"--rank", absl::StrCat(rank), "--leader", leader_}, more));
  }
  // The error of rank `observed`, while the other one of the two runs in the background.
  std::string ErrorOf(const Arguments& observed, const Arguments& other) const {
    const std::unique_ptr<Process> beside = Process::Start(other);
    const absl::Time start = absl::Now();
    const ProcessResult result = RunProcess(observed, {.limit = kLongest});
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_LT(absl::Now() - start, kSoon);
    EXPECT_NE(beside->Wait(kSoon), 0);
    return result.err;
  }

  const TinyModelFolder model_;
  const std::string leader_ = FreeAddress();
};

TEST_F(LaunchedRanksTest, ServeAndEndWithTheirLeader) {
  const std::unique_ptr<Process> other = Process::Start(Rank(1));
  RankServer group(Rank(0));
  ASSERT_TRUE(group.ok());
  EXPECT_TRUE(Generate(group.client(), TinyRequest(1, 5)).status.ok());
  // A signal to a rank alone does not end what it computes.
  other->Signal(SIGTERM);
  EXPECT_TRUE(Generate(group.client(), TinyRequest(1, 5)).status.ok());
  group.process().Signal(SIGTERM);
  EXPECT_EQ(group.process().Wait(kSoon), 0);
  EXPECT_EQ(other->Wait(kSoon), 0);
}

TEST_F(LaunchedRanksTest, EndByThemselvesAfterTheirLeader) {
  for (const int signal : {SIGKILL, SIGSTOP}) {
    SCOPED_TRACE(signal);
    const std::unique_ptr<Process> other = Process::Start(Rank(1));
    RankServer group(Rank(0));
    ASSERT_TRUE(group.ok());
    EndlessCalls calls(group.client(), 2);
    ASSERT_TRUE(calls.AllStarted());
    group.process().Signal(signal);
    EXPECT_EQ(other->Wait(kSoon), 1);
    group.process().Signal(SIGKILL);
  }
}

TEST_F(LaunchedRanksTest, ARankThatWakesUpFindsItselfOutside) {
  const std::unique_ptr<Process> other = Process::Start(Rank(1));
  RankServer group(Rank(0));
  ASSERT_TRUE(group.ok());
  const Generation want = Generate(group.client(), TinyRequest(1, 5));
  other->Signal(SIGSTOP);
  ExpectSameGeneration(Generate(group.client(), TinyRequest(1, 5)), want);
  other->Signal(SIGCONT);
  EXPECT_EQ(other->Wait(kSoon), 1);
  // A new process may come in its place.
  const std::unique_ptr<Process> back = Process::Start(Rank(1));
  ASSERT_TRUE(WaitFor([&] {
    const auto status = group.client().GetStatus();
    return status.ok() && status->ranks(1).lost().empty();
  }));
  ExpectSameGeneration(Generate(group.client(), TinyRequest(1, 5)), want);
  group.process().Signal(SIGTERM);
  EXPECT_EQ(group.process().Wait(kSoon), 0);
  EXPECT_EQ(back->Wait(kSoon), 0);
  // The ports are free again.
  const std::unique_ptr<Process> next = Process::Start(Rank(1));
  RankServer again(Rank(0));
  ASSERT_TRUE(again.ok());
  EXPECT_TRUE(Generate(again.client(), TinyRequest(1, 5)).status.ok());
}

TEST_F(LaunchedRanksTest, OfDifferentCheckpointsRefuseEachOtherByName) {
  const TinyModelFolder another(6);
  const Arguments follower = RankOf(1, 2, another.path(), {});
  for (const bool leads : {true, false}) {
    const std::string error = leads ? ErrorOf(Rank(0), follower) : ErrorOf(follower, Rank(0));
    EXPECT_THAT(error, AllOf(HasSubstr("rank 1 does not fit"), HasSubstr("the checkpoint is"),
                             HasSubstr("at rank 0 and")));
  }
}

TEST_F(LaunchedRanksTest, OfDifferentFlagsRefuseEachOtherByName) {
  const std::string error = ErrorOf(Rank(0), Rank(1, {"--max-num-batched-tokens", "64"}));
  EXPECT_THAT(error, HasSubstr("--max-num-batched-tokens is 512 at rank 0 and 64 there"));
}

TEST_F(LaunchedRanksTest, OfDifferentWorldSizesRefuseEachOtherByName) {
  const std::string error = ErrorOf(Rank(0), RankOf(1, 3, model_.path(), {}));
  EXPECT_THAT(error, HasSubstr("the world size is 2 at rank 0 and 3 there"));
}

TEST_F(LaunchedRanksTest, OfDifferentVersionsRefuseEachOtherByName) {
  const std::unique_ptr<Process> leader = Process::Start(Rank(0));
  EngineOptions options;
  options.model_folder = model_.path();
  options.backend = BackendKind::kCpu;
  options.max_num_seqs = 8;
  options.num_ranks = 2;
  const absl::Status status =
      RunRankFollower({.engine = options, .rank = 1, .leader = leader_, .version = "0.0.0"});
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("the version is"), HasSubstr("at rank 0 and 0.0.0 there")));
  EXPECT_EQ(leader->Wait(kSoon), 1);
}

TEST_F(LaunchedRanksTest, ARankThatIsThereAlreadyIsRefusedAndTheGroupGoesOn) {
  const std::unique_ptr<Process> other = Process::Start(Rank(1));
  RankServer group(Rank(0));
  ASSERT_TRUE(group.ok());
  const ProcessResult late = RunProcess(Rank(1), {.limit = kLongest});
  EXPECT_EQ(late.exit_code, 1);
  EXPECT_THAT(late.err, HasSubstr("rank 1 of 2 has joined " + leader_ + " already"));
  EXPECT_TRUE(Generate(group.client(), TinyRequest(1, 5)).status.ok());
}

TEST_F(LaunchedRanksTest, ALeaderThatDoesNotAnswerIsNamed) {
  const absl::Time start = absl::Now();
  const ProcessResult result = RunProcess(Rank(1, {"--join-seconds", "2"}), {.limit = kLongest});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, AllOf(HasSubstr("rank 1 of 2 joining rank 0 at " + leader_),
                                HasSubstr("no answer within 2s")));
  EXPECT_LT(absl::Now() - start, kSoon);
}

TEST_F(LaunchedRanksTest, ARankThatDoesNotComeIsNamed) {
  const ProcessResult result =
      RunProcess(RankOf(0, 3, model_.path(), {"--join-seconds", "2"}), {.limit = kLongest});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("ranks 1, 2 of 3 did not join at " + leader_ + " within 2s"));
}

TEST_F(LaunchedRanksTest, APortInUseIsNamed) {
  const std::unique_ptr<Process> other = Process::Start(Rank(1));
  RankServer group(Rank(0));
  ASSERT_TRUE(group.ok());
  const ProcessResult second = RunProcess(Rank(0), {.limit = kLongest});
  EXPECT_EQ(second.exit_code, 1);
  EXPECT_THAT(second.err, AllOf(HasSubstr("cannot listen on " + leader_), HasSubstr("in use")));
}

TEST_F(LaunchedRanksTest, TakeTheirPlaceFromTheLaunchersEnvironment) {
  const Arguments alone = {JEVONS_BINARY,
                           "generate",
                           "--model",
                           model_.path(),
                           "--prompt-ids",
                           "5,9",
                           "--max-tokens",
                           "8",
                           "--json",
                           "--seed",
                           "1"};
  const Arguments ranks = Join(alone, {"--transport", "processes", "--leader", leader_});
  const auto run = [&](const std::string& rank) {
    return RunProcess(ranks,
                      {.environment = {"OMPI_COMM_WORLD_RANK=" + rank, "OMPI_COMM_WORLD_SIZE=2"},
                       .limit = kLongest});
  };
  ProcessResult follower;
  std::thread beside([&] { follower = run("1"); });
  const ProcessResult leader = run("0");
  beside.join();
  EXPECT_EQ(follower.exit_code, 0) << follower.err;
  EXPECT_EQ(follower.out, "");
  EXPECT_EQ(leader.exit_code, 0) << leader.err;
  EXPECT_EQ(leader.out, RunProcess(alone).out);
}

TEST_F(LaunchedRanksTest, AFlagAgainstTheEnvironmentIsAnErrorThatNamesBoth) {
  const ProcessResult result =
      RunProcess(Rank(1), {.environment = {"SLURM_PROCID=0", "SLURM_NTASKS=2"}, .limit = kLongest});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, HasSubstr("--rank 1 contradicts SLURM_PROCID=0"));
}

}  // namespace
}  // namespace jevons
