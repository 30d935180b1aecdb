#include "parallel/placement_search.h"

#include <algorithm>
#include <utility>

namespace jevons {

PlacementSearch::PlacementSearch(std::span<const double> load, const PlacementShape& shape,
                                 std::vector<int32_t> slot_expert,
                                 std::vector<int32_t> node_of_expert)
    : load_(load),
      shape_(shape),
      num_experts_(static_cast<int32_t>(load.size())),
      slot_expert_(slot_expert.size(), -1),
      node_of_expert_(std::move(node_of_expert)),
      holds_(static_cast<size_t>(shape.num_ranks()) * load.size(), 0),
      ranks_of_(load.size()),
      share_(load.size()),
      rank_load_(static_cast<size_t>(shape.num_ranks()), 0) {
  for (int32_t slot = 0; slot < num_slots(); ++slot) Set(slot, slot_expert[slot]);
  SumLoads();
}

bool PlacementSearch::Step() {
  Change best;
  const int32_t first = busiest_rank_ * shape_.slots_per_rank;
  for (int32_t slot = first; slot < first + shape_.slots_per_rank; ++slot) {
    const int32_t expert = slot_expert_[slot];
    if (expert < 0) continue;
    for (int32_t other = 0; other < num_slots(); ++other) {
      if (RankOf(other) == busiest_rank_) continue;
      TryTake(other, expert, best);
      TrySwap(slot, other, best);
    }
    for (int32_t other = 0; other < num_experts_; ++other) TryTake(slot, other, best);
  }
  if (best.slot < 0) return false;
  Clear(best.slot);
  if (best.other_slot >= 0) {
    const int32_t given = best.expert;
    const int32_t taken = slot_expert_[best.other_slot];
    Clear(best.other_slot);
    Set(best.other_slot, given);
    Set(best.slot, taken);
  } else {
    Set(best.slot, best.expert);
  }
  SumLoads();
  return true;
}

bool PlacementSearch::MayTake(int32_t rank, int32_t expert) const {
  if (Holds(rank, expert)) return false;
  return node_of_expert_.empty() || node_of_expert_[expert] == rank / shape_.ranks_per_node;
}

// `slot` takes `expert` in place of one that has other replicas: these get more, the expert's get
// less.
void PlacementSearch::TryTake(int32_t slot, int32_t expert, Change& best) const {
  const int32_t rank = RankOf(slot);
  const int32_t old = slot_expert_[slot];
  if (!MayTake(rank, expert) || (old >= 0 && CountOf(old) < 2)) return;
  const double less = share_[expert].now - share_[expert].with_more;
  const double old_share = old >= 0 ? share_[old].now : 0;
  const auto relief = [&](int32_t r) { return Holds(r, expert) ? less : 0; };
  double after = rank_load_[rank] + share_[expert].with_more - old_share;
  if (rank != busiest_rank_) after = std::max(after, busiest() - relief(busiest_rank_));
  if (busiest() - after <= best.gain) return;
  if (old >= 0) {
    const double more = share_[old].with_less - old_share;
    for (const int32_t r : ranks_of_[old]) {
      if (r != rank) after = std::max(after, rank_load_[r] + more - relief(r));
    }
  }
  Consider({.slot = slot, .expert = expert}, after, 1, best);
}

// `slot` is one of the busiest rank, the other may be empty.
void PlacementSearch::TrySwap(int32_t slot, int32_t other_slot, Change& best) const {
  const int32_t other_rank = RankOf(other_slot);
  const int32_t expert = slot_expert_[slot];
  const int32_t other = slot_expert_[other_slot];
  const int32_t num_copies = other >= 0 ? 2 : 1;
  const double less = share_[expert].now - (other >= 0 ? share_[other].now : 0);
  if (less <= best.gain * num_copies) return;
  if (!MayTake(other_rank, expert) || (other >= 0 && !MayTake(busiest_rank_, other))) return;
  const double after = std::max(busiest() - less, rank_load_[other_rank] + less);
  Consider({.slot = slot, .expert = expert, .other_slot = other_slot}, after, num_copies, best);
}

void PlacementSearch::Consider(Change change, double busiest_after, int32_t num_copies,
                               Change& best) const {
  // Sums of the same loads in another order differ by less.
  constexpr double kNoise = 1e-9;
  const double gain = busiest() - busiest_after;
  if (!(gain > kNoise * busiest())) return;
  change.gain = gain / num_copies;
  if (change.gain > best.gain) best = change;
}

void PlacementSearch::Set(int32_t slot, int32_t expert) {
  slot_expert_[slot] = expert;
  if (expert < 0) return;
  holds_[int64_t{RankOf(slot)} * num_experts_ + expert] = 1;
  ranks_of_[expert].push_back(RankOf(slot));
}

void PlacementSearch::Clear(int32_t slot) {
  const int32_t expert = slot_expert_[slot];
  slot_expert_[slot] = -1;
  if (expert < 0) return;
  holds_[int64_t{RankOf(slot)} * num_experts_ + expert] = 0;
  std::vector<int32_t>& ranks = ranks_of_[expert];
  ranks.erase(std::find(ranks.begin(), ranks.end(), RankOf(slot)));
}

void PlacementSearch::SumLoads() {
  for (int32_t e = 0; e < num_experts_; ++e) {
    const int32_t count = CountOf(e);
    share_[e] = {.now = load_[e] / count,
                 .with_more = load_[e] / (count + 1),
                 .with_less = count > 1 ? load_[e] / (count - 1) : 0};
  }
  std::fill(rank_load_.begin(), rank_load_.end(), 0);
  for (int32_t slot = 0; slot < num_slots(); ++slot) {
    const int32_t expert = slot_expert_[slot];
    if (expert >= 0) rank_load_[RankOf(slot)] += share_[expert].now;
  }
  busiest_rank_ = static_cast<int32_t>(std::max_element(rank_load_.begin(), rank_load_.end()) -
                                       rank_load_.begin());
}

}  // namespace jevons
