// Which rank holds which expert, and how often.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"

namespace jevons {

// Of one MoE layer. Every rank has the same number of slots; a slot holds one expert's weights. An
// expert has one or more slots, its replicas: all give the same bits, so any may serve a token.
// Slots are numbered rank by rank: slot s belongs to rank s / slots_per_rank. Immutable,
// thread-safe.
class ExpertMap {
 public:
  ExpertMap() = default;

  // Experts in order, an equal share for each rank, which differ by one where they must. A slot that
  // is left over takes, of the experts that its rank lacks, the first of those with the fewest
  // slots; where the rank holds them all it stays empty. INVALID_ARGUMENT if there are fewer slots
  // than experts.
  static absl::StatusOr<ExpertMap> Even(int32_t num_experts, int32_t num_ranks,
                                        int32_t slots_per_rank);
  // slot_expert[s] is the expert of slot s, [num_ranks * slots_per_rank]; -1 is an empty slot.
  // INVALID_ARGUMENT names what is wrong: an id out of range, an expert without a slot, one twice on
  // a rank.
  static absl::StatusOr<ExpertMap> Create(int32_t num_experts, int32_t num_ranks,
                                          std::span<const int32_t> slot_expert);

  int32_t num_experts() const { return num_experts_; }
  int32_t num_ranks() const { return num_ranks_; }
  int32_t num_slots() const { return static_cast<int32_t>(slot_expert_.size()); }
  int32_t slots_per_rank() const { return num_slots() / num_ranks_; }
  int32_t rank_of(int32_t slot) const { return slot / slots_per_rank(); }
  // -1 for an empty slot.
  int32_t expert_of(int32_t slot) const { return slot_expert_[slot]; }
  // Slots of the expert, ascending; at least one.
  std::span<const int32_t> slots_of(int32_t expert) const {
    return std::span(expert_slots_)
        .subspan(cu_slots_[expert], cu_slots_[expert + 1] - cu_slots_[expert]);
  }
  // As above, flat, for a device: expert e has expert_slots()[cu_slots()[e], cu_slots()[e + 1]).
  std::span<const int32_t> cu_slots() const { return cu_slots_; }
  std::span<const int32_t> expert_slots() const { return expert_slots_; }
  // Experts of the rank's slots, slot by slot.
  std::span<const int32_t> experts_of_rank(int32_t rank) const {
    return std::span(slot_expert_).subspan(rank * slots_per_rank(), slots_per_rank());
  }

  // The slot that serves this choice of a token of rank `from`: the replica on that rank where there
  // is one, else slots_of(expert)[(token_idx + from + expert) % replicas]. So a rank's tokens spread
  // over the replicas, and so do the single tokens of many ranks and of many experts.
  // token_idx >= 0: any number that tells the tokens of a step apart.
  int32_t SlotFor(int32_t expert, int32_t from, int64_t token_idx) const;

  bool operator==(const ExpertMap& other) const = default;

 private:
  int32_t num_experts_ = 0;
  int32_t num_ranks_ = 1;
  std::vector<int32_t> slot_expert_;
  std::vector<int32_t> cu_slots_;
  std::vector<int32_t> expert_slots_;
};

}  // namespace jevons
