#include "engine/engine_group.h"

#include <algorithm>
#include <thread>
#include <tuple>

#include "absl/strings/str_cat.h"

namespace jevons {
namespace {

// A request that a rank has already costs as much as so many tokens of a prompt: they are a good part
// of a step, and it takes part in every step.
constexpr int64_t kTokensPerRequest = 256;

// In tokens: those that the rank would have to compute, once more those that it has no blocks for, and
// the requests before this one.
int64_t CostOf(int64_t num_prompt, int64_t num_cached, const EngineStats& stats) {
  const int64_t num_missing = num_prompt - num_cached;
  // A rank that has said nothing yet has no blocks at all.
  const int64_t num_free = stats.num_blocks > 0 ? stats.num_free_blocks : BlocksFor(num_missing);
  const int64_t num_lacking = std::max<int64_t>(BlocksFor(num_missing) - num_free, 0);
  return num_missing + num_lacking * kKvBlockTokens +
         (stats.num_queued + stats.num_running) * kTokensPerRequest;
}

std::string Describe(size_t num_ranks, const LoadedModel& first) {
  return absl::StrCat(num_ranks, " ranks over ", first.communicator->Description(), ", each ",
                      first.backend->Description());
}

}  // namespace

EngineGroup::EngineGroup(LoadedGroup group, const Clock* clock)
    : threads_(std::move(group.threads)),
      devices_(std::move(group.devices)),
      description_(Describe(group.models.size(), group.models[0])) {
  for (LoadedModel& model : group.models) {
    engines_.push_back(std::make_unique<RankEngine>(std::move(model), clock));
    ranks_.push_back(engines_.back().get());
  }
  first_ = engines_[0].get();
}

EngineGroup::EngineGroup(LoadedModel first, std::unique_ptr<RemoteRanks> others, const Clock* clock,
                         JoinGroup join)
    : description_(Describe(1 + others->ranks().size(), first)), remote_(std::move(others)) {
  std::optional<RankEngine::Regrouping> regrouping;
  if (join) {
    regrouping = {
        .join = std::move(join),
        .broken = [remote = remote_.get()](const GroupBreak& seen) { remote->Broken(seen); }};
  }
  engines_.push_back(std::make_unique<RankEngine>(std::move(first), clock, std::move(regrouping)));
  first_ = engines_[0].get();
  ranks_.push_back(first_);
  for (Rank* rank : remote_->ranks()) ranks_.push_back(rank);
  remote_->Listen(this);
}

EngineGroup::~EngineGroup() {
  Drain(absl::ZeroDuration());
  if (devices_ == nullptr) return;
  // NCCL may let none go before the others.
  std::vector<std::thread> ends;
  for (std::unique_ptr<RankEngine>& engine : engines_) {
    ends.emplace_back([&engine] { engine = nullptr; });
  }
  for (std::thread& end : ends) end.join();
}

absl::StatusOr<std::shared_ptr<TokenStream>> EngineGroup::Submit(GenerationRequest request,
                                                                 std::function<void()> ready) {
  while (true) {
    RETURN_IF_ERROR(failure());
    Rank* rank = nullptr;
    absl::StatusOr<std::shared_ptr<TokenStream>> stream;
    {
      MutexLock lock(&submitting_);
      rank = Choose(request);
      if (rank != nullptr) stream = rank->Submit(request, ready);
    }
    if (rank == nullptr) continue;
    if (stream.ok()) PokeAll();
    // Lost since it was chosen.
    if (!stream.ok() && !rank->failure().ok()) continue;
    return stream;
  }
}

Rank* EngineGroup::Choose(const GenerationRequest& request) const {
  const std::vector<uint64_t> keys = PrefixKeys(request.prompt_ids, request.cache_salt);
  const auto num_prompt = static_cast<int64_t>(request.prompt_ids.size());
  Rank* best = nullptr;
  std::tuple<int64_t, int64_t> best_cost;
  for (Rank* rank : ranks_) {
    if (!rank->failure().ok()) continue;
    const EngineStats stats = rank->stats();
    const int64_t num_cached = int64_t{rank->NumCachedBlocks(keys)} * kKvBlockTokens;
    const std::tuple cost(CostOf(num_prompt, num_cached, stats), -stats.num_free_blocks);
    if (best != nullptr && cost >= best_cost) continue;
    best = rank;
    best_cost = cost;
  }
  return best;
}

void EngineGroup::OnRegroup(const Membership& membership, std::vector<OpenRequest> open) {
  first_->Regroup(membership);
  for (OpenRequest& request : open) Resume(std::move(request));
}

void EngineGroup::OnEnd(const absl::Status& status) {
  first_->Abort(std::string(status.message()));
}

void EngineGroup::Resume(OpenRequest open) {
  // Where no rank is left, rank 0 has failed too, and knows why.
  const absl::Status failed = failure();
  absl::Status status = absl::UnavailableError(failed.ok() ? "no rank is left" : failed.message());
  while (Rank* const rank = Choose(open.request)) {
    status = rank->Resume(open);
    if (status.ok()) return PokeAll();
    if (rank->failure().ok()) break;
  }
  open.stream->End({.reason = FinishReason::kError, .error = std::move(status)});
}

void EngineGroup::Drain(absl::Duration patience) {
  const absl::Status failed = failure();
  if (!failed.ok() && remote_ != nullptr) remote_->Fail(failed);
  // What can not go on need not be waited for.
  const SteadyTime deadline = SteadyDeadline(failed.ok() ? patience : absl::ZeroDuration());
  for (Rank* rank : ranks_) rank->StopAccepting();
  // What a lost rank had comes to one that was idle already.
  EngineStats now;
  do {
    for (Rank* rank : ranks_) rank->WaitIdle(deadline);
    now = stats();
  } while (now.num_running + now.num_queued > 0 && std::chrono::steady_clock::now() < deadline);
  for (Rank* rank : ranks_) rank->Stop();
  PokeAll();
  for (Rank* rank : ranks_) rank->Join();
}

absl::Status EngineGroup::failure() const {
  if (remote_ != nullptr) {
    // It knows who was lost, rank 0 only what broke.
    RETURN_IF_ERROR(remote_->failure());
    return first_->failure();
  }
  for (Rank* rank : ranks_) RETURN_IF_ERROR(rank->failure());
  return absl::OkStatus();
}

EngineStats EngineGroup::stats() const {
  EngineStats out;
  for (Rank* rank : ranks_) {
    const EngineStats s = rank->stats();
    out.num_queued += s.num_queued;
    out.num_running += s.num_running;
    out.num_blocks += s.num_blocks;
    out.num_free_blocks += s.num_free_blocks;
    out.num_steps = std::max(out.num_steps, s.num_steps);
    out.num_preemptions += s.num_preemptions;
    out.num_requests += s.num_requests;
    out.num_prompt_tokens += s.num_prompt_tokens;
    out.num_cached_tokens += s.num_cached_tokens;
    out.num_new_tokens += s.num_new_tokens;
    out.num_moved_layers = std::max(out.num_moved_layers, s.num_moved_layers);
    out.group_epoch = std::max(out.group_epoch, s.group_epoch);
    out.step_age = std::max(out.step_age, s.step_age);
    out.largest_token_gap = std::max(out.largest_token_gap, s.largest_token_gap);
  }
  return out;
}

std::vector<RankStats> EngineGroup::rank_stats() const {
  std::vector<RankStats> out;
  for (Rank* rank : ranks_) {
    out.push_back({.rank = static_cast<int32_t>(out.size()),
                   .failure = rank->failure(),
                   .stats = rank->stats()});
  }
  return out;
}

absl::Status EngineGroup::CheckIntegrity() {
  for (Rank* rank : ranks_) {
    const absl::Status status = rank->CheckIntegrity();
    if (rank->failure().ok()) RETURN_IF_ERROR(status);
  }
  return absl::OkStatus();
}

void EngineGroup::PokeAll() {
  for (Rank* rank : ranks_) rank->Poke();
}

}  // namespace jevons
