// Addresses to listen at.
#pragma once

#include <string>

#include "base/status.h"

namespace jevons {

struct HostPort {
  std::string host;  // without the brackets of an IPv6 address
  std::string port;
};

// INVALID_ARGUMENT unless `address` is HOST:PORT with a port in [0, 65535]; `what` is the flag.
absl::StatusOr<HostPort> ParseAddress(std::string_view what, const std::string& address);

// HOST of `address` with a port that nobody uses. The system hands such ports out in turn.
absl::StatusOr<std::string> FreePort(const std::string& address);

// Why nobody can listen there; gRPC itself does not tell.
std::string ListenFault(const HostPort& address);

}  // namespace jevons
