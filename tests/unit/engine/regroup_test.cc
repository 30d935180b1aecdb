// Ranks that go on without one that is lost, and requests that others take over.
#include "engine/rank_engine.h"

#include <map>
#include <memory>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/engine_run.h"
#include "tests/support/fake_tokenizer.h"
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

// What was taken of a stream, and what came later, as one outcome.
Outcome Joined(const Outcome& before, Outcome after) {
  after.ids.insert(after.ids.begin(), before.ids.begin(), before.ids.end());
  after.logprobs.insert(after.logprobs.begin(), before.logprobs.begin(), before.logprobs.end());
  after.prompt_logprobs.insert(after.prompt_logprobs.begin(), before.prompt_logprobs.begin(),
                               before.prompt_logprobs.end());
  after.text = before.text + after.text;
  return after;
}

// Takes what is there.
void TakeInto(TokenStream& stream, Outcome& out) {
  while (std::optional<StreamChunk> chunk = stream.TakeChunk()) {
    Outcome next = {.ids = chunk->delta.token_ids,
                    .logprobs = chunk->delta.logprobs,
                    .prompt_logprobs = chunk->delta.prompt_logprobs,
                    .text = chunk->delta.text,
                    .end = chunk->end.value_or(StreamEnd())};
    out = Joined(out, std::move(next));
  }
}

// The engines of a group's ranks, whose memberships a test gives out.
class Ranks {
 public:
  using Reopen = decltype(LoadedModel::reopen);

  Ranks(const ModelConfig& config, const EngineOptions& options, const Clock* clock,
        const std::function<Reopen(int32_t rank)>& reopen_of) {
    auto group = LoadModelGroup(options, config, MakeCheckpoint(config));
    EXPECT_TRUE(group.ok()) << group.status();
    threads_[0] = std::move(group->threads);
    for (int32_t r = 0; r < options.num_ranks; ++r) {
      group->models[r].reopen = reopen_of(r);
      communicators_.push_back(group->models[r].communicator.get());
      engines_[r] = std::make_unique<RankEngine>(
          std::move(group->models[r]), clock,
          RankEngine::Regrouping{
              .join = [this, r](const Membership& membership,
                                const auto&) { return Join(r, membership); },
              .broken = [this](int64_t, const absl::Status&) { ++num_broken_; }});
    }
  }

  RankEngine& operator[](int32_t rank) { return *engines_.at(rank); }
  int num_broken() const { return num_broken_; }

  // Everybody who is left, without `lost`, forms another group.
  void LoseRank(int32_t lost) {
    engines_.at(lost)->Abort("lost in this test");
    Form("rank is lost", lost);
    engines_.erase(lost);
  }
  void Form(const std::string& reason, int32_t without = -1) {
    Membership membership = {.epoch = ++epoch_, .ranks = {}, .rendezvous = "", .reason = reason};
    for (const auto& [rank, engine] : engines_) {
      if (rank != without) membership.ranks.push_back(rank);
    }
    for (const auto& [rank, engine] : engines_) {
      if (rank != without) engine->Regroup(membership);
    }
  }
  void PokeAll() {
    for (const auto& [rank, engine] : engines_) engine->Poke();
  }
  // Of the first group.
  void Cut(int32_t rank, const std::string& reason) { communicators_[rank]->Abort(reason); }
  // As an EngineGroup ends.
  void End() {
    for (const auto& [rank, engine] : engines_) engine->StopAccepting();
    for (const auto& [rank, engine] : engines_) engine->Stop();
    PokeAll();
    for (const auto& [rank, engine] : engines_) engine->Join();
  }
  void FailJoins(int count) { joins_to_fail_ = count; }

 private:
  absl::StatusOr<std::unique_ptr<Communicator>> Join(int32_t rank, const Membership& membership) {
    if (joins_to_fail_.fetch_sub(1) > 0)
      return absl::DeadlineExceededError("somebody did not come");
    const auto place = std::find(membership.ranks.begin(), membership.ranks.end(), rank);
    MutexLock lock(&mutex_);
    std::unique_ptr<ThreadGroup>& threads = threads_[membership.epoch];
    if (threads == nullptr) {
      threads = std::make_unique<ThreadGroup>(static_cast<int32_t>(membership.ranks.size()));
    }
    return threads->Join(static_cast<int32_t>(place - membership.ranks.begin()));
  }

