#include "engine/engine.h"

#include <vector>

#include "base/random.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/engine_run.h"
#include "tests/support/tiny_model.h"

namespace jevons {
namespace {

// An emulated device takes fewer.
constexpr int kRequests = kTestsCuda ? 4 : 8;
constexpr int kLongestPrompt = kTestsCuda ? 60 : 150;
constexpr int kNewTokens = kTestsCuda ? 24 : 40;

// Requests of different lengths, greedy and sampled, that run to their length.
std::vector<GenerationRequest> MakeRequests(int count, int max_prompt) {
  Random random(11);
  std::vector<GenerationRequest> out(count);
  for (int i = 0; i < count; ++i) {
    const int64_t length = i == 0 ? max_prompt : 1 + random.Below(max_prompt);
    for (int64_t j = 0; j < length; ++j) {
      out[i].prompt_ids.push_back(static_cast<int32_t>(random.Below(130)));
    }
    out[i].max_new_tokens = kNewTokens;
    out[i].ignore_eos = true;
    out[i].sampling.temperature = i % 2 == 0 ? 0.0f : 1.0f;
    out[i].sampling.top_p = i % 3 == 0 ? 1.0f : 0.9f;
    out[i].sampling.seed = 100 + i;
    out[i].num_logprobs = 3;
    out[i].num_prompt_logprobs = 2;
  }
  return out;
}

std::vector<Outcome> RunAlone(Engine& engine, const std::vector<GenerationRequest>& requests) {
  std::vector<Outcome> out;
  for (const GenerationRequest& request : requests) {
    out.push_back(RunTogether(engine, {request})[0]);
  }
  return out;
}

EngineOptions DefaultOptions() {
  EngineOptions options;
  options.kv_cache_tokens = 8192;
  options.max_num_seqs = 16;
  // Each size of a step is recorded at the start, which an emulator does slowly.
  if (kTestsCuda) options.max_num_batched_tokens = 32;
  return options;
}

class SameBytes : public testing::TestWithParam<TinyCase> {
 protected:
  void SetUp() override {
    SKIP_WITHOUT_TEST_BACKEND();
    auto engine = Start(DefaultOptions());
    alone_ = RunAlone(*engine, requests_);
    for (const Outcome& outcome : alone_) {
      ASSERT_EQ(outcome.end.reason, FinishReason::kLength) << outcome.end.error;
      ASSERT_EQ(outcome.ids.size(), size_t{kNewTokens});
      ASSERT_EQ(outcome.logprobs.size(), size_t{kNewTokens});
    }
    ASSERT_EQ(alone_[0].prompt_logprobs.size(), requests_[0].prompt_ids.size() - 1);
  }

  std::unique_ptr<Engine> Start(EngineOptions options) {
    options.kv_cache = GetParam().kv_cache;
    return StartTinyEngine(GetParam().config, options, &clock_);
  }
  void ExpectAllSame(const std::vector<Outcome>& got) {
    ASSERT_EQ(got.size(), alone_.size());
    for (size_t i = 0; i < got.size(); ++i) {
      SCOPED_TRACE(i);
      ExpectSame(got[i], alone_[i]);
    }
  }

  RealClock clock_;
  std::vector<GenerationRequest> requests_ = MakeRequests(kRequests, kLongestPrompt);
  std::vector<Outcome> alone_;
};

TEST_P(SameBytes, AmongSevenOthers) {
  auto engine = Start(DefaultOptions());
  ExpectAllSame(RunTogether(*engine, requests_));
  EXPECT_TRUE(engine->CheckIntegrity().ok());
}

TEST_P(SameBytes, WithPromptsCutIntoChunksOf1And7And64) {
  for (int32_t chunk : {1, 7, 64}) {
    SCOPED_TRACE(chunk);
    EngineOptions options = DefaultOptions();
    options.max_prefill_chunk_tokens = chunk;
    auto engine = Start(options);
    ExpectAllSame(RunTogether(*engine, requests_));
  }
}

TEST_P(SameBytes, AfterPreemption) {
  EngineOptions options = DefaultOptions();
  options.kv_cache_tokens = kTestsCuda ? 128 : 320;  // the longest request alone takes 84 or 190
  auto engine = Start(options);
  ExpectAllSame(RunTogether(*engine, requests_));
  EXPECT_GT(engine->stats().num_preemptions, 0);
  EXPECT_TRUE(engine->CheckIntegrity().ok());
  EXPECT_EQ(engine->stats().num_free_blocks, engine->stats().num_blocks);
}

TEST_P(SameBytes, WithOneThreadAndOneTokenSteps) {
  EngineOptions options = DefaultOptions();
  options.num_threads = 1;
  options.max_num_seqs = 1;
  options.max_num_batched_tokens = 1;
  auto engine = Start(options);
  ExpectAllSame(RunTogether(*engine, requests_));
}

INSTANTIATE_TEST_SUITE_P(V2AndV3, SameBytes, testing::ValuesIn(TinyCases()),
                         [](const auto& info) { return info.param.name(); });

class EngineTest : public testing::Test {
 protected:
  void SetUp() override { SKIP_WITHOUT_TEST_BACKEND(); }

