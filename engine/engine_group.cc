#include "engine/engine_group.h"

#include <algorithm>
#include <tuple>

#include "absl/strings/str_cat.h"

namespace jevons {

namespace {

std::string Describe(size_t num_ranks, const LoadedModel& first) {
  return absl::StrCat(num_ranks, " ranks over ", first.communicator->Description(), ", each ",
                      first.backend->Description());
}

}  // namespace

EngineGroup::EngineGroup(LoadedGroup group, const Clock* clock)
    : threads_(std::move(group.threads)),
      description_(Describe(group.models.size(), group.models[0])) {
  for (LoadedModel& model : group.models) {
    engines_.push_back(std::make_unique<RankEngine>(std::move(model), clock));
    ranks_.push_back(engines_.back().get());
  }
  first_ = engines_[0].get();
}

EngineGroup::EngineGroup(LoadedModel first, std::unique_ptr<RemoteRanks> others, const Clock* clock)
    : description_(Describe(1 + others->ranks().size(), first)), remote_(std::move(others)) {
  engines_.push_back(std::make_unique<RankEngine>(std::move(first), clock));
  first_ = engines_[0].get();
  ranks_.push_back(first_);
  for (Rank* rank : remote_->ranks()) ranks_.push_back(rank);
  remote_->OnLoss([engine = first_](const absl::Status& status) {
    engine->Abort(std::string(status.message()));
  });
}

EngineGroup::~EngineGroup() { Drain(absl::ZeroDuration()); }

absl::StatusOr<std::shared_ptr<TokenStream>> EngineGroup::Submit(GenerationRequest request,
                                                                 std::function<void()> ready) {
  RETURN_IF_ERROR(failure());
  Rank* best = nullptr;
  std::tuple<int64_t, int64_t> best_load;
  for (Rank* rank : ranks_) {
    const EngineStats stats = rank->stats();
    const std::tuple load(stats.num_queued + stats.num_running, -stats.num_free_blocks);
    if (best != nullptr && load >= best_load) continue;
    best = rank;
    best_load = load;
  }
  auto stream = best->Submit(std::move(request), std::move(ready));
  if (stream.ok()) PokeAll();
  return stream;
}

void EngineGroup::Drain(absl::Duration patience) {
  // What can not go on need not be waited for.
  const SteadyTime deadline = SteadyDeadline(failure().ok() ? patience : absl::ZeroDuration());
  for (Rank* rank : ranks_) rank->StopAccepting();
  for (Rank* rank : ranks_) rank->WaitIdle(deadline);
  for (Rank* rank : ranks_) rank->Stop();
  PokeAll();
  for (Rank* rank : ranks_) rank->Join();
}

absl::Status EngineGroup::failure() const {
  // Rank 0 last: of a lost rank it knows what broke, the others' say who is lost.
  for (size_t i = ranks_.size(); i > 0; --i) RETURN_IF_ERROR(ranks_[i - 1]->failure());
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
    out.num_new_tokens += s.num_new_tokens;
    out.num_moved_layers = std::max(out.num_moved_layers, s.num_moved_layers);
  }
  return out;
}

absl::Status EngineGroup::CheckIntegrity() {
  for (Rank* rank : ranks_) RETURN_IF_ERROR(rank->CheckIntegrity());
  return absl::OkStatus();
}

void EngineGroup::PokeAll() {
  for (Rank* rank : ranks_) rank->Poke();
}

}  // namespace jevons
