// The loop that queues a step before it knows the tokens of the last one, against the plain loop.
#include <algorithm>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "base/random.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/engine_run.h"
#include "tests/support/fake_engine.h"
#include "tests/support/logged_backend.h"
#include "tests/support/tiny_model.h"

namespace jevons {
namespace {

// Two layers, one of them with experts: an emulated device is slow.
ModelConfig SmallConfig() {
  ModelConfig config = TinyV3Config();
  config.num_hidden_layers = 2;
  config.eos_token_ids = {};
  return config;
}

// An embedding row of NaN: a device that feeds itself this token loses the row.
class PoisonedCheckpoint : public RandomCheckpoint {
 public:
  PoisonedCheckpoint() : RandomCheckpoint(SmallConfig(), 7) {}
  absl::StatusOr<TensorView> Find(std::string_view name) const override {
    ASSIGN_OR_RETURN(const TensorView t, RandomCheckpoint::Find(name));
    if (name == "model.embed_tokens.weight") {
      std::fill_n(t.row<uint16_t>(kPoisonedId), t.dim(1), uint16_t{0x7FC0});
    }
    return t;
  }
  static constexpr int32_t kPoisonedId = 77;
};

class OverlapTest : public testing::Test {
 protected:
  void SetUp() override { SKIP_WITHOUT_TEST_BACKEND(); }

  static EngineOptions Options() {
    EngineOptions options;
    options.max_num_seqs = 8;
    options.max_num_batched_tokens = kTestsCuda ? 16 : 200;
    options.kv_cache_tokens = 4096;
    options.num_threads = 2;
    return options;
  }

  // Tokens are bytes, so that stop strings have something to find.
  std::unique_ptr<Engine> Start(StepOverlap overlap, EngineOptions options = Options(),
                                const ModelConfig& config = SmallConfig()) {
    options.overlap = overlap;
    auto backend = std::make_unique<LoggedBackend>(MakeTestBackend(), &log_);
    auto model = LoadModel(options, config, PoisonedCheckpoint(), std::make_unique<ByteTokenizer>(),
                           nullptr, std::move(backend));
    EXPECT_TRUE(model.ok()) << model.status();
    log_.calls.clear();
    return StartEngine(*std::move(model), clock_);
  }

  static GenerationRequest Request(uint64_t seed, int32_t num_prompt, int32_t max_new_tokens) {
    Random random(seed);
    GenerationRequest request;
    for (int32_t i = 0; i < num_prompt; ++i) {
      request.prompt_ids.push_back(static_cast<int32_t>(random.Below(70)));
    }
    request.max_new_tokens = max_new_tokens;
    request.sampling.temperature = seed % 2 == 0 ? 0.0f : 1.0f;
    request.sampling.seed = seed;
    request.sampling.logit_bias = {{PoisonedCheckpoint::kPoisonedId, -100.0f}};
    return request;
  }

  // Of many lengths, the shortest among them, with what may be asked for beside tokens.
  static std::vector<GenerationRequest> Requests() {
    std::vector<GenerationRequest> out;
    for (uint64_t i = 0; i < 8; ++i) {
      const int32_t max_new = i == 3 ? 1 : i == 5 ? 2 : 12 + static_cast<int32_t>(i);
      out.push_back(Request(20 + i, 1 + static_cast<int32_t>(i * 5), max_new));
      if (i % 3 == 0) out.back().num_logprobs = static_cast<int32_t>(i);
      if (i % 4 == 2) out.back().num_prompt_logprobs = 2;
    }
    return out;
  }

  static void ExpectAllSame(const std::vector<Outcome>& got, const std::vector<Outcome>& want) {
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) {
      SCOPED_TRACE(i);
      ExpectSame(got[i], want[i]);
      EXPECT_EQ(got[i].end.usage.completion_tokens, static_cast<int32_t>(got[i].ids.size()));
    }
  }

  static int64_t NumTokens(const std::vector<Outcome>& outcomes) {
    return std::accumulate(
        outcomes.begin(), outcomes.end(), int64_t{0},
        [](int64_t sum, const Outcome& o) { return sum + static_cast<int64_t>(o.ids.size()); });
  }

  static void ExpectNothingLeft(Engine& engine) {
    EXPECT_TRUE(engine.CheckIntegrity().ok()) << engine.CheckIntegrity();
    EXPECT_EQ(engine.stats().num_free_blocks, engine.stats().num_blocks);
    EXPECT_EQ(engine.stats().num_running + engine.stats().num_queued, 0);
  }

