#include "engine/engine_group.h"

#include <sys/resource.h>

#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "base/random.h"
#include "gtest/gtest.h"
#include "tests/support/engine_run.h"
#include "tests/support/skewed_checkpoint.h"
#include "tests/support/tiny_model.h"

namespace jevons {
namespace {

EngineOptions Options(int32_t num_ranks) {
  EngineOptions options;
  options.num_ranks = num_ranks;
  options.num_threads = 1;
  options.kv_cache_tokens = 2048;
  options.max_num_seqs = 8;
  options.max_num_batched_tokens = 48;
  return options;
}

std::unique_ptr<Engine> StartGroup(const ModelConfig& config, EngineOptions options,
                                   const Clock* clock) {
  options.cpu_target = TestCpuTarget();
  options.backend = BackendKind::kCpu;
  auto group = LoadModelGroup(options, config, RandomCheckpoint(config, 7));
  EXPECT_TRUE(group.ok()) << group.status();
  return StartEngine(*std::move(group), clock);
}

double CpuSeconds() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) { return t.tv_sec + t.tv_usec * 1e-6; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

class EngineGroupTest : public testing::TestWithParam<ModelConfig> {
 protected:
  void SetUp() override { SKIP_WITHOUT_TEST_BACKEND(); }
  RealClock clock_;
};

TEST_P(EngineGroupTest, GivesTheBytesOfOneRank) {
  const std::vector<GenerationRequest> requests = RandomRequests(9, 12);
  const auto alone = StartTinyEngine(GetParam(), Options(1), &clock_);
  const std::vector<Outcome> want = RunTogether(*alone, requests);
  for (int32_t num_ranks : {2, 4, 8}) {
    SCOPED_TRACE(num_ranks);
    EngineOptions options = Options(num_ranks);
    options.num_redundant_experts = num_ranks == 4 ? 4 : 0;
    const auto group = StartGroup(GetParam(), options, &clock_);
    const std::vector<Outcome> got = RunTogether(*group, requests);
    for (size_t i = 0; i < want.size(); ++i) {
      SCOPED_TRACE(i);
      ASSERT_TRUE(want[i].end.error.ok()) << want[i].end.error;
      ExpectSame(got[i], want[i]);
    }
    EXPECT_TRUE(group->CheckIntegrity().ok());
    EXPECT_EQ(group->stats().num_free_blocks, group->stats().num_blocks);
    EXPECT_EQ(group->stats().num_new_tokens, 9 * 12);
  }
}

// Prompts make steps that are cut in two, decoding makes others.
TEST_P(EngineGroupTest, OverlapOfExchangesAndComputingGivesTheBytesOfOneRank) {
  const std::vector<GenerationRequest> requests = RandomRequests(9, 12);
  const auto alone = StartTinyEngine(GetParam(), Options(1), &clock_);
  const std::vector<Outcome> want = RunTogether(*alone, requests);
  for (const auto overlap : {ExchangeOverlap::kOff, ExchangeOverlap::kBatches}) {
    SCOPED_TRACE(ExchangeOverlapName(overlap));
    EngineOptions options = Options(2);
    options.max_num_batched_tokens = 99;
    options.exchange_overlap = overlap;
    const auto group = StartGroup(GetParam(), options, &clock_);
    const std::vector<Outcome> got = RunTogether(*group, requests);
    for (size_t i = 0; i < want.size(); ++i) ExpectSame(got[i], want[i]);
    EXPECT_TRUE(group->CheckIntegrity().ok());
  }
}

// Ranks without a request take part; when all are silent nothing spins, and the next request starts.
TEST_P(EngineGroupTest, OneRequestThenOneLongThenSilenceThenOneAgain) {
  const std::vector<GenerationRequest> short_ones = RandomRequests(4, 3);
  const GenerationRequest long_one = RandomRequests(1, 60)[0];
  const auto alone = StartTinyEngine(GetParam(), Options(1), &clock_);
  const Outcome want_long = RunTogether(*alone, {long_one})[0];
  const Outcome want_short = RunTogether(*alone, {short_ones[1]})[0];

  const auto group = StartGroup(GetParam(), Options(4), &clock_);
  ExpectSame(RunTogether(*group, {short_ones[1]})[0], want_short);
  std::vector<GenerationRequest> mixed = short_ones;
  mixed.push_back(long_one);
  ExpectSame(RunTogether(*group, mixed)[4], want_long);
  const double before = CpuSeconds();
  absl::SleepFor(absl::Seconds(1));
  EXPECT_LT(CpuSeconds() - before, 0.02);
  ExpectSame(RunTogether(*group, {short_ones[1]})[0], want_short);
}

TEST_P(EngineGroupTest, RequestsGoToTheRankWithTheFewest) {
  const auto group = StartGroup(GetParam(), Options(4), &clock_);
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (const GenerationRequest& request : RandomRequests(4, 200)) {
    streams.push_back(*group->Submit(request));
  }
  // One on each rank: each holds the blocks of one sequence.
  while (group->stats().num_running < 4) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(group->stats().num_queued, 0);
  for (auto& stream : streams) EXPECT_TRUE(ReadAll(*stream).end.error.ok());
}

TEST_P(EngineGroupTest, RequestsThatComeAtOnceAreSpreadAsThoseInTurn) {
  constexpr int kNumRanks = 4;
  constexpr int kPerRank = 4;
  const auto group = StartGroup(GetParam(), Options(kNumRanks), &clock_);
  const std::vector<GenerationRequest> requests = RandomRequests(kNumRanks * kPerRank, 400);
  std::vector<std::shared_ptr<TokenStream>> streams(requests.size());
  absl::Notification go;
  std::vector<std::thread> threads;
  for (size_t i = 0; i < requests.size(); ++i) {
    threads.emplace_back([&, i] {
      go.WaitForNotification();
      streams[i] = *group->Submit(requests[i]);
    });
  }
  go.Notify();
  for (std::thread& thread : threads) thread.join();
  for (const RankStats& rank : group->rank_stats()) EXPECT_EQ(rank.stats.num_requests, kPerRank);
  for (auto& stream : streams) stream->Cancel();
  for (auto& stream : streams) ReadAll(*stream);
}

TEST_P(EngineGroupTest, AConversationGoesWhereItsFirstTurnIsCached) {
  const auto group = StartGroup(GetParam(), Options(4), &clock_);
  std::vector<GenerationRequest> turns = RandomRequests(8, 3);
  for (size_t i = 0; i < turns.size(); ++i) {
    turns[i].num_prompt_logprobs = -1;
    turns[i].prompt_ids.assign(400, static_cast<int32_t>(i));
  }
  RunTogether(*group, turns);  // two on each rank
  for (GenerationRequest& turn : turns) {
    turn.prompt_ids.resize(450, 7);
    EXPECT_TRUE(group->CheckIntegrity().ok());  // and each rank has said what it has
    EXPECT_EQ(RunTogether(*group, {turn})[0].end.usage.cached_tokens, 384);
  }
  // Not behind a queue of others, though.
  std::vector<GenerationRequest> many(8, turns[0]);
  const std::vector<Outcome> got = RunTogether(*group, many);
  EXPECT_LT(std::count_if(got.begin(), got.end(),
                          [](const Outcome& o) { return o.end.usage.cached_tokens > 0; }),
            8);
}

// Ranks step together: however long the prompt of one is, a stream of another gets a token in each step.
TEST_P(EngineGroupTest, DecodeGetsATokenInEachStepOfALongPromptOnAnotherRank) {
  EngineOptions options = Options(2);
  options.max_num_batched_tokens = 8;
  const auto group = StartGroup(GetParam(), options, &clock_);
  EXPECT_TRUE(group->CheckIntegrity().ok());  // and rank 0 is as free as rank 1, as far as is known
  GenerationRequest decodes = RandomRequests(1, 1900)[0];
  decodes.prompt_ids.resize(1);
  const auto stream = *group->Submit(decodes);
  while (group->stats().num_new_tokens < 5) absl::SleepFor(absl::Milliseconds(1));
  GenerationRequest is_long = RandomRequests(1, 1)[0];
  is_long.prompt_ids.resize(600, 7);
  const RankStats before = group->rank_stats()[0];
  EXPECT_TRUE(ReadAll(**group->Submit(is_long)).end.error.ok());
  EXPECT_TRUE(group->CheckIntegrity().ok());  // and each rank has said what it has done
  const std::vector<RankStats> after = group->rank_stats();
  EXPECT_EQ(after[1].stats.num_steps, 600 / 8);
  EXPECT_GE(after[0].stats.num_new_tokens - before.stats.num_new_tokens, 600 / 8 - 1);
  EXPECT_EQ(after[0].stats.num_steps, after[0].stats.num_new_tokens);
  EXPECT_LT(after[0].stats.num_new_tokens, decodes.max_new_tokens);
  stream->Cancel();
  ReadAll(*stream);
}

TEST_P(EngineGroupTest, TheLargestGapBetweenTwoTokensOfARequestIsKept) {
  FakeClock clock;
  const auto group = StartGroup(GetParam(), Options(2), &clock);
  const auto stream = *group->Submit(RandomRequests(1, 1900)[0]);
  const auto wait_for_more = [&](int tokens) {
    const int64_t wanted = group->stats().num_new_tokens + tokens;
    while (group->stats().num_new_tokens < wanted) absl::SleepFor(absl::Milliseconds(1));
  };
  wait_for_more(3);
  EXPECT_EQ(group->stats().largest_token_gap, absl::ZeroDuration());
  for (const int seconds : {7, 2}) {
    clock.Advance(absl::Seconds(seconds));
    wait_for_more(3);
  }
  EXPECT_EQ(group->stats().largest_token_gap, absl::Seconds(7));
  stream->Cancel();
  ReadAll(*stream);
}

TEST_P(EngineGroupTest, CancelsAndRandomLengthsLeaveNothingBehind) {
  const auto group = StartGroup(GetParam(), Options(3), &clock_);
  Random random(3);
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (GenerationRequest& request : RandomRequests(40, 1)) {
    request.max_new_tokens = 1 + static_cast<int32_t>(random.Below(30));
    streams.push_back(*group->Submit(request));
    if (random.Below(3) == 0) streams.back()->Cancel();
  }
  for (auto& stream : streams) {
    const StreamEnd end = ReadAll(*stream).end;
    EXPECT_TRUE(end.reason == FinishReason::kLength || end.reason == FinishReason::kCancelled);
  }
  EXPECT_TRUE(group->CheckIntegrity().ok());
  EXPECT_EQ(group->stats().num_free_blocks, group->stats().num_blocks);
}

TEST_P(EngineGroupTest, DrainLetsShortRequestsFinishAndEndsLongOnesWithAReason) {
  const auto group = StartGroup(GetParam(), Options(2), &clock_);
  const auto short_one = *group->Submit(RandomRequests(1, 2)[0]);
  EXPECT_EQ(ReadAll(*short_one).end.reason, FinishReason::kLength);
  GenerationRequest endless = RandomRequests(1, 1900)[0];
  const auto long_one = *group->Submit(endless);
  group->Drain(absl::Milliseconds(20));
  EXPECT_EQ(ReadAll(*long_one).end.error.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(group->Submit(endless).status().code(), absl::StatusCode::kUnavailable);
}

INSTANTIATE_TEST_SUITE_P(Models, EngineGroupTest,
                         testing::Values(TinyV2Config(), TinyV3Config(), DenseConfig()),
                         [](const auto& info) {
                           return info.param.n_routed_experts > 0 ? info.param.model_type : "dense";
                         });

class ExpertBalancerTest : public testing::Test {
 protected:
  void SetUp() override { SKIP_WITHOUT_TEST_BACKEND(); }

  // Half of the experts have all the work.
  static SkewedCheckpoint Skewed() { return {TinyV3Config(), 7, 6}; }

  using Reopen = decltype(LoadedModel::reopen);
  // `reopen_of(rank)` opens the checkpoint once more.
  std::unique_ptr<Engine> Start(int32_t num_ranks, std::function<Reopen(int)> reopen_of) {
    EngineOptions options = Options(num_ranks);
    options.num_redundant_experts = 4;
    options.balance_interval_steps = 5;
    options.cpu_target = TestCpuTarget();
    options.backend = BackendKind::kCpu;
    auto group = LoadModelGroup(options, TinyV3Config(), Skewed());
    EXPECT_TRUE(group.ok()) << group.status();
    for (int r = 0; r < num_ranks; ++r) group->models[r].reopen = reopen_of(r);
    return StartEngine(*std::move(group), &clock_);
  }
  std::vector<Outcome> RunOnOneRank(const std::vector<GenerationRequest>& requests) {
    EngineOptions options = Options(1);
    options.cpu_target = TestCpuTarget();
    options.backend = BackendKind::kCpu;
    auto model = LoadModel(options, TinyV3Config(), Skewed(), nullptr, nullptr);
    EXPECT_TRUE(model.ok()) << model.status();
    return RunTogether(*StartEngine(*std::move(model), &clock_), requests);
  }
  static absl::StatusOr<std::unique_ptr<Checkpoint>> OpenAgain() {
    return std::make_unique<SkewedCheckpoint>(Skewed());
  }

  RealClock clock_;
  std::vector<GenerationRequest> requests_ = RandomRequests(8, 150);
};

TEST_F(ExpertBalancerTest, ExpertsMoveUnderwayAndTheBytesStay) {
  const std::vector<Outcome> want = RunOnOneRank(requests_);
  const auto group = Start(4, [](int) { return OpenAgain; });
  // Both MoE layers move, sooner or later; one more round runs with all of them moved.
  bool moved = false;
  for (int round = 0; round < 50 && !moved; ++round) {
    moved = group->stats().num_moved_layers >= 2;
    const std::vector<Outcome> got = RunTogether(*group, requests_);
    for (size_t i = 0; i < want.size(); ++i) ExpectSame(got[i], want[i]);
  }
  EXPECT_TRUE(moved);
}

TEST_F(ExpertBalancerTest, ARankThatCannotReadEndsThePlanForAllAndNothingElse) {
  const auto group = Start(3, [](int rank) -> Reopen {
    if (rank != 1) return OpenAgain;
    return [] { return absl::DataLossError("the disk is gone"); };
  });
  const std::vector<Outcome> got = RunTogether(*group, requests_);
  EXPECT_EQ(group->stats().num_moved_layers, 0);
  EXPECT_TRUE(group->failure().ok());
  const std::vector<Outcome> want = RunOnOneRank(requests_);
  for (size_t i = 0; i < want.size(); ++i) ExpectSame(got[i], want[i]);
}

// A rank whose model fails ends every stream of the group with the reason.
TEST(EngineGroupFailureTest, ABrokenGroupEndsEveryStream) {
  SKIP_WITHOUT_TEST_BACKEND();
  EngineOptions options = Options(3);
  options.cpu_target = TestCpuTarget();
  options.backend = BackendKind::kCpu;
  auto loaded = LoadModelGroup(options, TinyV3Config(), RandomCheckpoint(TinyV3Config(), 7));
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  Communicator* const third = loaded->models[2].communicator.get();
  const RealClock clock;
  const auto group = StartEngine(*std::move(loaded), &clock);
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (const GenerationRequest& request : RandomRequests(6, 1000)) {
    streams.push_back(*group->Submit(request));
  }
  while (group->stats().num_new_tokens < 20) absl::SleepFor(absl::Milliseconds(1));
  third->Abort("its machine burns");
  for (auto& stream : streams) {
    const StreamEnd end = ReadAll(*stream).end;
    EXPECT_EQ(end.error.code(), absl::StatusCode::kUnavailable);
    EXPECT_NE(end.error.message().find("its machine burns"), std::string::npos) << end.error;
  }
  EXPECT_EQ(group->failure().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(group->Submit(RandomRequests(1, 1)[0]).status().code(), absl::StatusCode::kUnavailable);
}

// What they send each other would be read as host memory.
TEST(EngineGroupFailureTest, RanksOnGpusAreRefused) {
  EngineOptions options = Options(2);
  options.backend = BackendKind::kCuda;
  const auto group = LoadModelGroup(options, TinyV3Config(), RandomCheckpoint(TinyV3Config(), 7));
  EXPECT_EQ(group.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(group.status().message(),
            "2 ranks with backend cuda need transport nccl or processes, given threads");
}

TEST(EngineGroupFailureTest, RanksOutOfRangeAreNamed) {
  EngineOptions options = Options(257);
  const auto group = LoadModelGroup(options, TinyV3Config(), RandomCheckpoint(TinyV3Config(), 7));
  EXPECT_EQ(group.status().message(), "ranks must be in [1, 256], given 257");
}

}  // namespace
}  // namespace jevons
