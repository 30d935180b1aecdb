// Ranks that are processes, over Gloo's TCP transport.
#pragma once

#include <memory>
#include <string>

#include "base/status.h"
#include "parallel/communicator.h"
#include "parallel/rendezvous.h"

namespace jevons {

struct GlooOptions {
  RendezvousOptions rendezvous = {};
  CommunicatorOptions communicator = {};
  // Of each connection, once all ranks have come; not above the timeout of the rendezvous.
  absl::Duration connect_timeout = absl::InfiniteDuration();
};

// Returns when all ranks have joined (parallel/rendezvous.h says which errors end it). Host memory
// alone. Every error of the contract is seen, and travels to the other ranks unless the network is
// in the way: a process that ended is ABORTED at once, one that was stopped DEADLINE_EXCEEDED.
//
// A call is a message to and from every rank, which carries up to 32 KiB of data; more goes
// straight from and to the caller's buffers. Ignores SIGPIPE if the process does not handle it.
absl::StatusOr<std::unique_ptr<Communicator>> CreateGlooCommunicator(const GlooOptions& options);

}  // namespace jevons
