// The flags of a group of ranks.
#pragma once

#include <optional>
#include <string>

#include "server/cmd.h"
#include "server/engine_host.h"

namespace jevons {

struct RankFlags {
  RankPlaceFlags place;
  std::string transport = "threads";
  std::optional<int32_t> device = {};
  int32_t redundant_experts = 0;
  int32_t balance_interval_steps = EngineOptions().balance_interval_steps;
  std::string overlap_exchange{ExchangeOverlapName(EngineOptions().exchange_overlap)};
  std::string exchange_precision{ExchangePrecisionName(EngineOptions().exchange_precision)};
  std::string exchange_by{ExchangeByName(EngineOptions().exchange_by)};
  int32_t join_seconds = 30;
  int32_t load_seconds = 1800;
  int32_t rank_timeout_ms = 900;
  int32_t restart_seconds = 2;
};

void AddRanks(CLI::App& cmd, RankFlags& flags);

// Fills what the flags and the launcher's environment say of `engine`, whose backend is set already.
// INVALID_ARGUMENT as FindRankPlace, and for a device of a process that takes none.
absl::StatusOr<GroupOptions> ResolveRanks(const RankFlags& flags, const Environment& environment,
                                          EngineOptions& engine);

// For a process that is not rank 0: computes until the group ends.
absl::Status RunFollower(const EngineOptions& engine, const GroupOptions& group);

}  // namespace jevons
