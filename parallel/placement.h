// Where the experts of a layer should be, given how much each is called.
//
// An expert with load L and c replicas puts L / c on each of their ranks. That is what SlotFor does
// as long as the ranks bring equal shares of the tokens: of the R ranks c serve their own share
// L / R, and the other R - c spread theirs over the c replicas.
//
// The ranks of a layer wait for the busiest of them, so its load over the mean is the price of
// imbalance: 1 is perfect, and with 1.2 the experts of the layer take 1.2 times as long as they had
// to. It can be no smaller than  max(1, max over e of L_e / c_e over the mean)  for the best counts
// c, so an expert that is hotter than a rank's share needs replicas, whatever else is moved.
//
// Everything here is a pure function made of +, -, *, / and comparisons, ties by index: ranks with
// the same load plan the same.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"
#include "parallel/expert_map.h"

namespace jevons {

// The load of each rank, in the unit of `load` [num_experts].
std::vector<double> RankLoads(const ExpertMap& map, std::span<const double> load);

struct RankBalance {
  double mean = 0;
  double busiest = 0;
  int32_t busiest_rank = 0;  // the first of them
  // 1 where there is no load.
  double imbalance() const { return mean > 0 ? busiest / mean : 1; }
};
RankBalance MeanAndBusiest(const ExpertMap& map, std::span<const double> load);

struct PlacementShape {
  int32_t num_nodes = 1;  // ranks are numbered node by node
  int32_t ranks_per_node = 1;
  int32_t slots_per_rank = 1;
  // Above 1: routing chooses among this many groups of consecutive experts, and a token goes to few
  // groups. Each group with all its replicas then stays on one node, so that a token goes to few
  // nodes; a multiple of num_nodes. 1: any expert may be anywhere.
  int32_t num_groups = 1;

  int32_t num_ranks() const { return num_nodes * ranks_per_node; }
};

inline constexpr double kMaxCopyPrice = 1e30;

struct PlacementArgs {
  std::span<const double> load = {};  // [num_experts], finite, >= 0
  PlacementShape shape;
  // What is there now, of the same shape; null: nothing.
  const ExpertMap* present = nullptr;
  // What a copied expert must take off busiest / mean to be worth it, up to kMaxCopyPrice. CopyPrice
  // (move_plan.h) has it from bytes and seconds.
  double copy_price = 0;
};

// What    The map with the least  busiest / mean + copy_price * copies  that the search finds; of
//         equals the one with fewer copies. A copy is a slot whose expert `present` does not have
//         on that rank.
// How     Two candidates. From nothing: slots go one by one to the expert with the highest load per
//         replica, up to one a rank; groups, or replicas, go heaviest first to the node with the
//         least load, and a node's replicas in the same way to its ranks; then single changes (a
//         slot takes another expert, two slots swap) that relieve the busiest rank until none does.
//         Its ranks are then numbered so that the most experts stay where they are. From `present`:
//         the same single changes, of which the best prefix counts.
// Edge    No load at all: `present` stays. No rank holds an expert twice; a slot stays empty only
//         where its rank has all experts that it may have.
// Cost    256 experts in 288 slots: 3 ms of a core from nothing, 10 from the map of another load
// Error   INVALID_ARGUMENT names the limit: a load that is not finite or is negative, fewer slots
//         than experts, groups that do not divide, another shape of `present`
absl::StatusOr<ExpertMap> PlanPlacement(const PlacementArgs& args);

}  // namespace jevons
