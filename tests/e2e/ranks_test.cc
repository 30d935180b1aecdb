// A group of ranks that are processes: the bytes of one rank, cancels, deadlines, draining, silence.
#include <csignal>

#include "gmock/gmock.h"
#include "server/engine_host.h"
#include "tests/e2e/rank_group.h"
#include "tests/parallel/free_address.h"
#include "tests/support/engine_run.h"

namespace jevons {
namespace {

using testing::HasSubstr;

Arguments GenerateArguments(const std::string& model, const Arguments& ranks) {
  return Join(
      {JEVONS_BINARY, "generate", "--model", model, "--json", "--seed", "7", "--logprobs", "3"},
      ranks);
}

Arguments Ranks(int num_ranks, const std::string& transport) {
  return {"--ranks", absl::StrCat(num_ranks), "--transport", transport};
}

void ExpectSameOutput(const Arguments& alone, const Arguments& together) {
  const ProcessResult want = RunProcess(alone);
  ASSERT_EQ(want.exit_code, 0) << want.err;
  ASSERT_THAT(want.out, HasSubstr("output_ids"));
  const ProcessResult got = RunProcess(together);
  EXPECT_EQ(got.exit_code, 0) << got.err;
  EXPECT_EQ(got.out, want.out);
}

TEST(RanksTest, GenerateGivesTheBytesOfOneRank) {
  const TinyModelFolder model;
  const Arguments prompt = {"--prompt-ids",  "5,9,33,2,17", "--max-tokens", "40",
                            "--temperature", "1",           "--ignore-eos"};
  const auto arguments = [&](const Arguments& ranks) {
    return GenerateArguments(model.path(), Join(prompt, ranks));
  };
  ExpectSameOutput(arguments({}), arguments(Ranks(2, "processes")));
  ExpectSameOutput(arguments({}), arguments(Ranks(4, "processes")));
  ExpectSameOutput(arguments({}), arguments(Ranks(2, "threads")));
  ExpectSameOutput(arguments(Ranks(1, "processes")),
                   arguments(Join(Ranks(3, "processes"),
                                  {"--redundant-experts", "4", "--overlap-exchange", "batches"})));
}

TEST(RanksTest, GenerateWithTheDemoModelGivesTheBytesOfOneRank) {
  const Arguments prompt = {"--prompt", "12 + 7", "--max-tokens", "24", "--ignore-eos"};
  ExpectSameOutput(GenerateArguments(DemoModelPath(), prompt),
                   GenerateArguments(DemoModelPath(), Join(prompt, Ranks(2, "processes"))));
}

class ServeRanksTest : public testing::TestWithParam<int> {
 protected:
  const TinyModelFolder model_;
};

// With as many requests as ranks and more, every rank has some.
TEST_P(ServeRanksTest, ConcurrentRequestsGiveTheBytesOfOneRank) {
  std::vector<v1::GenerateRequest> requests;
  for (int i = 0; i < 9; ++i) requests.push_back(TinyRequest(i, 10 + 3 * i));
  RankServer alone(ServeArguments(model_.path(), 1));
  ASSERT_TRUE(alone.ok());
  const std::vector<Generation> want = GenerateTogether(alone.client(), requests);
  RankServer group(ServeArguments(model_.path(), GetParam()));
  ASSERT_TRUE(group.ok());
  EXPECT_THAT(group.ready(), HasSubstr(absl::StrCat(GetParam(), " ranks over gloo")));
  EXPECT_EQ(group.ranks().size(), static_cast<size_t>(GetParam() - 1));
  const std::vector<Generation> got = GenerateTogether(group.client(), requests);
  for (size_t i = 0; i < requests.size(); ++i) {
    SCOPED_TRACE(i);
    ASSERT_TRUE(want[i].status.ok()) << want[i].status;
    ExpectSameGeneration(got[i], want[i]);
  }
  // One at a time, and after that: the same.
  ExpectSameGeneration(Generate(group.client(), requests[3]), want[3]);
}

TEST_P(ServeRanksTest, CancelsAndDeadlinesEndRequestsOnEveryRank) {
  RankServer group(ServeArguments(model_.path(), GetParam()));
  ASSERT_TRUE(group.ok());
  const Generation want = Generate(group.client(), TinyRequest(2, 12));
  const int count = 2 * GetParam();
  std::vector<CallHandle> handles(count);
  std::vector<Generation> got(count);
  std::atomic<int> num_started = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) {
    threads.emplace_back([&, i] {
      CallOptions options = {.handle = &handles[i]};
      if (i % 2 == 0) options.deadline = absl::Now() + absl::Seconds(2);
      bool first = true;
      got[i].status = group.client().Generate(
          TinyRequest(i, 50000),
          [&](const v1::GenerateResponse& message) {
            if (message.token_ids_size() == 0 || !first) return;
            first = false;
            ++num_started;
          },
          options);
    });
  }
  EXPECT_TRUE(WaitFor([&] { return num_started == count; }));
  for (int i = 1; i < count; i += 2) handles[i].Cancel();
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < count; ++i) {
    EXPECT_EQ(got[i].status.code(),
              i % 2 == 0 ? absl::StatusCode::kDeadlineExceeded : absl::StatusCode::kCancelled)
        << got[i].status;
  }
  ExpectSameGeneration(Generate(group.client(), TinyRequest(2, 12)), want);
  // Nothing of them is left: the drain has nobody to wait for.
  group.process().Signal(SIGTERM);
  EXPECT_EQ(group.process().Wait(absl::Seconds(60)), 0);
  EXPECT_TRUE(group.RanksGone());
}

