// Ranks that die or stand still while a group serves.
#include <csignal>
#include <filesystem>

#include "gmock/gmock.h"
#include "server/engine_host.h"
#include "tests/e2e/rank_group.h"
#include "tests/parallel/free_address.h"
#include "tests/support/engine_run.h"

namespace jevons {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// Calls that run beside a test, with all that they have got.
class Calls {
 public:
  Calls(Client& client, const std::vector<v1::GenerateRequest>& requests)
      : got_(requests.size()), num_tokens_(requests.size()) {
    for (size_t i = 0; i < requests.size(); ++i) {
      threads_.emplace_back([&client, this, i, request = requests[i]] {
        got_[i].status = client.Generate(request, [&](const v1::GenerateResponse& message) {
          got_[i].Add(message);
          num_tokens_[i] += message.token_ids_size();
        });
      });
    }
  }
  ~Calls() { Join(); }

  // As many tokens more have come at every call that was not over.
  bool AllGoOn(int tokens) {
    std::vector<int> before;
    for (const std::atomic<int>& count : num_tokens_) before.push_back(count);
    return WaitFor(
        [&] {
          for (size_t i = 0; i < before.size(); ++i) {
            if (num_tokens_[i] < before[i] + tokens) return false;
          }
          return true;
        },
        kLongest);
  }
  const std::vector<Generation>& Join() {
    for (std::thread& thread : threads_) {
      if (thread.joinable()) thread.join();
    }
    return got_;
  }

 private:
  std::vector<Generation> got_;
  std::vector<std::atomic<int>> num_tokens_;
  std::vector<std::thread> threads_;
};

class RankLossTest : public testing::Test {
 protected:
  static constexpr int kTokens = 1500;

