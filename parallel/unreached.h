// Which ranks an error of a group is about, for those who decide who is left.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"

namespace jevons {

// `error` with the ranks that stayed away, or that this one does not reach.
absl::Status WithUnreached(absl::Status error, std::span<const int32_t> ranks);

// Those ranks, of an error of a Communicator or of joining one. Empty where the error is about something
// else, and where another rank has told of it: each says what it has seen itself.
std::vector<int32_t> UnreachedRanks(const absl::Status& error);

}  // namespace jevons
