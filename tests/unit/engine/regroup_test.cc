// Ranks that go on without one that is lost, and requests that others take over.
#include "engine/rank_engine.h"

#include <map>
#include <memory>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/engine_run.h"
#include "tests/support/fake_tokenizer.h"
#include "tests/support/regroup_ranks.h"
#include "tests/support/skewed_checkpoint.h"
#include "tests/support/tiny_model.h"
#include "tests/support/wait_for.h"

namespace jevons {
namespace {

using testing::HasSubstr;

EngineOptions Options(int32_t num_ranks, int32_t num_redundant_experts = 0) {
  EngineOptions options;
  options.num_ranks = num_ranks;
  options.num_threads = 1;
  options.kv_cache_tokens = 2048;
  options.max_num_seqs = 8;
  options.max_num_batched_tokens = 48;
  options.num_redundant_experts = num_redundant_experts;
  options.balance_interval_steps = 5;
  options.cpu_target = TestCpuTarget();
  options.backend = BackendKind::kCpu;
  return options;
}

SkewedCheckpoint MakeCheckpoint(const ModelConfig& config) { return {config, 7, 6}; }

using Ranks = RegroupRanks;

class RegroupTest : public testing::TestWithParam<ModelConfig> {
 protected:
  void SetUp() override { SKIP_WITHOUT_TEST_BACKEND(); }

  Ranks::Reopen ReopenOf(int32_t) const {
    return [config = GetParam()] {
      return std::make_unique<SkewedCheckpoint>(MakeCheckpoint(config));
    };
  }
  std::unique_ptr<Engine> Alone() {
    auto model = LoadModel(Options(1), GetParam(), MakeCheckpoint(GetParam()), nullptr, nullptr);
    EXPECT_TRUE(model.ok()) << model.status();
    return StartEngine(*std::move(model), &clock_);
  }
  // The ranks of a group of threads, which form others of threads.
  std::unique_ptr<Ranks> MakeRanks(const EngineOptions& options,
                                   const std::function<Ranks::Reopen(int32_t rank)>& reopen_of) {
    auto group = LoadModelGroup(options, GetParam(), MakeCheckpoint(GetParam()));
    EXPECT_TRUE(group.ok()) << group.status();
    threads_[0] = std::move(group->threads);
    for (int32_t r = 0; r < options.num_ranks; ++r) group->models[r].reopen = reopen_of(r);
    return std::make_unique<Ranks>(
        std::move(group->models), &clock_,
        [this](int32_t place, const Membership& membership) { return Join(place, membership); });
  }

  void ExpectTheBytesOfOneRank(int32_t num_ranks, int32_t num_redundant,
                               const std::function<Ranks::Reopen(int32_t rank)>& reopen_of) {
    const std::vector<GenerationRequest> requests = RandomRequests(2 * num_ranks, 90);
    const std::vector<Outcome> want = RunTogether(*Alone(), requests);
    const auto ranks = MakeRanks(Options(num_ranks, num_redundant), reopen_of);
    ExpectNothingIsSeenOfLostRanks(*ranks, num_ranks, 1, requests, 10, want);
  }

  RealClock clock_;

 private:
  absl::StatusOr<std::unique_ptr<Communicator>> Join(int32_t place, const Membership& membership) {
    MutexLock lock(&mutex_);
    std::unique_ptr<ThreadGroup>& threads = threads_[membership.epoch];
    if (threads == nullptr) {
      threads = std::make_unique<ThreadGroup>(static_cast<int32_t>(membership.ranks.size()));
    }
    return threads->Join(place);
  }

