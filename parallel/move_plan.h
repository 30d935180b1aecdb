// What it takes to get from one placement to another, and whether that is worth it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"
#include "parallel/expert_map.h"

namespace jevons {

// The weights of `expert` have to come into `slot` before the layer's new map may be used.
struct SlotCopy {
  int32_t layer = 0;
  int32_t slot = 0;
  int32_t expert = 0;
  // Ranks that hold it in the present map. The one in front has the fewest copies of the layer to
  // send, the others follow by number. The rank of `slot` stands alone where it is one of them.
  std::vector<int32_t> source_ranks;
};

// By slot. Slots whose expert stays, or that become empty, need no copy. A slot that others copy
// from may be overwritten by a copy itself, so what arrives waits aside until all of the layer is
// there. INVALID_ARGUMENT if the maps differ in experts, ranks or slots.
absl::StatusOr<std::vector<SlotCopy>> DiffMaps(int32_t layer, const ExpertMap& present,
                                               const ExpertMap& wanted);

// What a copy costs and what balance is worth. All between 0 and 1e30.
struct MoveCosts {
  int64_t bytes_per_expert = 0;  // of one layer
  // Seconds of serving that a byte costs which is copied in the background; of all ranks together,
  // so where they copy side by side it is less than a link's.
  double seconds_per_byte = 0;
  // Seconds of each second of serving that the routed experts of one layer would take if no rank had
  // more than the mean.
  double expert_seconds_per_second = 0;
  double horizon_seconds = 0;  // how long the load is expected to stay as it is
  double noise = 0;            // a difference of busiest / mean that may be chance: no gain
};

// Four standard deviations of a rank's load over the mean, where a layer's load is a count of so many
// choices: 4 * sqrt(num_ranks / choices). The best of many placements fits such chance, too.
double NoiseOfCounts(double choices, int32_t num_ranks);

// What a copied expert must take off busiest / mean of its layer to be worth it, for PlacementArgs:
//   bytes_per_expert * seconds_per_byte / (expert_seconds_per_second * horizon_seconds)
// Where balance is worth nothing it is kMaxCopyPrice, which nothing pays.
absl::StatusOr<double> CopyPrice(const MoveCosts& costs);

// One layer's way to its new map, with the numbers that decided.
struct LayerMove {
  int32_t layer = 0;
  double present_imbalance = 1;  // busiest / mean
  double wanted_imbalance = 1;
  double gain_seconds = 0;  // 0 where the difference may be chance
  double cost_seconds = 0;
  std::vector<SlotCopy> copies;
};

struct MovePlan {
  std::vector<LayerMove> moves;    // the highest gain / cost first
  std::vector<LayerMove> refused;  // in the same order; without the layers whose map stays
};

// What    gain = expert_seconds_per_second * horizon_seconds * (present - wanted imbalance), 0 if
//         these differ by no more than the noise
//         cost = copies * bytes_per_expert * seconds_per_byte
//         A layer moves as a whole: its map is swapped between two steps once all its copies are
//         there. One whose gain is not above its cost is refused.
// Shapes  present, wanted [num_layers]; load [num_layers, num_experts]
// Edge    A new map without a copy costs nothing and moves if it gains anything.
// Error   INVALID_ARGUMENT for sizes or maps that do not fit together, a cost out of range
absl::StatusOr<MovePlan> PlanMoves(std::span<const ExpertMap> present,
                                   std::span<const ExpertMap> wanted, std::span<const double> load,
                                   const MoveCosts& costs);

}  // namespace jevons