TEST_P(ServeRanksTest, SigtermLetsAcceptedRequestsFinishAndEndsEveryProcess) {
  RankServer group(ServeArguments(model_.path(), GetParam()));
  ASSERT_TRUE(group.ok());
  std::vector<std::thread> threads;
  std::vector<Generation> got(GetParam());
  std::atomic<int> num_started = 0;
  for (int i = 0; i < GetParam(); ++i) {
    threads.emplace_back([&, i] {
      got[i].status =
          group.client().Generate(TinyRequest(i, 400), [&, i](const v1::GenerateResponse& message) {
            if (got[i].num_messages == 0) ++num_started;
            got[i].Add(message);
          });
    });
  }
  EXPECT_TRUE(WaitFor([&] { return num_started == GetParam(); }));
  group.process().Signal(SIGTERM);
  for (std::thread& thread : threads) thread.join();
  for (const Generation& generation : got) {
    EXPECT_TRUE(generation.status.ok()) << generation.status;
    EXPECT_EQ(generation.token_ids.size(), 400u);
  }
  EXPECT_EQ(group.process().Wait(kLongest), 0);
  EXPECT_TRUE(group.RanksGone());
}

INSTANTIATE_TEST_SUITE_P(Sizes, ServeRanksTest, testing::Values(2, 4));

// Rank 0 here, and another one.
class TwoRanks {
 public:
  explicit TwoRanks(int32_t max_queued_requests)
      : other_(Process::Start(
            ServeArguments(model_.path(), 2,
                           {"--rank", "1", "--leader", leader_, "--max-queued-requests",
                            std::to_string(max_queued_requests)}))) {
    EngineOptions options;
    options.model_folder = model_.path();
    options.num_threads = 1;
    options.max_num_seqs = 8;
    options.max_queued_requests = max_queued_requests;
    options.num_ranks = 2;
    options.rank_transport = RankTransport::kProcesses;
    GroupOptions group;
    group.place = {.rank = 0, .world_size = 2, .leader = leader_};
    group.version = JEVONS_VERSION;
    host_ =
        EngineHost::Create(options, group, &clock_, [] { absl::SleepFor(absl::Milliseconds(5)); });
  }

  bool ok() const { return host_.ok(); }
  const absl::Status& status() const { return host_.status(); }
  Engine& engine() { return (*host_)->engine(); }
  Process& other() { return *other_; }

 private:
  const TinyModelFolder model_;
  const std::string leader_ = FreeAddress();
  const RealClock clock_;
  const std::unique_ptr<Process> other_;
  absl::StatusOr<std::unique_ptr<EngineHost>> host_ = absl::UnknownError("not made");
};