  GenerationRequest LongRequest() {
    GenerationRequest request = MakeRequests(1, 20)[0];
    request.max_new_tokens = 0;
    request.num_logprobs = -1;
    request.num_prompt_logprobs = -1;
    return request;
  }
  // Waits until everything has gone out of the engine.
  void ExpectDrained(Engine& engine) {
    EXPECT_TRUE(engine.CheckIntegrity().ok());
    const EngineStats stats = engine.stats();
    EXPECT_EQ(stats.num_running, 0);
    EXPECT_EQ(stats.num_queued, 0);
    EXPECT_EQ(stats.num_free_blocks, stats.num_blocks);
  }

  RealClock clock_;
};

TEST_F(EngineTest, CancelEndsTheStreamAndFreesItsBlocks) {
  auto engine = StartTinyEngine(TinyV3Config(), DefaultOptions(), &clock_);
  auto stream = *engine->Submit(LongRequest());
  ASSERT_TRUE(stream->WaitChunk(kPatience).has_value());
  stream->Cancel();
  const Outcome outcome = ReadAll(*stream);
  EXPECT_EQ(outcome.end.reason, FinishReason::kCancelled);
  EXPECT_EQ(outcome.end.error.code(), absl::StatusCode::kCancelled);
  ExpectDrained(*engine);
}

TEST_F(EngineTest, DeadlineEndsTheStreamWithHowFarItCame) {
  FakeClock fake;
  auto engine = StartTinyEngine(TinyV3Config(), DefaultOptions(), &fake);
  GenerationRequest request = LongRequest();
  request.deadline = fake.Now() + absl::Seconds(5);
  auto stream = *engine->Submit(request);
  ASSERT_TRUE(stream->WaitChunk(kPatience).has_value());
  fake.Advance(absl::Seconds(6));
  const Outcome outcome = ReadAll(*stream);
  EXPECT_EQ(outcome.end.reason, FinishReason::kDeadline);
  EXPECT_THAT(std::string(outcome.end.error.message()), testing::HasSubstr("new tokens"));
  ExpectDrained(*engine);
}

TEST_F(EngineTest, AFullQueueRefusesAtTheDoorWithTheLimit) {
  EngineOptions options = DefaultOptions();
  options.max_num_seqs = 1;
  options.max_queued_requests = 2;
  auto engine = StartTinyEngine(TinyV3Config(), options, &clock_);
  std::vector<std::shared_ptr<TokenStream>> accepted;
  absl::Status refusal;
  for (int i = 0; i < 50 && refusal.ok(); ++i) {
    auto stream = engine->Submit(LongRequest());
    if (stream.ok()) {
      accepted.push_back(*stream);
    } else {
      refusal = stream.status();
    }
  }
  EXPECT_EQ(refusal.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refusal.message()), testing::HasSubstr("limit is 2"));
  for (auto& stream : accepted) stream->Cancel();
  for (auto& stream : accepted) ReadAll(*stream);
  ExpectDrained(*engine);
}

TEST_F(EngineTest, DrainLetsShortRequestsFinishAndEndsLongOnesWithAReason) {
  auto engine = StartTinyEngine(TinyV3Config(), DefaultOptions(), &clock_);
  GenerationRequest short_request = LongRequest();
  short_request.max_new_tokens = 2;
  auto finished = *engine->Submit(short_request);
  engine->Drain(kPatience);
  EXPECT_EQ(ReadAll(*finished).end.reason, FinishReason::kLength);
  EXPECT_EQ(engine->Submit(short_request).status().code(), absl::StatusCode::kUnavailable);

  engine = StartTinyEngine(TinyV3Config(), DefaultOptions(), &clock_);
  auto cut = *engine->Submit(LongRequest());
  engine->Drain(absl::ZeroDuration());
  const Outcome outcome = ReadAll(*cut);
  EXPECT_EQ(outcome.end.reason, FinishReason::kError);
  EXPECT_EQ(outcome.end.error.code(), absl::StatusCode::kUnavailable);
}

// An embedding row of NaN: every request with that token fails, and no other.
class PoisonedCheckpoint : public RandomCheckpoint {
 public:
  using RandomCheckpoint::RandomCheckpoint;
  absl::StatusOr<TensorView> Find(std::string_view name) const override {
    ASSIGN_OR_RETURN(const TensorView t, RandomCheckpoint::Find(name));
    if (name == "model.embed_tokens.weight") {
      for (int64_t i = 0; i < t.dim(1); ++i) t.row<uint16_t>(kPoisonedId)[i] = 0x7FC0;
    }
    return t;
  }
  static constexpr int32_t kPoisonedId = 77;
};

TEST_F(EngineTest, ANanRowEndsThatRequestAloneWithInternal) {
  auto clean = StartTinyEngine(TinyV3Config(), DefaultOptions(), &clock_);
  EngineOptions options = DefaultOptions();
  options.num_threads = 2;
  options.cpu_target = TestCpuTarget();
  options.backend = TestBackendKind();
  auto model =
      LoadModel(options, TinyV3Config(), PoisonedCheckpoint(TinyV3Config(), 7), nullptr, nullptr);
  ASSERT_TRUE(model.ok()) << model.status();
  auto engine = StartEngine(*std::move(model), &clock_);
  GenerationRequest good = LongRequest();
  good.prompt_ids = {3, 4, 5};
  good.max_new_tokens = 5;
  good.sampling.temperature = 0;
  good.sampling.logit_bias = {{PoisonedCheckpoint::kPoisonedId, -100.0f}};
  GenerationRequest bad = good;
  bad.prompt_ids = {3, PoisonedCheckpoint::kPoisonedId, 5};
  bad.num_prompt_logprobs = 0;
  const std::vector<Outcome> outcomes = RunTogether(*engine, {good, bad, good});
  const Outcome want = RunTogether(*clean, {good})[0];
  ExpectSame(outcomes[0], want);
  ExpectSame(outcomes[2], want);
  EXPECT_EQ(outcomes[1].end.reason, FinishReason::kError);
  EXPECT_EQ(outcomes[1].end.error.code(), absl::StatusCode::kInternal);
  // What is scored keeps its id, whatever its logits are.
  ASSERT_EQ(outcomes[1].prompt_logprobs.size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(outcomes[1].prompt_logprobs[i].chosen.id, bad.prompt_ids[i + 1]);
  }
  ExpectDrained(*engine);
}

TEST_F(EngineTest, RandomLengthsAndCancelsLeaveNothingBehind) {
  EngineOptions options = DefaultOptions();
  options.kv_cache_tokens = 640;
  auto engine = StartTinyEngine(TinyV3Config(), options, &clock_);
  Random random(5);
  for (int round = 0; round < (kTestsCuda ? 1 : 5); ++round) {
    std::vector<std::shared_ptr<TokenStream>> streams;
    for (int i = 0; i < 40; ++i) {
      GenerationRequest request = MakeRequests(1, 1 + static_cast<int>(random.Below(100)))[0];
      request.max_new_tokens = 1 + static_cast<int32_t>(random.Below(60));
      auto stream = engine->Submit(request);
      ASSERT_TRUE(stream.ok()) << stream.status();
      streams.push_back(*stream);
      if (random.Below(3) == 0) streams[random.Below(i + 1)]->Cancel();
    }
    for (auto& stream : streams) EXPECT_NE(ReadAll(*stream).end.reason, FinishReason::kNone);
    ExpectDrained(*engine);
  }
}

TEST_F(EngineTest, OptionsOutOfRangeAreNamedWithLimitAndValue) {
  EngineOptions options = DefaultOptions();
  options.max_num_seqs = 0;
  const RandomCheckpoint checkpoint(TinyV3Config(), 7);
  const auto model = LoadModel(options, TinyV3Config(), checkpoint, nullptr, nullptr);
  EXPECT_EQ(model.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(model.status().message()),
              testing::HasSubstr("max-num-seqs must be in [1, 1024], given 0"));
}

}  // namespace
}  // namespace jevons
