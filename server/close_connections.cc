#include "server/close_connections.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <system_error>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/numbers.h"
#include "absl/time/clock.h"

namespace jevons {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(2);

enum class Kind { kOther, kListens, kConnection };

Kind KindOf(int fd, int32_t port) {
  sockaddr_storage address = {};
  socklen_t size = sizeof(address);
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) return Kind::kOther;
  in_port_t at = 0;
  if (address.ss_family == AF_INET) at = reinterpret_cast<sockaddr_in&>(address).sin_port;
  if (address.ss_family == AF_INET6) at = reinterpret_cast<sockaddr_in6&>(address).sin6_port;
  if (at == 0 || ntohs(at) != port) return Kind::kOther;
  int listens = 0;
  size = sizeof(listens);
  getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size);
  if (listens != 0) return Kind::kListens;
  size = sizeof(address);
  const bool connected = getpeername(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0;
  return connected ? Kind::kConnection : Kind::kOther;
}

// Not yet at the other side.
bool HasUnsent(int fd) {
  int num_bytes = 0;
  return ioctl(fd, SIOCOUTQ, &num_bytes) == 0 && num_bytes > 0;
}

// Ends what can be ended, and returns the number of connections that are there.
int EndConnections(int32_t port, bool now) {
  int num_connections = 0;
  std::error_code error;
  std::filesystem::directory_iterator entry("/proc/self/fd", error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    int number = -1;
    if (!absl::SimpleAtoi(entry->path().filename().string(), &number)) continue;
    // Of its own, so that it stays the same socket while it is looked at.
    const int fd = fcntl(number, F_DUPFD_CLOEXEC, 0);
    if (fd < 0) continue;
    const absl::Cleanup closer = [fd] { close(fd); };
    const Kind kind = KindOf(fd, port);
    if (kind == Kind::kListens) shutdown(fd, SHUT_RD);
    if (kind != Kind::kConnection) continue;
    ++num_connections;
    if (now || !HasUnsent(fd)) shutdown(fd, SHUT_RD);
  }
  return num_connections;
}

}  // namespace

void CloseConnections(int32_t port, absl::Duration timeout) {
  const absl::Time start = absl::Now();
  while (absl::Now() < start + timeout) {
    if (EndConnections(port, absl::Now() >= start + timeout / 2) == 0) return;
    absl::SleepFor(kTick);
  }
}

}  // namespace jevons
