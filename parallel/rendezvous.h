// How ranks that are processes find each other.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "base/status.h"
#include "parallel/communicator.h"

namespace jevons {

struct RendezvousOptions {
  RankInfo info = {};
  std::string leader = {};       // HOST:PORT where rank 0 listens, the same for all
  std::string fingerprint = {};  // the same for all: checkpoint, version, flags
  std::string listen_host = {};  // by which the others reach this rank; empty: found out
  absl::Duration timeout = absl::Minutes(5);
  // Rank 0 looks at it while it waits, and gives up for all with CANCELLED; so do the others while rank 0
  // does not answer. May be empty.
  std::function<bool()> cancelled = {};
};

// Rank 0 waits for the others at the leader's address; each rank shows what it offers, and gets what
// all offer, by rank. `make_offer` is called with the numeric address by which the others reach this
// host: listen_host, or the one this rank reaches the leader from.
//
// Ranks may come in any order within the timeout, and one that goes away may come again. What does
// not fit is an error for all that have come, with what was expected and what came: a rank twice is
// ALREADY_EXISTS; another world size or fingerprint FAILED_PRECONDITION. Who did not come, or a
// leader that does not answer, is DEADLINE_EXCEEDED; an address that rank 0 cannot listen at
// UNAVAILABLE. Peers are believed: use it in a network that is trusted.
absl::StatusOr<std::vector<std::string>> Rendezvous(
    const RendezvousOptions& options,
    const std::function<absl::StatusOr<std::string>(const std::string& host)>& make_offer);

}  // namespace jevons