  BackendLog log_;
  RealClock real_clock_;
  const Clock* clock_ = &real_clock_;
};

TEST_F(OverlapTest, TheNextStepIsQueuedBeforeTheTokensOfTheLastAreWaitedFor) {
  const GenerationRequest request = Request(2, 5, 4);
  auto plain = Start(StepOverlap::kOff);
  const Outcome want = RunTogether(*plain, {request})[0];
  plain->Drain(kPatience);
  EXPECT_EQ(log_.calls, "LSQWLSQWLSQWLSQW");
  plain = nullptr;
  auto engine = Start(StepOverlap::kAuto);
  ExpectSame(RunTogether(*engine, {request})[0], want);
  engine->Drain(kPatience);
  EXPECT_EQ(log_.calls, "LSQLSQWLSQWLSQWW");
  EXPECT_EQ(engine->stats().num_steps, 4);
  EXPECT_EQ(want.ids.size(), 4u);
}

TEST_F(OverlapTest, GivesWhatThePlainLoopGives) {
  const std::vector<GenerationRequest> requests = Requests();
  const auto want = RunTogether(*Start(StepOverlap::kOff), requests);
  auto engine = Start(StepOverlap::kAuto);
  ExpectAllSame(RunTogether(*engine, requests), want);
  ExpectNothingLeft(*engine);
  EXPECT_EQ(engine->stats().num_new_tokens, NumTokens(want));
  engine->Drain(kPatience);
  EXPECT_THAT(log_.calls, testing::HasSubstr("QLSQW"));
}

// What ends a sequence is seen one step late; what it drew there is neither shown nor counted.
TEST_F(OverlapTest, EndIdsAndStopStringsEndASequenceWhereThePlainLoopEndsIt) {
  std::vector<GenerationRequest> requests = Requests();
  const auto whole = RunTogether(*Start(StepOverlap::kOff), requests);
  ModelConfig config = SmallConfig();
  config.eos_token_ids = {whole[0].ids[5], whole[4].ids[9]};
  for (size_t i = 6; i < 8; ++i) {
    const auto found = std::find_if(whole[i].ids.begin() + 4, whole[i].ids.end(),
                                    [](int32_t id) { return id > 0 && id < 128; });
    ASSERT_NE(found, whole[i].ids.end());
    requests[i].stop = {std::string(1, static_cast<char>(*found))};
    requests[i].ignore_eos = true;
  }
  const auto want = RunTogether(*Start(StepOverlap::kOff, Options(), config), requests);
  for (size_t i : {0, 4, 6, 7}) {
    EXPECT_EQ(want[i].end.reason, FinishReason::kStop);
    EXPECT_LT(want[i].ids.size(), whole[i].ids.size());
  }
  auto engine = Start(StepOverlap::kAuto, Options(), config);
  ExpectAllSame(RunTogether(*engine, requests), want);
  ExpectNothingLeft(*engine);
  EXPECT_EQ(engine->stats().num_new_tokens, NumTokens(want));
}

TEST_F(OverlapTest, UnderPreemptionGivesWhatThePlainLoopGives) {
  std::vector<GenerationRequest> requests = Requests();
  for (GenerationRequest& request : requests) request.max_new_tokens += 30;
  if (kTestsCuda) requests.erase(requests.begin(), requests.begin() + 4);
  const auto want = RunTogether(*Start(StepOverlap::kOff), requests);
  EngineOptions options = Options();
  options.kv_cache_tokens = 128;
  options.max_num_seqs = 4;
  for (int32_t batched : {8, 200}) {
    if (kTestsCuda && batched > 8) continue;
    options.max_num_batched_tokens = batched;
    auto engine = Start(StepOverlap::kAuto, options);
    ExpectAllSame(RunTogether(*engine, requests), want);
    ExpectNothingLeft(*engine);
    EXPECT_GT(engine->stats().num_preemptions, 0);
  }
}

// The device feeds itself the token before the host can know that it leads to nothing.
TEST_F(OverlapTest, ALostRowEndsItsRequestAlone) {
  std::vector<GenerationRequest> requests = Requests();
  requests[1].sampling.logit_bias = {{PoisonedCheckpoint::kPoisonedId, 100.0f}};
  const auto want = RunTogether(*Start(StepOverlap::kOff), requests);
  EXPECT_EQ(want[1].ids, std::vector<int32_t>{PoisonedCheckpoint::kPoisonedId});
  EXPECT_EQ(want[1].end.error.code(), absl::StatusCode::kInternal);
  auto engine = Start(StepOverlap::kAuto);
  const auto got = RunTogether(*engine, requests);
  ExpectAllSame(got, want);
  EXPECT_EQ(got[1].end.error, want[1].end.error);
  ExpectNothingLeft(*engine);
}

TEST_F(OverlapTest, APromptWithMoreScoredRowsThanFitOneCallIsTakenInSlices) {
  if (kTestsCuda) GTEST_SKIP() << "needs more tokens a step than an emulated device is given";
  std::vector<GenerationRequest> requests = Requests();
  requests.push_back(Request(40, 150, 5));
  requests.back().num_prompt_logprobs = 3;
  requests.back().num_logprobs = 1;
  const auto want = RunTogether(*Start(StepOverlap::kOff), requests);
  EXPECT_EQ(want.back().prompt_logprobs.size(), 149u);
  auto engine = Start(StepOverlap::kAuto);
  ExpectAllSame(RunTogether(*engine, requests), want);
  ExpectNothingLeft(*engine);
  engine->Drain(kPatience);
  EXPECT_THAT(log_.calls, testing::HasSubstr("SQWSQW"));
}

TEST_F(OverlapTest, CancelledAtAnyMomentARequestLeavesNothingAndDisturbsNobody) {
  std::vector<GenerationRequest> requests = Requests();
  for (GenerationRequest& request : requests) request.num_prompt_logprobs = -1;
  const auto want = RunTogether(*Start(StepOverlap::kOff), requests);
  auto engine = Start(StepOverlap::kAuto);
  Random random(3);
  for (int round = 0; round < (kTestsCuda ? 3 : 20); ++round) {
    std::vector<std::shared_ptr<TokenStream>> streams;
    for (const GenerationRequest& request : requests) streams.push_back(*engine->Submit(request));
    std::vector<size_t> cancelled;
    for (int i = 0; i < 3; ++i) {
      std::this_thread::sleep_for(std::chrono::microseconds(random.Below(kTestsCuda ? 9000 : 900)));
      cancelled.push_back(static_cast<size_t>(random.Below(8)));
      streams[cancelled.back()]->Cancel();
    }
    for (size_t i = 0; i < streams.size(); ++i) {
      SCOPED_TRACE(i);
      const Outcome got = ReadAll(*streams[i]);
      EXPECT_EQ(got.end.usage.completion_tokens, static_cast<int32_t>(got.ids.size()));
      if (got.end.reason == FinishReason::kCancelled) {
        EXPECT_THAT(cancelled, testing::Contains(i));
        ASSERT_LE(got.ids.size(), want[i].ids.size());
        EXPECT_TRUE(std::equal(got.ids.begin(), got.ids.end(), want[i].ids.begin()));
      } else {
        ExpectSame(got, want[i]);
      }
    }
    ExpectNothingLeft(*engine);
  }
}

TEST_F(OverlapTest, ADeadlineEndsARequestWithTheTokensThatItHasShown) {
  FakeClock clock;
  clock_ = &clock;
  auto engine = Start(StepOverlap::kAuto);
  GenerationRequest request = Request(4, 5, 0);
  request.deadline = clock.Now() + absl::Seconds(5);
  auto stream = *engine->Submit(request);
  std::vector<int32_t> ids = stream->WaitChunk(kPatience)->delta.token_ids;
  clock.Advance(absl::Seconds(6));
  const Outcome outcome = ReadAll(*stream);
  ids.insert(ids.end(), outcome.ids.begin(), outcome.ids.end());
  EXPECT_EQ(outcome.end.reason, FinishReason::kDeadline);
  EXPECT_EQ(outcome.end.usage.completion_tokens, static_cast<int32_t>(ids.size()));
  EXPECT_THAT(std::string(outcome.end.error.message()),
              testing::HasSubstr("passed after " + std::to_string(ids.size()) + " of"));
  ExpectNothingLeft(*engine);
}

TEST_F(OverlapTest, ADeviceThatFailsUnderWayEndsEveryStreamWithUnavailable) {
  for (int n = 1; n <= 4; ++n) {
    SCOPED_TRACE(n);
    log_.fail_wait = n;
    auto engine = Start(StepOverlap::kAuto);
    std::vector<std::shared_ptr<TokenStream>> streams;
    for (const GenerationRequest& request : Requests()) {
      auto stream = engine->Submit(request);
      if (stream.ok()) streams.push_back(*stream);
    }
    for (auto& stream : streams) {
      const Outcome outcome = ReadAll(*stream);
      if (outcome.end.reason == FinishReason::kLength) continue;
      EXPECT_EQ(outcome.end.error.code(), absl::StatusCode::kUnavailable);
    }
    ExpectNothingLeft(*engine);
    EXPECT_FALSE(engine->failure().ok());
  }
}

}  // namespace
}  // namespace jevons
