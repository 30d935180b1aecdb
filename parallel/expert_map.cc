#include "parallel/expert_map.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace jevons {
namespace {

absl::Status CheckCounts(int32_t num_experts, int32_t num_ranks) {
  if (num_experts < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_experts must be at least 1, got ", num_experts));
  }
  if (num_ranks < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_ranks must be at least 1, got ", num_ranks));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ExpertMap> ExpertMap::Even(int32_t num_experts, int32_t num_ranks,
                                          int32_t slots_per_rank) {
  RETURN_IF_ERROR(CheckCounts(num_experts, num_ranks));
  const int64_t num_slots = int64_t{num_ranks} * slots_per_rank;
  if (slots_per_rank < 1 || num_slots < num_experts || num_slots > INT32_MAX) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_ranks * slots_per_rank must be between num_experts (", num_experts,
                     ") and ", INT32_MAX, ", got ", num_ranks, " * ", slots_per_rank));
  }
  std::vector<int32_t> slot_expert(static_cast<size_t>(num_slots), -1);
  const auto first_of = [&](int64_t rank) {
    return static_cast<int32_t>(rank * num_experts / num_ranks);
  };
  for (int32_t rank = 0; rank < num_ranks; ++rank) {
    int64_t slot = int64_t{rank} * slots_per_rank;
    for (int32_t e = first_of(rank); e < first_of(rank + 1); ++e) slot_expert[slot++] = e;
  }
  std::vector<int32_t> num_replicas(num_experts, 1);
  for (int64_t slot = 0; slot < num_slots; ++slot) {
    if (slot_expert[slot] >= 0) continue;
    const auto held = std::span(slot_expert)
                          .subspan(slot / slots_per_rank * slots_per_rank, slot % slots_per_rank);
    int32_t best = -1;
    for (int32_t e = 0; e < num_experts; ++e) {
      if (best >= 0 && num_replicas[e] >= num_replicas[best]) continue;
      if (std::find(held.begin(), held.end(), e) == held.end()) best = e;
    }
    if (best < 0) continue;
    slot_expert[slot] = best;
    ++num_replicas[best];
  }
  return Create(num_experts, num_ranks, slot_expert);
}

absl::StatusOr<ExpertMap> ExpertMap::Create(int32_t num_experts, int32_t num_ranks,
                                            std::span<const int32_t> slot_expert) {
  RETURN_IF_ERROR(CheckCounts(num_experts, num_ranks));
  if (slot_expert.empty() || slot_expert.size() % static_cast<size_t>(num_ranks) != 0 ||
      slot_expert.size() > INT32_MAX) {
    return absl::InvalidArgumentError(
        absl::StrCat("the number of slots must be a positive multiple of num_ranks (", num_ranks,
                     "), got ", slot_expert.size()));
  }
  ExpertMap map;
  map.num_experts_ = num_experts;
  map.num_ranks_ = num_ranks;
  map.slot_expert_.assign(slot_expert.begin(), slot_expert.end());
  map.cu_slots_.assign(static_cast<size_t>(num_experts) + 1, 0);
  for (int32_t slot = 0; slot < map.num_slots(); ++slot) {
    const int32_t expert = slot_expert[slot];
    if (expert < -1 || expert >= num_experts) {
      return absl::InvalidArgumentError(absl::StrCat("the expert of slot ", slot,
                                                     " must be between -1 and ", num_experts - 1,
                                                     ", got ", expert));
    }
    if (expert >= 0) ++map.cu_slots_[expert + 1];
  }
  for (int32_t e = 0; e < num_experts; ++e) {
    if (map.cu_slots_[e + 1] == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("every expert needs a slot, expert ", e, " has none"));
    }
    map.cu_slots_[e + 1] += map.cu_slots_[e];
  }
  map.expert_slots_.resize(map.cu_slots_[num_experts]);
  std::vector<int32_t> next(map.cu_slots_.begin(), map.cu_slots_.end() - 1);
  for (int32_t slot = 0; slot < map.num_slots(); ++slot) {
    const int32_t expert = slot_expert[slot];
    if (expert < 0) continue;
    const int32_t at = next[expert]++;
    map.expert_slots_[at] = slot;
    if (at > map.cu_slots_[expert] && map.rank_of(map.expert_slots_[at - 1]) == map.rank_of(slot)) {
      return absl::InvalidArgumentError(
          absl::StrCat("a rank may hold an expert once, rank ", map.rank_of(slot), " holds expert ",
                       expert, " in slots ", map.expert_slots_[at - 1], " and ", slot));
    }
  }
  return map;
}

int32_t ExpertMap::SlotFor(int32_t expert, int32_t from, int64_t token_idx) const {
  const std::span<const int32_t> slots = slots_of(expert);
  const int32_t first = from * slots_per_rank();
  for (const int32_t slot : slots) {
    if (slot >= first && slot - first < slots_per_rank()) return slot;
  }
  const uint64_t at = static_cast<uint64_t>(token_idx) + static_cast<uint32_t>(from) +
                      static_cast<uint32_t>(expert);
  return slots[at % slots.size()];
}

}  // namespace jevons
