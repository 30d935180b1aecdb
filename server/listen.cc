#include "server/listen.h"

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/strings.h"
#include "server/error_text.h"

namespace jevons {

absl::StatusOr<HostPort> ParseAddress(std::string_view what, const std::string& address) {
  const size_t colon = address.rfind(':');
  int32_t port = -1;
  const bool has_port = colon != std::string::npos && colon > 0 &&
                        absl::SimpleAtoi(address.substr(colon + 1), &port) && port >= 0 &&
                        port <= 65535;
  if (!has_port) {
    return absl::InvalidArgumentError(absl::StrCat(
        ToAbsl(what), " must be HOST:PORT with a port in [0, 65535], given ", QuoteValue(address)));
  }
  HostPort out{.host = address.substr(0, colon), .port = absl::StrCat(port)};
  if (out.host.size() > 2 && out.host.front() == '[' && out.host.back() == ']') {
    out.host = out.host.substr(1, out.host.size() - 2);
  }
  return out;
}

absl::StatusOr<std::string> FreePort(const std::string& address) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const absl::Cleanup closer = [fd] { close(fd); };
  sockaddr_in any = {};
  any.sin_family = AF_INET;
  socklen_t size = sizeof(any);
  if (fd < 0 || bind(fd, reinterpret_cast<sockaddr*>(&any), size) != 0 ||
      getsockname(fd, reinterpret_cast<sockaddr*>(&any), &size) != 0) {
    return absl::ErrnoToStatus(errno, "no free port for the data plane");
  }
  return absl::StrCat(address.substr(0, address.rfind(':')), ":", ntohs(any.sin_port));
}

std::string ListenFault(const HostPort& address) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const int rc = getaddrinfo(address.host.c_str(), address.port.c_str(), &hints, &found);
  if (rc != 0) return gai_strerror(rc);
  std::string fault = "unknown reason";
  const int fd = socket(found->ai_family, SOCK_STREAM, 0);
  if (fd >= 0) {
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, 1) != 0) {
      fault = std::strerror(errno);
    }
    close(fd);
  }
  freeaddrinfo(found);
  return fault;
}

}  // namespace jevons
