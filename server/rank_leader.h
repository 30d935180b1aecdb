// The control plane of a group, on rank 0's side: who is in, who is alive, and the ways to them.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/process_rank.h"

namespace jevons {

struct RankLeaderOptions {
  std::string listen;  // HOST:PORT; port 0: a free one
  int32_t world_size = 2;
  std::string version;
  std::vector<GroupFact> facts;
  absl::Duration silence =
      absl::Milliseconds(900);                  // after which a rank is lost; longer while it loads
  std::function<void(int32_t rank)> lost = {};  // called when one is; on any thread, may be empty
};

// Thread-safe. A rank that is lost once somebody listens is left behind, and the others form another
// group; a new process in its place loads beside it and is taken in. Before, or where that fails again
// and again, the group has failed: what runs ends with UNAVAILABLE and the reason, and no other rank
// comes in.
class RankLeader : public RemoteRanks {
 public:
  // Starts to listen. INVALID_ARGUMENT for an ill-formed address, UNAVAILABLE with the reason where it
  // cannot listen there.
  static absl::StatusOr<std::unique_ptr<RankLeader>> Start(const RankLeaderOptions& options);

  // Where it listens, with the port in use.
  virtual const std::string& address() const = 0;

  // Returns when every rank has joined, and then has loaded. DEADLINE_EXCEEDED with the ranks that have
  // not; FAILED_PRECONDITION where one does not fit; else the failure.
  virtual absl::Status WaitJoined(absl::Duration timeout) = 0;
  virtual absl::Status WaitLoaded(absl::Duration timeout) = 0;
  // Tells the ranks to load, and where the data plane meets.
  virtual void Begin(const std::string& rendezvous) = 0;
  // From now on ranks() take requests.
  virtual void EnableRequests(const GenerationLimits& limits, const EngineOptions& options) = 0;
};

}  // namespace jevons