  Mutex mutex_;
  std::map<int64_t, std::unique_ptr<ThreadGroup>> threads_;
};

TEST_P(RegroupTest, NothingIsSeenOfLostRanksWhoseExpertsAreReadAgain) {
  ExpectTheBytesOfOneRank(4, 0, [this](int32_t r) { return ReopenOf(r); });
}

TEST_P(RegroupTest, NothingIsSeenOfALostRankWhoseExpertsHaveReplicas) {
  ExpectTheBytesOfOneRank(2, 12, [](int32_t) -> Ranks::Reopen {
    return [] { return absl::DataLossError("the disk is gone"); };
  });
}

INSTANTIATE_TEST_SUITE_P(Models, RegroupTest,
                         testing::Values(TinyV2Config(), TinyV3Config(), DenseConfig()),
                         [](const auto& info) {
                           return info.param.n_routed_experts > 0 ? info.param.model_type : "dense";
                         });

class RegroupFailureTest : public RegroupTest {};

TEST_P(RegroupFailureTest, AGroupThatDoesNotComeTogetherIsFollowedByTheNext) {
  const std::vector<GenerationRequest> requests = RandomRequests(3, 60);
  const std::vector<Outcome> want = RunTogether(*Alone(), requests);
  const auto made = MakeRanks(Options(3), [this](int32_t r) { return ReopenOf(r); });
  Ranks& ranks = *made;
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (int32_t r = 0; r < 3; ++r) streams.push_back(Submit(ranks[r], requests[r]));
  ranks.PokeAll();
  ASSERT_TRUE(WaitFor([&] { return ranks[1].stats().num_new_tokens > 5; }));
  // Nobody is lost, and three of the next joins fail.
  ranks.FailJoins(3);
  ranks.Form("the network blinked");
  ASSERT_TRUE(WaitFor([&] { return ranks.num_broken() >= 3; }));
  ranks.Form("once more");
  for (int32_t r = 0; r < 3; ++r) ExpectSame(ReadAll(*streams[r]), want[r]);
  ranks.End();
}

TEST_P(RegroupFailureTest, ARankThatCannotReadFailsAndTheOthersGoOnWithoutIt) {
  const std::vector<GenerationRequest> requests = RandomRequests(3, 60);
  const std::vector<Outcome> want = RunTogether(*Alone(), requests);
  const auto made = MakeRanks(Options(4), [this](int32_t r) -> Ranks::Reopen {
    if (r == 2) return [] { return absl::DataLossError("the disk is gone"); };
    return ReopenOf(r);
  });
  Ranks& ranks = *made;
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (int32_t r = 0; r < 3; ++r) streams.push_back(Submit(ranks[r], requests[r]));
  ranks.PokeAll();
  ASSERT_TRUE(WaitFor([&] { return ranks[1].stats().num_new_tokens > 5; }));
  ranks.LoseRank(3);
  ASSERT_TRUE(WaitFor([&] { return !ranks[2].failure().ok(); }));
  EXPECT_THAT(std::string(ranks[2].failure().message()), HasSubstr("the disk is gone"));
  EXPECT_THAT(std::string(ReadAll(*streams[2]).end.error.message()), HasSubstr("the disk is gone"));
  ranks.LoseRank(2);
  for (int32_t r = 0; r < 2; ++r) ExpectSame(ReadAll(*streams[r]), want[r]);
  ranks.End();
}

TEST_P(RegroupFailureTest, ARankThatStopsWhileItsGroupIsBrokenEndsWithAReason) {
  const auto made = MakeRanks(Options(2), [this](int32_t r) { return ReopenOf(r); });
  Ranks& ranks = *made;
  const auto stream = Submit(ranks[1], RandomRequests(1, 500)[0]);
  ranks.PokeAll();
  ASSERT_TRUE(WaitFor([&] { return ranks[1].stats().num_new_tokens > 5; }));
  ranks.Cut(1, "its cable was cut");
  ASSERT_TRUE(WaitFor([&] { return ranks.num_broken() == 2; }));
  ranks.End();
  const StreamEnd end = ReadAll(*stream).end;
  EXPECT_EQ(end.error.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(end.error.message()), HasSubstr("its cable was cut"));
}

// A checkpoint that counts the tensors of experts that are read.
class CountingCheckpoint : public SkewedCheckpoint {
 public:
  CountingCheckpoint(SkewedCheckpoint checkpoint, std::atomic<int>* count)
      : SkewedCheckpoint(std::move(checkpoint)), count_(count) {}
  absl::StatusOr<TensorView> Find(std::string_view name) const override {
    if (name.find(".experts.") != std::string_view::npos) ++*count_;
    return SkewedCheckpoint::Find(name);
  }