  int64_t epoch_ = 0;
  std::atomic<int> joins_to_fail_ = 0;
  std::atomic<int> num_broken_ = 0;
  Mutex mutex_;
  std::map<int64_t, std::unique_ptr<ThreadGroup>> threads_ ABSL_GUARDED_BY(mutex_);
  std::vector<Communicator*> communicators_;
  std::map<int32_t, std::unique_ptr<RankEngine>> engines_;
};

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
  static std::shared_ptr<TokenStream> Submit(RankEngine& engine, const GenerationRequest& request) {
    auto stream = engine.Submit(request, {});
    EXPECT_TRUE(stream.ok()) << stream.status();
    return *stream;
  }
  // Gives the request to another rank behind what `given` has of it.
  static std::shared_ptr<TokenStream> Resume(RankEngine& engine, GenerationRequest request,
                                             const Outcome& given) {
    request.given = {.token_ids = given.ids,
                     .num_prompt_logprobs = static_cast<int32_t>(given.prompt_logprobs.size())};
    auto stream = std::make_shared<TokenStream>();
    const absl::Status status = engine.Resume({.request = request, .stream = stream});
    EXPECT_TRUE(status.ok()) << status;
    return stream;
  }

  // Ranks are lost one after the other until one is left; streams run all along.
  void ExpectTheBytesOfOneRank(int32_t num_ranks, int32_t num_redundant,
                               const std::function<Ranks::Reopen(int32_t rank)>& reopen_of) {
    const std::vector<GenerationRequest> requests = RandomRequests(2 * num_ranks, 90);
    const std::vector<Outcome> want = RunTogether(*Alone(), requests);
    Ranks ranks(GetParam(), Options(num_ranks, num_redundant), &clock_, reopen_of);
    std::vector<Outcome> got(requests.size());
    std::vector<std::shared_ptr<TokenStream>> streams;
    std::vector<int32_t> rank_of;
    for (size_t i = 0; i < requests.size(); ++i) {
      rank_of.push_back(static_cast<int32_t>(i) % num_ranks);
      streams.push_back(Submit(ranks[rank_of[i]], requests[i]));
      ranks.PokeAll();
    }
    for (int32_t lost = num_ranks - 1; lost > 0; --lost) {
      const size_t watched = static_cast<size_t>(lost);
      const size_t more = got[watched].ids.size() + 10;
      ASSERT_TRUE(WaitFor([&] {
        TakeInto(*streams[watched], got[watched]);
        return got[watched].ids.size() >= more;
      }));
      ranks.LoseRank(lost);
      for (size_t i = 0; i < streams.size(); ++i) {
        if (rank_of[i] != lost || got[i].end.reason != FinishReason::kNone) continue;
        // What it gave before it was lost; its end, an error, is not for the reader.
        TakeInto(*streams[i], got[i]);
        got[i].end = {};
        rank_of[i] = static_cast<int32_t>(i) % lost;
        streams[i] = Resume(ranks[rank_of[i]], requests[i], got[i]);
        ranks.PokeAll();
      }
    }
    for (size_t i = 0; i < streams.size(); ++i) {
      SCOPED_TRACE(i);
      if (got[i].end.reason == FinishReason::kNone) got[i] = Joined(got[i], ReadAll(*streams[i]));
      EXPECT_TRUE(got[i].end.error.ok()) << got[i].end.error;
      ExpectSame(got[i], want[i]);
    }
    EXPECT_TRUE(ranks[0].failure().ok()) << ranks[0].failure();
    EXPECT_TRUE(ranks[0].CheckIntegrity().ok());
    EXPECT_EQ(ranks[0].stats().num_free_blocks, ranks[0].stats().num_blocks);
    ranks.End();
  }

  RealClock clock_;
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
  Ranks ranks(GetParam(), Options(3), &clock_, [this](int32_t r) { return ReopenOf(r); });
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
  Ranks ranks(GetParam(), Options(4), &clock_, [this](int32_t r) -> Ranks::Reopen {
    if (r == 2) return [] { return absl::DataLossError("the disk is gone"); };
    return ReopenOf(r);
  });
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
  Ranks ranks(GetParam(), Options(2), &clock_, [this](int32_t r) { return ReopenOf(r); });
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
  Ranks ranks(GetParam(), options, &clock_, [&](int32_t) -> Ranks::Reopen {
    return [&, config = GetParam()] {
      return std::make_unique<CountingCheckpoint>(MakeCheckpoint(config), &num_read);
    };
  });
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
