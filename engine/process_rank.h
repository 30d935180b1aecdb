// A rank that has a process for itself.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "base/status.h"
#include "engine/loaded_model.h"
#include "engine/rank.h"
#include "engine/rank_engine.h"
#include "parallel/communicator.h"

namespace jevons {

// What must be the same at all ranks for them to work together.
struct GroupFact {
  std::string name;
  std::string value;
};

// Of the model folder and the options: the checkpoint (names, sizes and samples of its files), the
// backend, the instruction set or the device's architecture, and the flags that shape what the ranks
// exchange. Errors of CheckOptions, CheckpointFingerprint and CudaDeviceArch.
absl::StatusOr<std::vector<GroupFact>> GroupFacts(const EngineOptions& options);

struct ProcessRankOptions {
  EngineOptions engine;  // num_ranks is the world size
  int32_t rank = 0;
  std::string rendezvous;        // HOST:PORT where rank 0 listens for the data plane
  std::string listen_host = {};  // of this rank for the others; empty: found out
  std::vector<GroupFact> facts;
  absl::Duration load_timeout = absl::Minutes(30);  // for the others to have loaded too
};

// Joins the others, loads what this rank has of the model, and agrees with them on the limits: each
// is the smallest that any rank found room for. Returns when all have loaded.
absl::StatusOr<LoadedModel> LoadProcessRank(const ProcessRankOptions& options);

// What a rank that comes back to a group that serves has to have room for.
struct GroupShape {
  int32_t max_model_len = 0;
  int64_t kv_cache_tokens = 0;
  int32_t num_slots = 0;  // EngineStats::num_expert_slots
};

// The same alone, beside the group; `rendezvous` is not used. The model is in no group yet, and the first
// step of its engine finds that out: a membership follows.
absl::StatusOr<LoadedModel> LoadReturningRank(const ProcessRankOptions& options,
                                              const GroupShape& shape);

// For this rank, in any later group.
JoinGroup JoinerOf(const ProcessRankOptions& options);

// Rank 0 and the others as one engine. Without `join` a lost rank ends it.
std::unique_ptr<Engine> StartEngine(LoadedModel first, std::unique_ptr<RemoteRanks> others,
                                    const Clock* clock, JoinGroup join = {});

}  // namespace jevons
