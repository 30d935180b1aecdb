#include "engine/engine.h"

#include "engine/engine_group.h"
#include "engine/loaded_model.h"
#include "engine/rank_engine.h"

namespace jevons {

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const EngineOptions& options,
                                                       const Clock* clock) {
  if (options.num_ranks > 1) {
    ASSIGN_OR_RETURN(LoadedGroup group, LoadModelGroup(options));
    return StartEngine(std::move(group), clock);
  }
  ASSIGN_OR_RETURN(LoadedModel model, LoadModel(options));
  return StartEngine(std::move(model), clock);
}

std::unique_ptr<Engine> StartEngine(LoadedModel model, const Clock* clock) {
  return std::make_unique<RankEngine>(std::move(model), clock);
}

std::unique_ptr<Engine> StartEngine(LoadedGroup group, const Clock* clock) {
  return std::make_unique<EngineGroup>(std::move(group), clock);
}

}  // namespace jevons
