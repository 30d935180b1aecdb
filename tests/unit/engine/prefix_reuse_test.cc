// Sequences that begin with what the cache still holds give the bytes that they give without it.
#include <utility>
#include <vector>

#include "base/random.h"
#include "gtest/gtest.h"
#include "tests/support/engine_run.h"
#include "tests/support/tiny_model.h"

namespace jevons {
namespace {

// An emulated device takes fewer.
constexpr int kConversations = kTestsCuda ? 2 : 6;
constexpr int kNewTokens = kTestsCuda ? 10 : 40;
// A beginning that all share, a turn of each, and the second turn behind the answer to the first.
constexpr int kShared = 75;
constexpr int kTurn = 50;

std::vector<int32_t> RandomTokens(uint64_t seed, int count) {
  Random random(seed);
  std::vector<int32_t> out;
  for (int i = 0; i < count; ++i) out.push_back(static_cast<int32_t>(random.Below(130)));
  return out;
}

void Append(std::vector<int32_t>& to, const std::vector<int32_t>& tokens) {
  to.insert(to.end(), tokens.begin(), tokens.end());
}

GenerationRequest MakeRequest(std::vector<int32_t> prompt_ids, int idx) {
  GenerationRequest out;
  out.prompt_ids = std::move(prompt_ids);
  out.max_new_tokens = kNewTokens;
  out.ignore_eos = true;
  out.sampling.temperature = idx % 2 == 0 ? 0.0f : 1.0f;
  out.sampling.seed = 100 + static_cast<uint64_t>(idx);
  out.num_logprobs = 3;
  return out;
}

class PrefixReuse : public testing::TestWithParam<TinyCase> {
 protected:
  void SetUp() override {
    SKIP_WITHOUT_TEST_BACKEND();
    EngineOptions options = Options();
    options.prefix_cache = PrefixCaching::kOff;
    const auto engine = Start(options);
    for (int i = 0; i < kConversations; ++i) {
      std::vector<int32_t> prompt = RandomTokens(1, kShared);
      Append(prompt, RandomTokens(2 + i, kTurn));
      Ask(*engine, MakeRequest(prompt, i));
      Append(prompt, want_.back().ids);
      Append(prompt, RandomTokens(1000 + i, kTurn));
      Ask(*engine, MakeRequest(prompt, i));
    }
    EXPECT_EQ(engine->stats().num_cached_tokens, 0);
  }

  static EngineOptions Options() {
    EngineOptions options;
    options.kv_cache_tokens = 8192;
    options.max_num_seqs = 16;
    options.max_num_batched_tokens = kTestsCuda ? 32 : 96;
    return options;
  }
  std::unique_ptr<Engine> Start(EngineOptions options) {
    options.kv_cache = GetParam().kv_cache;
    return StartTinyEngine(GetParam().config, options, &clock_);
  }
  void Ask(Engine& engine, const GenerationRequest& request) {
    requests_.push_back(request);
    want_.push_back(RunTogether(engine, {request})[0]);
    ASSERT_EQ(want_.back().end.reason, FinishReason::kLength) << want_.back().end.error;
    ASSERT_EQ(want_.back().end.usage.cached_tokens, 0);
  }

  RealClock clock_;
  std::vector<GenerationRequest> requests_;  // of each conversation both turns
  std::vector<Outcome> want_;
};

TEST_P(PrefixReuse, TurnsOfConversationsGiveTheSameBytes) {
  const auto engine = Start(Options());
  for (size_t i = 0; i < requests_.size(); ++i) {
    SCOPED_TRACE(i);
    const Outcome got = RunTogether(*engine, {requests_[i]})[0];
    ExpectSame(got, want_[i]);
    // Whole blocks: of the shared beginning, and of all of the first turn but its last token.
    constexpr int kFirstTurn = kShared + kTurn + kNewTokens - 1;
    const int want_cached = i == 0 ? 0 : i % 2 == 0 ? kShared / 64 : kFirstTurn / 64;
    EXPECT_EQ(got.end.usage.cached_tokens, want_cached * 64);
  }
  EXPECT_TRUE(engine->CheckIntegrity().ok()) << engine->CheckIntegrity();
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.num_free_blocks, stats.num_blocks);
  int64_t num_prompt = 0;
  for (const GenerationRequest& request : requests_) {
    num_prompt += static_cast<int64_t>(request.prompt_ids.size());
  }
  EXPECT_GT(stats.num_cached_tokens, 0);
  // The last token of a prompt counts as computed with the first new one.
  EXPECT_EQ(stats.num_cached_tokens + stats.num_prompt_tokens,
            num_prompt - static_cast<int64_t>(requests_.size()));
}

TEST_P(PrefixReuse, TogetherInASmallPoolGivesTheSameBytes) {
  EngineOptions options = Options();
  options.kv_cache_tokens = kTestsCuda ? 256 : 640;  // a second turn alone takes 185 or 215
  const auto engine = Start(options);
  for (int round = 0; round < 2; ++round) {
    const std::vector<Outcome> got = RunTogether(*engine, requests_);
    for (size_t i = 0; i < got.size(); ++i) {
      SCOPED_TRACE(i);
      ExpectSame(got[i], want_[i]);
    }
  }
  EXPECT_TRUE(engine->CheckIntegrity().ok()) << engine->CheckIntegrity();
  EXPECT_GT(engine->stats().num_preemptions, 0);
  EXPECT_GT(engine->stats().num_cached_tokens, 0);
}

TEST_P(PrefixReuse, OtherSaltsShareNothing) {
  const auto engine = Start(Options());
  for (const auto& [salt, want_cached] :
       std::vector<std::pair<uint64_t, int32_t>>{{0, 0}, {1, 0}, {1, 64}, {0, 64}}) {
    GenerationRequest request = requests_[0];
    request.cache_salt = salt;
    const Outcome got = RunTogether(*engine, {request})[0];
    ExpectSame(got, want_[0]);
    EXPECT_EQ(got.end.usage.cached_tokens, want_cached);
  }
}

TEST_P(PrefixReuse, AScoredPromptIsComputedWhollyAndScoredTheSame) {
  EngineOptions options = Options();
  options.prefix_cache = PrefixCaching::kOff;
  GenerationRequest request = requests_[0];
  request.num_prompt_logprobs = 2;
  const Outcome want = RunTogether(*Start(options), {request})[0];
  const auto engine = Start(Options());
  for (int i = 0; i < 2; ++i) {
    const Outcome got = RunTogether(*engine, {request})[0];
    ExpectSame(got, want);
    EXPECT_EQ(got.end.usage.cached_tokens, 0);
  }
  const Outcome unscored = RunTogether(*engine, {requests_[0]})[0];
  EXPECT_EQ(unscored.end.usage.cached_tokens, 64);
  ExpectSame(unscored, want_[0]);
}

// An emulated device takes one of them.
std::vector<TinyCase> Cases() {
  return kTestsCuda ? std::vector<TinyCase>{TinyCases().back()} : TinyCases();
}

INSTANTIATE_TEST_SUITE_P(V2AndV3, PrefixReuse, testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param.name(); });

}  // namespace
}  // namespace jevons