  static std::vector<v1::GenerateRequest> Requests(int count) {
    std::vector<v1::GenerateRequest> out;
    for (int i = 0; i < count; ++i) out.push_back(TinyRequest(i, kTokens));
    return out;
  }
  std::vector<Generation> OnOneRank(const std::vector<v1::GenerateRequest>& requests) const {
    RankServer alone(ServeArguments(model_.path(), 1));
    EXPECT_TRUE(alone.ok());
    return GenerateTogether(alone.client(), requests);
  }
  // Ranks get the signal one after the other in the middle of streams on every rank.
  void ExpectNothingIsSeen(int signal, int num_ranks, const std::vector<int>& lost) {
    const std::vector<v1::GenerateRequest> requests = Requests(2 * num_ranks);
    const std::vector<Generation> want = OnOneRank(requests);
    RankServer group(ServeArguments(model_.path(), num_ranks));
    ASSERT_TRUE(group.ok());
    Calls calls(group.client(), requests);
    for (const int rank : lost) {
      ASSERT_TRUE(calls.AllGoOn(20));
      const absl::Time start = absl::Now();
      kill(group.ranks().at(rank), signal);
      ASSERT_TRUE(calls.AllGoOn(20));
      const absl::Duration took = absl::Now() - start;
      RecordProperty(absl::StrCat("went_on_without_", rank, "_after_ms"),
                     absl::StrCat(absl::ToInt64Milliseconds(took)));
      EXPECT_LT(took, kSoon);
    }
    const std::vector<Generation>& got = calls.Join();
    for (size_t i = 0; i < want.size(); ++i) {
      SCOPED_TRACE(i);
      EXPECT_EQ(want[i].token_ids.size(), static_cast<size_t>(kTokens));
      ExpectSameGeneration(got[i], want[i]);
    }
    group.process().Signal(SIGTERM);
    EXPECT_EQ(group.process().Wait(kSoon), 0);
    EXPECT_TRUE(group.RanksGone());
  }
  const TinyModelFolder model_;
};

TEST_F(RankLossTest, NothingIsSeenOfAKilledRank) { ExpectNothingIsSeen(SIGKILL, 3, {1}); }

TEST_F(RankLossTest, NothingIsSeenOfARankThatStandsStill) { ExpectNothingIsSeen(SIGSTOP, 3, {2}); }

TEST_F(RankLossTest, NothingIsSeenUntilRankZeroIsAlone) {
  ExpectNothingIsSeen(SIGKILL, 4, {2, 1, 3});
}

TEST_F(RankLossTest, ASilentGroupGoesOnWithoutAKilledRank) {
  const std::vector<v1::GenerateRequest> requests = Requests(2);
  const std::vector<Generation> want = OnOneRank(requests);
  RankServer group(ServeArguments(model_.path(), 2));
  ASSERT_TRUE(group.ok());
  kill(group.ranks().at(1), SIGKILL);
  const std::vector<Generation> got = GenerateTogether(group.client(), requests);
  for (size_t i = 0; i < want.size(); ++i) ExpectSameGeneration(got[i], want[i]);
}

// The engine itself, in this process.
TEST_F(RankLossTest, TheBlocksOfTheRanksThatAreLeftAreFreeAgain) {
  const std::string leader = FreeAddress();
  std::vector<std::unique_ptr<Process>> others;
  for (const std::string rank : {"1", "2"}) {
    others.push_back(
        Process::Start(ServeArguments(model_.path(), 3, {"--rank", rank, "--leader", leader})));
  }
  EngineOptions options;
  options.model_folder = model_.path();
  options.num_threads = 1;
  options.max_num_seqs = 8;
  options.num_ranks = 3;
  options.rank_transport = RankTransport::kProcesses;
  GroupOptions place;
  place.place = {.rank = 0, .world_size = 3, .leader = leader};
  place.version = JEVONS_VERSION;
  const RealClock clock;
  const auto host =
      EngineHost::Create(options, place, &clock, [] { absl::SleepFor(absl::Milliseconds(5)); });
  ASSERT_TRUE(host.ok()) << host.status();
  Engine& engine = (*host)->engine();
  GenerationRequest request;
  request.prompt_ids = {5, 9, 3};
  request.max_new_tokens = 1000;
  request.ignore_eos = true;
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (int i = 0; i < 9; ++i) streams.push_back(*engine.Submit(request));
  ASSERT_TRUE(WaitFor([&] { return engine.stats().num_new_tokens > 500; }));
  others[0]->Signal(SIGKILL);
  // Of those that another rank has taken over, too.
  ASSERT_TRUE(WaitFor([&] { return engine.stats().num_preemptions > 0; }));
  for (int i = 0; i < 9; i += 2) streams[i]->Cancel();
  for (int i = 0; i < 9; ++i) {
    const StreamEnd end = ReadAll(*streams[i]).end;
    EXPECT_EQ(end.reason, i % 2 == 0 ? FinishReason::kCancelled : FinishReason::kLength);
  }
  const auto all_free = [&] {
    const EngineStats stats = engine.stats();
    return stats.num_free_blocks == stats.num_blocks && stats.num_running + stats.num_queued == 0;
  };
  EXPECT_TRUE(WaitFor(all_free));
  EXPECT_TRUE(engine.CheckIntegrity().ok()) << engine.CheckIntegrity();
  engine.Drain(absl::Seconds(10));
  EXPECT_TRUE(engine.failure().ok()) << engine.failure();
  EXPECT_EQ(others[1]->Wait(kLongest), 0);
}

TEST_F(RankLossTest, OfflineNothingIsSeenEither) {
  const Arguments generate = {JEVONS_BINARY,   "generate", "--model", model_.path(),
                              "--prompt-ids",  "5,9,33",   "--json",  "--ignore-eos",
                              "--max-tokens",  "4000",     "--seed",  "3",
                              "--temperature", "1"};
  const std::string want = RunProcess(generate).out;
  const std::unique_ptr<Process> group =
      Process::Start(Join(generate, {"--ranks", "3", "--transport", "processes"}));
  std::map<int, pid_t> ranks;
  ASSERT_TRUE(WaitFor([&] {
    ranks = RankChildrenOf(group->pid());
    return ranks.size() == 2;
  }));
  absl::SleepFor(absl::Seconds(1));
  kill(ranks.at(2), SIGKILL);
  std::string got;
  for (std::string line = group->ReadLine(kLongest); !line.empty();
       line = group->ReadLine(kLongest)) {
    got += line + "\n";
  }
  EXPECT_EQ(group->Wait(kSoon), 0);
  EXPECT_EQ(got, want);
}

TEST_F(RankLossTest, ExpertsWithReplicasNeedNoCheckpoint) {
  const std::vector<v1::GenerateRequest> requests = Requests(4);
  const std::vector<Generation> want = OnOneRank(requests);
  RankServer group(ServeArguments(model_.path(), 2, {"--redundant-experts", "8"}));
  ASSERT_TRUE(group.ok());
  Calls calls(group.client(), requests);
  ASSERT_TRUE(calls.AllGoOn(20));
  std::filesystem::rename(model_.path() + "/model.safetensors", model_.path() + "/moved");
  kill(group.ranks().at(1), SIGKILL);
  const std::vector<Generation>& got = calls.Join();
  for (size_t i = 0; i < want.size(); ++i) ExpectSameGeneration(got[i], want[i]);
}

TEST_F(RankLossTest, ACheckpointThatIsGoneWhenItIsNeededEndsEveryStreamWithTheFile) {
  RankServer group(ServeArguments(model_.path(), 3));
  ASSERT_TRUE(group.ok());
  EndlessCalls calls(group.client(), 6);
  ASSERT_TRUE(calls.AllStarted());
  std::filesystem::remove(model_.path() + "/model.safetensors");
  kill(group.ranks().at(1), SIGKILL);
  for (const absl::Status& status : calls.Join()) {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(".safetensors"));
  }
  EXPECT_EQ(group.process().Wait(kSoon), 1);
  EXPECT_TRUE(group.RanksGone());
}

TEST_F(RankLossTest, NoProcessOutlivesAKilledLeader) {
  RankServer group(ServeArguments(model_.path(), 3));
  ASSERT_TRUE(group.ok());
  EndlessCalls calls(group.client(), 3);
  ASSERT_TRUE(calls.AllStarted());
  group.process().Signal(SIGKILL);
  EXPECT_TRUE(group.RanksGone());
  for (const absl::Status& status : calls.Join()) {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  }
}

TEST_F(RankLossTest, ADamagedCheckpointEndsTheStartOfEveryRankWithItsName) {
  const std::string file = model_.path() + "/model.safetensors";
  std::filesystem::resize_file(file, std::filesystem::file_size(file) / 2);
  const absl::Time start = absl::Now();
  const ProcessResult result = RunProcess(ServeArguments(model_.path(), 3), {.limit = kLongest});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err, AllOf(HasSubstr(file + ": tensor"), HasSubstr("cut short"),
                                HasSubstr("rank 1 has lost its group"),
                                HasSubstr("rank 2 has lost its group")));
  EXPECT_LT(absl::Now() - start, kSoon);
}

}  // namespace
}  // namespace jevons
