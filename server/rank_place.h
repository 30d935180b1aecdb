// Which rank a process is, from its flags and the environment of a launcher.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"

namespace jevons {

struct RankPlaceFlags {
  std::optional<int32_t> ranks = {};
  std::optional<int32_t> rank = {};
  std::string leader = {};  // empty: not given
};

struct RankPlace {
  int32_t rank = 0;
  int32_t world_size = 1;
  std::string leader = {};  // HOST:PORT; empty: this process starts the others itself
  int32_t local_rank = 0;   // among the ranks of a launcher on this host
};

// The port where a launcher's environment names a host alone.
inline constexpr int kLeaderPort = 50052;

// The variables that FindRankPlace looks at.
const std::vector<std::string>& LauncherVariables();

// Flags first, then the first launcher whose variables are set: Open MPI, PMI, Slurm, RANK and
// WORLD_SIZE, LeaderWorkerSet. A launcher's group of one says nothing. INVALID_ARGUMENT where a flag
// and a variable contradict each other, naming both, and for what is missing or out of range.
absl::StatusOr<RankPlace> FindRankPlace(const RankPlaceFlags& flags,
                                        const std::map<std::string, std::string>& environment);

}  // namespace jevons
