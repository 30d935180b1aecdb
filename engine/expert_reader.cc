#include "engine/expert_reader.h"

#include <algorithm>
#include <vector>

namespace jevons {
namespace {

// The group of `expert` in weights that hold `experts` in this order; -1 without it.
int32_t GroupOf(int32_t expert, std::span<const int32_t> experts) {
  const auto at = std::find(experts.begin(), experts.end(), expert);
  return at == experts.end() ? -1 : static_cast<int32_t>(at - experts.begin());
}

// Weights with the experts in the order of their groups.
struct Held {
  const MlpWeights& weights;
  std::span<const int32_t> experts;
};

// `wanted` from what is held and what was read, and the shared experts that are held behind the routed
// ones.
absl::StatusOr<std::unique_ptr<Weight>> Join(std::span<const int32_t> wanted, const Held& held,
                                             const Held& read,
                                             std::unique_ptr<Weight> MlpWeights::*matrix,
                                             Backend& backend) {
  const Weight* const old = (held.weights.*matrix).get();
  std::vector<PackedGroup> groups;
  for (const int32_t expert : wanted) {
    const int32_t group = GroupOf(expert, held.experts);
    groups.push_back(
        group >= 0 ? PackedGroup{old, group}
                   : PackedGroup{(read.weights.*matrix).get(), GroupOf(expert, read.experts)});
  }
  for (auto g = static_cast<int32_t>(held.experts.size()); g < old->num_groups(); ++g) {
    groups.push_back({old, g});
  }
  return backend.JoinGroups(groups);
}

}  // namespace

absl::StatusOr<MlpWeights> ExpertReader::Read(int32_t layer_idx,
                                              std::span<const int32_t> slot_expert) {
  const std::vector<int32_t> wanted = FilledSlots(slot_expert);
  // A device has room for one more layer, and no more.
  if (!backend_->traits().host_memory) return Load(layer_idx, wanted);
  const std::vector<int32_t> holds = FilledSlots(model_->runner->held()[layer_idx]);
  const Held held = {model_->runner->weights().layers[layer_idx].moe.experts, holds};
  std::vector<int32_t> missing;
  for (const int32_t expert : wanted) {
    if (GroupOf(expert, holds) < 0 && GroupOf(expert, missing) < 0) missing.push_back(expert);
  }
  MlpWeights fresh;
  if (!missing.empty()) {
    ASSIGN_OR_RETURN(fresh, Load(layer_idx, missing));
  }
  const Held read = {fresh, missing};
  auto gate_up = Join(wanted, held, read, &MlpWeights::gate_up, *backend_);
  auto down = Join(wanted, held, read, &MlpWeights::down, *backend_);
  // Stored in unlike types: packed as one they get the type that fits all.
  if (absl::IsInvalidArgument(gate_up.status()) || absl::IsInvalidArgument(down.status())) {
    return Load(layer_idx, wanted);
  }
  MlpWeights out;
  ASSIGN_OR_RETURN(out.gate_up, std::move(gate_up));
  ASSIGN_OR_RETURN(out.down, std::move(down));
  return out;
}

absl::StatusOr<MlpWeights> ExpertReader::Load(int32_t layer_idx, std::span<const int32_t> experts) {
  if (checkpoint_ == nullptr) {
    if (!model_->reopen) return absl::UnimplementedError("the checkpoint cannot be read again");
    ASSIGN_OR_RETURN(checkpoint_, model_->reopen());
  }
  return LoadExpertWeights(model_->config, *checkpoint_, *backend_, layer_idx, experts,
                           model_->options.activation_precision);
}

}  // namespace jevons
