#include "engine/engine_group.h"

#include <algorithm>
#include <tuple>

#include "absl/strings/str_cat.h"

namespace jevons {

EngineGroup::EngineGroup(LoadedGroup group, const Clock* clock)
    : threads_(std::move(group.threads)) {
  for (LoadedModel& model : group.models) {
    ranks_.push_back(std::make_unique<RankEngine>(std::move(model), clock));
  }
}

EngineGroup::~EngineGroup() { Drain(absl::ZeroDuration()); }

absl::StatusOr<std::shared_ptr<TokenStream>> EngineGroup::Submit(GenerationRequest request,
                                                                 std::function<void()> ready) {
  RETURN_IF_ERROR(failure());
  RankEngine* best = nullptr;
  std::tuple<int64_t, int64_t> best_load;
  for (const auto& rank : ranks_) {
    const EngineStats stats = rank->stats();
    const std::tuple load(stats.num_queued + stats.num_running, -stats.num_free_blocks);
    if (best != nullptr && load >= best_load) continue;
    best = rank.get();
    best_load = load;
  }
  auto stream = best->Submit(std::move(request), std::move(ready));
  if (stream.ok()) PokeAll();
  return stream;
}

void EngineGroup::Drain(absl::Duration patience) {
  const SteadyTime deadline = SteadyDeadline(patience);
  for (const auto& rank : ranks_) rank->StopAccepting();
  for (const auto& rank : ranks_) rank->WaitIdle(deadline);
  for (const auto& rank : ranks_) rank->Stop();
  PokeAll();
  for (const auto& rank : ranks_) rank->Join();
}

absl::Status EngineGroup::failure() const {
  for (const auto& rank : ranks_) RETURN_IF_ERROR(rank->failure());
  return absl::OkStatus();
}

EngineStats EngineGroup::stats() const {
  EngineStats out;
  for (const auto& rank : ranks_) {
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
  for (const auto& rank : ranks_) RETURN_IF_ERROR(rank->CheckIntegrity());
  return absl::OkStatus();
}

std::string EngineGroup::backend_description() const {
  return absl::StrCat(ranks_.size(), " ranks over threads, each ",
                      ranks_[0]->backend_description());
}

void EngineGroup::PokeAll() {
  for (const auto& rank : ranks_) rank->Poke();
}

}  // namespace jevons
