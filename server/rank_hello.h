// Whether a rank that says hello fits the group.
#pragma once

#include "server/rank_leader.h"
#include "server/rank_wire.h"

namespace jevons {

// OK, or FAILED_PRECONDITION that names what differs, with both values.
absl::Status CheckHello(const wire::Hello& hello, const RankLeaderOptions& options);

}  // namespace jevons
