// The end of a listening port, below the library that serves it.
#pragma once

#include <cstdint>

#include "absl/time/time.h"

namespace jevons {

// From now on nobody can connect to a TCP port of this process, and once what it has sent over a
// connection has arrived, or half of `timeout` is over, nothing more is read from it: the library that serves it
// finds it at its end and closes it. What a client sends then fails with the connection, which is
// UNAVAILABLE. gRPC itself ends a call that comes while it shuts down with CANCELLED.
//
// Returns when all connections are closed, or after `timeout`.
void CloseConnections(int32_t port, absl::Duration timeout);

}  // namespace jevons