 private:
  std::atomic<int>* const count_;
};

TEST_P(RegroupFailureTest, OnlyExpertsThatNobodyHoldsAreRead) {
  std::atomic<int> num_read = 0;
  EngineOptions options = Options(4);
  options.balance_interval_steps = 0;
  const auto made = MakeRanks(options, [&](int32_t) -> Ranks::Reopen {
    return [&, config = GetParam()] {
      return std::make_unique<CountingCheckpoint>(MakeCheckpoint(config), &num_read);
    };
  });
  Ranks& ranks = *made;
  ranks.LoseRank(3);
  ASSERT_TRUE(WaitFor([&] { return ranks[0].stats().group_epoch == 1; }));
  const auto stream = Submit(ranks[0], RandomRequests(1, 5)[0]);
  ranks.PokeAll();
  ExpectSame(ReadAll(*stream), RunTogether(*Alone(), RandomRequests(1, 5))[0]);
  // 3 of 12 experts in 2 layers, of 3 matrices each.
  EXPECT_EQ(num_read, 3 * 2 * 3);
  ranks.End();
}

INSTANTIATE_TEST_SUITE_P(Models, RegroupFailureTest, testing::Values(TinyV3Config()),
                         [](const auto& info) { return info.param.model_type; });

// Two characters of the text that are no pieces of others.
std::string AsciiOf(const std::string& text) {
  const auto plain = [](char c) { return c > 0; };
  for (size_t i = 8; i + 1 < text.size(); ++i) {
    if (plain(text[i]) && plain(text[i + 1])) return text.substr(i, 2);
  }
  ADD_FAILURE() << "no plain characters in the text";
  return "?";
}

// A request that is taken over after any number of tokens gives the rest: ids, text in its pieces
// (bytes of half characters, stop strings across the cut), logprobs, counts.
TEST(ResumeTest, GoesOnBehindAnyCutToTheBit) {
  SKIP_WITHOUT_TEST_BACKEND();
  const RealClock clock;
  const ModelConfig config = TinyV3Config();
  auto model = LoadModel(Options(1), config, MakeCheckpoint(config),
                         std::make_unique<FakeTokenizer>(), nullptr);
  ASSERT_TRUE(model.ok()) << model.status();
  RankEngine engine(*std::move(model), &clock);
  for (GenerationRequest request : RandomRequests(4, 24)) {
    const Outcome free = RunTogether(engine, {request})[0];
    // Every other request ends with a stop string of its own text.
    if (request.sampling.seed % 2 == 0) request.stop = {AsciiOf(free.text)};
    std::vector<Outcome> taken(1);  // after each chunk
    const auto whole = *engine.Submit(request, {});
    while (taken.back().end.reason == FinishReason::kNone) {
      const std::optional<StreamChunk> chunk = whole->WaitChunk(kPatience);
      ASSERT_TRUE(chunk.has_value());
      taken.push_back(Joined(taken.back(), {.ids = chunk->delta.token_ids,
                                            .logprobs = chunk->delta.logprobs,
                                            .prompt_logprobs = chunk->delta.prompt_logprobs,
                                            .text = chunk->delta.text,
                                            .end = chunk->end.value_or(StreamEnd())}));
    }
    const Outcome want = taken.back();
    for (Outcome& cut : taken) {
      SCOPED_TRACE(cut.ids.size());
      // As if the end, and what came with it, had been lost on the way.
      if (cut.end.reason != FinishReason::kNone) continue;
      GenerationRequest rest = request;
      rest.given = {.token_ids = cut.ids,
                    .num_prompt_logprobs = static_cast<int32_t>(cut.prompt_logprobs.size())};
      auto stream = std::make_shared<TokenStream>();
      ASSERT_TRUE(engine.Resume({.request = rest, .stream = stream}).ok());
      ExpectSame(Joined(cut, ReadAll(*stream)), want);
    }
    // All of its tokens, but not its end.
    GenerationRequest rest = request;
    rest.given = {.token_ids = want.ids,
                  .num_prompt_logprobs = static_cast<int32_t>(want.prompt_logprobs.size())};
    auto stream = std::make_shared<TokenStream>();
    ASSERT_TRUE(engine.Resume({.request = rest, .stream = stream}).ok());
    const Outcome end = ReadAll(*stream);
    EXPECT_TRUE(end.ids.empty());
    EXPECT_EQ(end.end.reason, want.end.reason);
    EXPECT_EQ(end.end.usage.completion_tokens, want.end.usage.completion_tokens);
  }
}

}  // namespace
}  // namespace jevons
