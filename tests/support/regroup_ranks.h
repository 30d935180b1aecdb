// Ranks of one process that go on without one that is lost: what tests of every transport share.
#pragma once

#include <algorithm>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/rank_engine.h"
#include "tests/support/engine_run.h"
#include "tests/support/wait_for.h"

namespace jevons {

// What was taken of a stream, and what came later, as one outcome.
inline Outcome Joined(const Outcome& before, Outcome after) {
  after.ids.insert(after.ids.begin(), before.ids.begin(), before.ids.end());
  after.logprobs.insert(after.logprobs.begin(), before.logprobs.begin(), before.logprobs.end());
  after.prompt_logprobs.insert(after.prompt_logprobs.begin(), before.prompt_logprobs.begin(),
                               before.prompt_logprobs.end());
  after.text = before.text + after.text;
  return after;
}

// Takes what is there.
inline void TakeInto(TokenStream& stream, Outcome& out) {
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
class RegroupRanks {
 public:
  using Reopen = decltype(LoadedModel::reopen);
  // The way of the rank at `place` of a later group to the others.
  using JoinFn = std::function<absl::StatusOr<std::unique_ptr<Communicator>>(
      int32_t place, const Membership& membership)>;
  // An address for each group.
  using AddressFn = std::function<std::string()>;

  // `models` by rank, members of one group.
  RegroupRanks(
      std::vector<LoadedModel> models, const Clock* clock, JoinFn join,
      AddressFn address = [] { return std::string(); })
      : join_(std::move(join)), address_(std::move(address)) {
    for (size_t i = 0; i < models.size(); ++i) {
      const auto r = static_cast<int32_t>(i);
      communicators_.push_back(models[i].communicator.get());
      engines_[r] = std::make_unique<RankEngine>(
          std::move(models[i]), clock,
          RankEngine::Regrouping{.join = [this, r](const Membership& membership,
                                                   const auto&) { return Join(r, membership); },
                                 .broken = [this](const GroupBreak&) { ++num_broken_; }});
    }
  }
  // Members of an intact group end at the same time.
  ~RegroupRanks() {
    std::vector<std::thread> ends;
    for (auto& [rank, engine] : engines_) {
      ends.emplace_back([&engine = engine] { engine = nullptr; });
    }
    for (std::thread& end : ends) end.join();
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
    Membership membership = {
        .epoch = ++epoch_, .ranks = {}, .rendezvous = address_(), .reason = reason};
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
    return join_(static_cast<int32_t>(place - membership.ranks.begin()), membership);
  }

  const JoinFn join_;
  const AddressFn address_;
  int64_t epoch_ = 0;
  std::atomic<int> joins_to_fail_ = 0;
  std::atomic<int> num_broken_ = 0;
  std::vector<Communicator*> communicators_;
  std::map<int32_t, std::unique_ptr<RankEngine>> engines_;
};

inline std::shared_ptr<TokenStream> Submit(RankEngine& engine, const GenerationRequest& request) {
  auto stream = engine.Submit(request, {});
  EXPECT_TRUE(stream.ok()) << stream.status();
  return *stream;
}

// Requests that run on ranks while these are lost, and what they have given so far.
class WatchedRequests {
 public:
  // Request i on rank i mod num_ranks.
  WatchedRequests(RegroupRanks& ranks, int32_t num_ranks,
                  const std::vector<GenerationRequest>& requests)
      : ranks_(ranks), requests_(requests), got_(requests.size()) {
    for (size_t i = 0; i < requests.size(); ++i) {
      rank_of_.push_back(static_cast<int32_t>(i) % num_ranks);
      streams_.push_back(Submit(ranks[rank_of_[i]], requests[i]));
      ranks.PokeAll();
    }
  }

  // Until the first request of the rank has `num_more` tokens more. False where it takes too long.
  bool WaitForTokens(int32_t rank, size_t num_more) {
    const auto first = std::find(rank_of_.begin(), rank_of_.end(), rank) - rank_of_.begin();
    const size_t wanted = got_[first].ids.size() + num_more;
    return WaitFor([&] {
      TakeInto(*streams_[first], got_[first]);
      return got_[first].ids.size() >= wanted;
    });
  }

  // What a lost rank had not finished goes to the `heirs` in turn.
  void Inherit(int32_t lost, const std::vector<int32_t>& heirs) {
    for (size_t i = 0; i < streams_.size(); ++i) {
      if (rank_of_[i] != lost || got_[i].end.reason != FinishReason::kNone) continue;
      // What it gave before it was lost; its end, an error, is not for the reader.
      TakeInto(*streams_[i], got_[i]);
      if (got_[i].end.reason != FinishReason::kNone && got_[i].end.error.ok()) continue;
      got_[i].end = {};
      rank_of_[i] = heirs[i % heirs.size()];
      streams_[i] = Resume(ranks_[rank_of_[i]], requests_[i], got_[i]);
      ranks_.PokeAll();
    }
  }

  void ExpectTheEndsOf(const std::vector<Outcome>& want) {
    for (size_t i = 0; i < streams_.size(); ++i) {
      SCOPED_TRACE(i);
      if (got_[i].end.reason == FinishReason::kNone) {
        got_[i] = Joined(got_[i], ReadAll(*streams_[i]));
      }
      EXPECT_TRUE(got_[i].end.error.ok()) << got_[i].end.error;
      ExpectSame(got_[i], want[i]);
    }
  }

 private:
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

  RegroupRanks& ranks_;
  const std::vector<GenerationRequest> requests_;
  std::vector<Outcome> got_;
  std::vector<std::shared_ptr<TokenStream>> streams_;
  std::vector<int32_t> rank_of_;
};

// The ranks are lost one after the other, each `num_tokens` after the one before, until `num_left` are
// left; streams run all along and give what they gave at one rank.
inline void ExpectNothingIsSeenOfLostRanks(RegroupRanks& ranks, int32_t num_ranks, int32_t num_left,
                                           const std::vector<GenerationRequest>& requests,
                                           size_t num_tokens, const std::vector<Outcome>& want) {
  WatchedRequests watched(ranks, num_ranks, requests);
  for (int32_t lost = num_ranks - 1; lost >= num_left; --lost) {
    ASSERT_TRUE(watched.WaitForTokens(lost, num_tokens));
    ranks.LoseRank(lost);
    std::vector<int32_t> heirs(lost);
    for (int32_t r = 0; r < lost; ++r) heirs[r] = r;
    watched.Inherit(lost, heirs);
  }
  watched.ExpectTheEndsOf(want);
  EXPECT_TRUE(ranks[0].failure().ok()) << ranks[0].failure();
  EXPECT_TRUE(ranks[0].CheckIntegrity().ok());
  EXPECT_EQ(ranks[0].stats().num_free_blocks, ranks[0].stats().num_blocks);
  ranks.End();
}

}  // namespace jevons
