#include "parallel/move_plan.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "parallel/placement.h"

namespace jevons {
namespace {

// So that no product of costs overflows.
constexpr double kMaxAmount = 1e30;

absl::Status CheckCosts(const MoveCosts& costs) {
  const auto is_amount = [](double x) { return x >= 0 && x <= kMaxAmount; };
  if (costs.bytes_per_expert >= 0 && is_amount(costs.seconds_per_byte) &&
      is_amount(costs.expert_seconds_per_second) && is_amount(costs.horizon_seconds) &&
      is_amount(costs.noise)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("bytes_per_expert, seconds_per_byte, expert_seconds_per_second, horizon_seconds "
                   "and noise must "
                   "be between 0 and ",
                   kMaxAmount, ", got ", costs.bytes_per_expert, ", ", costs.seconds_per_byte, ", ",
                   costs.expert_seconds_per_second, " and ", costs.horizon_seconds));
}

double CopySeconds(const MoveCosts& costs) {
  return static_cast<double>(costs.bytes_per_expert) * costs.seconds_per_byte;
}

double SecondsOfImbalance(const MoveCosts& costs) {
  return costs.expert_seconds_per_second * costs.horizon_seconds;
}

std::vector<int32_t> RanksOf(const ExpertMap& map, int32_t expert) {
  std::vector<int32_t> out;
  for (const int32_t slot : map.slots_of(expert)) out.push_back(map.rank_of(slot));
  return out;
}

bool PaysBetter(const LayerMove& a, const LayerMove& b) {
  // gain / cost without the division: a cost may be 0.
  const double left = a.gain_seconds * b.cost_seconds;
  const double right = b.gain_seconds * a.cost_seconds;
  if (left != right) return left > right;
  if (a.gain_seconds != b.gain_seconds) return a.gain_seconds > b.gain_seconds;
  return a.layer < b.layer;
}

}  // namespace

absl::StatusOr<std::vector<SlotCopy>> DiffMaps(int32_t layer, const ExpertMap& present,
                                               const ExpertMap& wanted) {
  if (present.num_experts() != wanted.num_experts() || present.num_ranks() != wanted.num_ranks() ||
      present.num_slots() != wanted.num_slots()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "layer ", layer, ": the maps must be alike in experts, ranks and slots, got ",
        present.num_experts(), ", ", present.num_ranks(), ", ", present.num_slots(), " and ",
        wanted.num_experts(), ", ", wanted.num_ranks(), ", ", wanted.num_slots()));
  }
  std::vector<SlotCopy> copies;
  std::vector<int32_t> num_sent(static_cast<size_t>(present.num_ranks()), 0);
  for (int32_t slot = 0; slot < wanted.num_slots(); ++slot) {
    const int32_t expert = wanted.expert_of(slot);
    if (expert < 0 || expert == present.expert_of(slot)) continue;
    std::vector<int32_t> ranks = RanksOf(present, expert);
    const int32_t rank = wanted.rank_of(slot);
    if (std::find(ranks.begin(), ranks.end(), rank) != ranks.end()) ranks = {rank};
    const auto first = std::min_element(ranks.begin(), ranks.end(), [&](int32_t a, int32_t b) {
      return num_sent[a] < num_sent[b];
    });
    std::rotate(ranks.begin(), first, first + 1);
    if (ranks[0] != rank) ++num_sent[ranks[0]];
    copies.push_back(
        {.layer = layer, .slot = slot, .expert = expert, .source_ranks = std::move(ranks)});
  }
  return copies;
}

double NoiseOfCounts(double choices, int32_t num_ranks) {
  return choices > 0 ? std::min(4 * std::sqrt(num_ranks / choices), kMaxAmount) : kMaxAmount;
}

absl::StatusOr<double> CopyPrice(const MoveCosts& costs) {
  RETURN_IF_ERROR(CheckCosts(costs));
  const double cost = CopySeconds(costs);
  if (cost == 0) return 0;
  return std::min(cost / SecondsOfImbalance(costs), kMaxCopyPrice);
}

absl::StatusOr<MovePlan> PlanMoves(std::span<const ExpertMap> present,
                                   std::span<const ExpertMap> wanted, std::span<const double> load,
                                   const MoveCosts& costs) {
  RETURN_IF_ERROR(CheckCosts(costs));
  if (present.size() != wanted.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("as many wanted maps as present ones are needed (", present.size(), "), got ",
                     wanted.size()));
  }
  MovePlan plan;
  size_t at = 0;
  for (size_t layer = 0; layer < present.size(); ++layer) {
    const size_t num_experts = present[layer].num_experts();
    if (load.size() - at < num_experts) {
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", layer, " needs ", num_experts, " loads, got ", load.size() - at));
    }
    const std::span<const double> of_layer = load.subspan(at, num_experts);
    at += num_experts;
    LayerMove move;
    move.layer = static_cast<int32_t>(layer);
    ASSIGN_OR_RETURN(move.copies, DiffMaps(move.layer, present[layer], wanted[layer]));
    if (present[layer] == wanted[layer]) continue;
    move.present_imbalance = MeanAndBusiest(present[layer], of_layer).imbalance();
    move.wanted_imbalance = MeanAndBusiest(wanted[layer], of_layer).imbalance();
    const double less = move.present_imbalance - move.wanted_imbalance;
    if (std::abs(less) > costs.noise) move.gain_seconds = SecondsOfImbalance(costs) * less;
    move.cost_seconds = static_cast<double>(move.copies.size()) * CopySeconds(costs);
    auto& list = move.gain_seconds > move.cost_seconds ? plan.moves : plan.refused;
    list.push_back(std::move(move));
  }
  if (at != load.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the layers have ", at, " experts together, got ", load.size(), " loads"));
  }
  std::sort(plan.moves.begin(), plan.moves.end(), PaysBetter);
  std::sort(plan.refused.begin(), plan.refused.end(), PaysBetter);
  return plan;
}

}  // namespace jevons
