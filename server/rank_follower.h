// A process that is a rank of a group, but not rank 0.
#pragma once

#include <string>

#include "absl/time/time.h"
#include "base/status.h"
#include "engine/engine.h"

namespace jevons {

struct RankFollowerOptions {
  EngineOptions engine;  // num_ranks is the world size
  int32_t rank = 1;
  std::string leader;  // HOST:PORT of rank 0's control plane
  std::string version;
  absl::Duration join_timeout = absl::Seconds(30);
  absl::Duration load_timeout = absl::Minutes(30);
};

// Joins, loads and computes until rank 0 says that it is over: OK. An error says why this rank did not
// come in: rank 0 does not answer within the timeout, or refuses it. Once it has begun to load, the loss
// of its group ends the process with exit code 1, for it may be waiting for what never comes.
//
// SIGINT and SIGTERM are left to rank 0, which lets the group finish what it has accepted.
absl::Status RunRankFollower(const RankFollowerOptions& options);

}  // namespace jevons