// The front end in this process, rank 1 in another one.
TEST(RanksTest, TheEngineOfAGroupCountsChecksAndRefusesForEveryRank) {
  TwoRanks ranks(1);
  ASSERT_TRUE(ranks.ok()) << ranks.status();
  Engine& engine = ranks.engine();

  // Eight run on each rank, and one waits.
  GenerationRequest request;
  request.prompt_ids = {5, 9, 3};
  request.max_new_tokens = 50000;
  request.ignore_eos = true;
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (int i = 0; i < 16; ++i) {
    auto stream = engine.Submit(request);
    ASSERT_TRUE(stream.ok()) << i << ": " << stream.status();
    streams.push_back(*stream);
    ASSERT_TRUE(WaitFor([&] { return engine.stats().num_running == i + 1; }));
  }
  for (int i = 0; i < 2; ++i) streams.push_back(*engine.Submit(request));
  const absl::Status full = engine.Submit(request).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted) << full;
  EXPECT_THAT(std::string(full.message()), HasSubstr("the limit is 1"));
  EXPECT_EQ(engine.stats().num_queued, 2);
  EXPECT_TRUE(engine.CheckIntegrity().ok()) << engine.CheckIntegrity();
  request.prompt_ids = {64};
  EXPECT_EQ(engine.Submit(request).status().code(), absl::StatusCode::kInvalidArgument);

  for (auto& stream : streams) stream->Cancel();
  for (auto& stream : streams) {
    EXPECT_EQ(ReadAll(*stream).end.reason, FinishReason::kCancelled);
  }
  EXPECT_TRUE(WaitFor([&] { return engine.stats().num_free_blocks == engine.stats().num_blocks; }));
  EXPECT_TRUE(WaitFor([&] { return engine.stats().num_requests == 18; }));
  EXPECT_TRUE(engine.CheckIntegrity().ok()) << engine.CheckIntegrity();
  engine.Drain(absl::Seconds(10));
  EXPECT_TRUE(engine.failure().ok()) << engine.failure();
  EXPECT_EQ(ranks.other().Wait(kLongest), 0);
}

// With every request in another rank's way gone, the one that has the prefix is chosen.
TEST(RanksTest, ARequestGoesToTheRankThatHasItsPrefix) {
  TwoRanks ranks(8);
  ASSERT_TRUE(ranks.ok()) << ranks.status();
  Engine& engine = ranks.engine();
  const auto request = [](int32_t token_id, int32_t num_prompt, int32_t num_new) {
    GenerationRequest out;
    out.prompt_ids.assign(static_cast<size_t>(num_prompt), token_id);
    out.max_new_tokens = num_new;
    out.ignore_eos = true;
    return out;
  };
  // A heartbeat may be late.
  int32_t num_cached = 0;
  for (int32_t attempt = 0; attempt < 50 && num_cached == 0; ++attempt) {
    const auto on_rank_0 = *engine.Submit(request(60, 3, 50000));
    const auto on_rank_1 = *engine.Submit(request(attempt, 200, 2));
    EXPECT_TRUE(ReadAll(*on_rank_1).end.error.ok());
    on_rank_0->Cancel();
    ReadAll(*on_rank_0);
    ASSERT_TRUE(WaitFor([&] { return engine.stats().num_running == 0; }));
    absl::SleepFor(absl::Milliseconds(20 * attempt));
    num_cached = ReadAll(**engine.Submit(request(attempt, 210, 2))).end.usage.cached_tokens;
  }
  EXPECT_EQ(num_cached, 192);
}

TEST(RanksTest, SilenceCostsNearlyNothingAndTheNextRequestStartsAtOnce) {
  const TinyModelFolder model;
  RankServer group(ServeArguments(model.path(), 3));
  ASSERT_TRUE(group.ok());
  const Generation want = Generate(group.client(), TinyRequest(1, 5));
  std::vector<pid_t> processes = {group.process().pid()};
  for (const auto& [rank, pid] : group.ranks()) processes.push_back(pid);
  const auto cpu = [&] {
    double seconds = 0;
    for (const pid_t pid : processes) seconds += ProcCpuSeconds(pid);
    return seconds;
  };
  const double before = cpu();
  constexpr double kSilence = 5;
  absl::SleepFor(absl::Seconds(kSilence));
  const double fraction = (cpu() - before) / kSilence;
  RecordProperty("percent_of_a_core", absl::StrCat(100 * fraction));
  EXPECT_LT(fraction, 0.02);
  ExpectSameGeneration(Generate(group.client(), TinyRequest(1, 5)), want);
}

}  // namespace
}  // namespace jevons
