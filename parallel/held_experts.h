// The placement of a group that is made anew from ranks that hold experts already.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"
#include "parallel/expert_map.h"

namespace jevons {

// What    A map in which as much as possible stays where it is, and no expert is missing. `held` has
//         the experts in the slots of each rank; -1 is an empty one.
// How     Experts that no rank holds go, in order, each to the rank with the most places: empty slots,
//         and those whose expert stands elsewhere, too. Of the places of a rank an empty one is taken
//         first, then the replica of the expert with the most. Ties by index.
// Edge    Ranks with fewer slots than others get empty ones. Where the places are too few, every rank
//         gets as many empty slots more as it takes.
// Error   INVALID_ARGUMENT: no ranks, an id out of range, one twice on a rank
absl::StatusOr<ExpertMap> MapOfHeld(int32_t num_experts,
                                    std::span<const std::vector<int32_t>> held);

}  // namespace jevons
