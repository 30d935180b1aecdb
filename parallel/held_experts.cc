#include "parallel/held_experts.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace jevons {
namespace {

class Places {
 public:
  Places(int32_t num_experts, int32_t num_ranks, std::vector<int32_t> slot_expert)
      : slots_per_rank_(static_cast<int32_t>(slot_expert.size()) / num_ranks),
        slot_expert_(std::move(slot_expert)),
        num_slots_of_(num_experts) {
    for (int32_t expert : slot_expert_) {
      if (expert >= 0) ++num_slots_of_[expert];
    }
  }

  std::vector<int32_t> Missing() const {
    std::vector<int32_t> out;
    for (size_t e = 0; e < num_slots_of_.size(); ++e) {
      if (num_slots_of_[e] == 0) out.push_back(static_cast<int32_t>(e));
    }
    return out;
  }

  // Slots that may take another expert without one being missing.
  int64_t Count() const {
    auto out = static_cast<int64_t>(slot_expert_.size());
    for (int32_t n : num_slots_of_) out -= std::min(n, 1);
    return out;
  }

  void Put(int32_t expert) {
    int32_t best = -1;
    int32_t best_places = 0;
    const int32_t num_ranks = static_cast<int32_t>(slot_expert_.size()) / slots_per_rank_;
    for (int32_t rank = 0; rank < num_ranks; ++rank) {
      const int32_t places = PlacesOf(rank);
      if (places <= best_places) continue;
      best = rank;
      best_places = places;
    }
    CHECK(best >= 0);
    int32_t& slot = slot_expert_[BestSlot(best)];
    if (slot >= 0) --num_slots_of_[slot];
    slot = expert;
    ++num_slots_of_[expert];
  }

  const std::vector<int32_t>& slot_expert() const { return slot_expert_; }

 private:
  // How many slots the expert of this one has; an empty slot is worth least.
  int32_t Replicas(int32_t slot) const {
    const int32_t expert = slot_expert_[slot];
    return expert < 0 ? static_cast<int32_t>(slot_expert_.size()) + 1 : num_slots_of_[expert];
  }
  int32_t PlacesOf(int32_t rank) const {
    int32_t out = 0;
    for (int32_t i = 0; i < slots_per_rank_; ++i) {
      if (Replicas(rank * slots_per_rank_ + i) > 1) ++out;
    }
    return out;
  }
  int32_t BestSlot(int32_t rank) const {
    int32_t best = rank * slots_per_rank_;
    for (int32_t slot = best; slot < (rank + 1) * slots_per_rank_; ++slot) {
      if (Replicas(slot) > Replicas(best)) best = slot;
    }
    return best;
  }

  const int32_t slots_per_rank_;
  std::vector<int32_t> slot_expert_;
  std::vector<int32_t> num_slots_of_;  // by expert
};

absl::StatusOr<std::vector<int32_t>> Concatenate(int32_t num_experts,
                                                 std::span<const std::vector<int32_t>> held,
                                                 size_t slots_per_rank) {
  std::vector<int32_t> out;
  for (const std::vector<int32_t>& own : held) {
    out.insert(out.end(), own.begin(), own.end());
    out.resize(out.size() + slots_per_rank - own.size(), -1);
  }
  for (int32_t expert : out) {
    if (expert >= -1 && expert < num_experts) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("a held expert must be in [-1, ", num_experts, "), given ", expert));
  }
  return out;
}

}  // namespace

absl::StatusOr<ExpertMap> MapOfHeld(int32_t num_experts,
                                    std::span<const std::vector<int32_t>> held) {
  const auto num_ranks = static_cast<int32_t>(held.size());
  if (num_ranks == 0) return absl::InvalidArgumentError("a map needs at least 1 rank, given 0");
  size_t slots_per_rank = 1;
  for (const auto& own : held) slots_per_rank = std::max(slots_per_rank, own.size());
  while (true) {
    ASSIGN_OR_RETURN(std::vector<int32_t> slots, Concatenate(num_experts, held, slots_per_rank));
    Places places(num_experts, num_ranks, std::move(slots));
    const std::vector<int32_t> missing = places.Missing();
    const int64_t lacking = static_cast<int64_t>(missing.size()) - places.Count();
    if (lacking > 0) {
      slots_per_rank += static_cast<size_t>((lacking + num_ranks - 1) / num_ranks);
      continue;
    }
    for (int32_t expert : missing) places.Put(expert);
    return ExpertMap::Create(num_experts, num_ranks, places.slot_expert());
  }
}

}  // namespace jevons
