// The part of PlanPlacement that makes a placement better step by step.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/placement.h"

namespace jevons {

// A placement that changes. Keeps the rules of an ExpertMap: every expert has a slot, none has two
// on a rank. Thread-compatible.
class PlacementSearch {
 public:
  // slot_expert keeps the rules. node_of_expert [num_experts] holds experts on their node; empty:
  // any may be anywhere. `load` outlives this.
  PlacementSearch(std::span<const double> load, const PlacementShape& shape,
                  std::vector<int32_t> slot_expert, std::vector<int32_t> node_of_expert);

  // Makes the one change - a slot takes another expert, or two slots swap - that takes the most off
  // the busiest rank for each expert copied, while every rank it touches stays below what that rank
  // had. False, and nothing changes, where there is none. So the sorted loads fall from step to
  // step, and the steps end.
  bool Step();

  const std::vector<int32_t>& slot_expert() const { return slot_expert_; }
  double busiest() const { return rank_load_[busiest_rank_]; }

 private:
  // Load of one replica of an expert: as it is, with one replica more and with one less.
  struct Share {
    double now = 0;
    double with_more = 0;
    double with_less = 0;
  };
  struct Change {
    int32_t slot = -1;
    int32_t expert = -1;
    int32_t other_slot = -1;  // a swap: it takes what `slot` had
    double gain = 0;          // for each expert copied
  };

  int32_t num_slots() const { return static_cast<int32_t>(slot_expert_.size()); }
  int32_t RankOf(int32_t slot) const { return slot / shape_.slots_per_rank; }
  bool Holds(int32_t rank, int32_t expert) const {
    return holds_[int64_t{rank} * num_experts_ + expert] != 0;
  }
  int32_t CountOf(int32_t expert) const { return static_cast<int32_t>(ranks_of_[expert].size()); }
  bool MayTake(int32_t rank, int32_t expert) const;
  void TryTake(int32_t slot, int32_t expert, Change& best) const;
  void TrySwap(int32_t slot, int32_t other_slot, Change& best) const;
  void Consider(Change change, double busiest_after, int32_t num_copies, Change& best) const;
  void Set(int32_t slot, int32_t expert);
  void Clear(int32_t slot);
  void SumLoads();

  std::span<const double> load_;
  PlacementShape shape_;
  int32_t num_experts_;
  std::vector<int32_t> slot_expert_;
  std::vector<int32_t> node_of_expert_;
  std::vector<uint8_t> holds_;                  // [num_ranks, num_experts]
  std::vector<std::vector<int32_t>> ranks_of_;  // of each expert
  std::vector<Share> share_;                    // of each expert
  std::vector<double> rank_load_;
  int32_t busiest_rank_ = 0;
};

}  // namespace jevons
