#include "parallel/socket.h"

#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"

namespace jevons {
namespace {

constexpr uint32_t kMaxFrameBytes = 16 << 20;
constexpr int kBacklog = 512;
constexpr absl::Duration kRetry = absl::Milliseconds(50);  // while nobody listens yet

using AddressList = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

absl::StatusOr<AddressList> Resolve(const std::string& address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon == 0 || colon + 1 == address.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("an address must be HOST:PORT, given '", address, "'"));
  }
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int rc = getaddrinfo(host.c_str(), address.substr(colon + 1).c_str(), &hints, &found);
  if (rc != 0) return absl::UnavailableError(absl::StrCat(address, ": ", gai_strerror(rc)));
  return AddressList(found, &freeaddrinfo);
}

int RemainingMs(SteadyTime deadline) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
      deadline - std::chrono::steady_clock::now());
  return static_cast<int>(std::clamp<int64_t>(left.count(), 0, 1 << 30));
}

// False when the deadline has passed.
bool WaitReady(int fd, int16_t events, SteadyTime deadline) {
  while (true) {
    pollfd waited = {.fd = fd, .events = events, .revents = 0};
    const int rc = poll(&waited, 1, RemainingMs(deadline));
    if (rc > 0) return true;
    if (rc == 0 || errno != EINTR) return false;
  }
}

absl::Status TransferAll(int fd, char* data, size_t bytes, SteadyTime deadline, int16_t direction) {
  while (bytes > 0) {
    if (!WaitReady(fd, direction, deadline)) return absl::DeadlineExceededError("no answer");
    const ssize_t done =
        direction == POLLIN ? recv(fd, data, bytes, 0) : send(fd, data, bytes, MSG_NOSIGNAL);
    if (done < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (done < 0) return absl::AbortedError(std::strerror(errno));
    if (done == 0) return absl::AbortedError("the connection was closed");
    data += done;
    bytes -= done;
  }
  return absl::OkStatus();
}

// On one host a connection may meet itself, where the system gives it the port that it looks for.
bool MeetsItself(int fd) {
  sockaddr_storage own = {}, other = {};
  socklen_t own_size = sizeof(own), other_size = sizeof(other);
  return getsockname(fd, reinterpret_cast<sockaddr*>(&own), &own_size) == 0 &&
         getpeername(fd, reinterpret_cast<sockaddr*>(&other), &other_size) == 0 &&
         own_size == other_size && std::memcmp(&own, &other, own_size) == 0;
}

// 0 or the error number.
int ConnectOnce(const addrinfo& address, SteadyTime deadline, Socket* out) {
  Socket socket(::socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) return errno;
  if (connect(socket.fd(), address.ai_addr, address.ai_addrlen) != 0) {
    if (errno != EINPROGRESS) return errno;
    if (!WaitReady(socket.fd(), POLLOUT, deadline)) return ETIMEDOUT;
    int error = 0;
    socklen_t size = sizeof(error);
    getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) return error;
  }
  if (MeetsItself(socket.fd())) return ECONNREFUSED;
  *out = std::move(socket);
  return 0;
}

}  // namespace

Socket& Socket::operator=(Socket&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

Socket::~Socket() {
  if (fd_ >= 0) close(fd_);
}

absl::StatusOr<Socket> Socket::Listen(const std::string& address) {
  ASSIGN_OR_RETURN(const AddressList found, Resolve(address));
  Socket socket(::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const int on = 1;
  if (!socket.valid() || setsockopt(socket.fd(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
      bind(socket.fd(), found->ai_addr, found->ai_addrlen) != 0 ||
      listen(socket.fd(), kBacklog) != 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", address, ": ", std::strerror(errno)));
  }
  return socket;
}

absl::StatusOr<Socket> Socket::Connect(const std::string& address, SteadyTime deadline) {
  ASSIGN_OR_RETURN(const AddressList found, Resolve(address));
  Socket socket;
  int error = 0;
  do {
    for (const addrinfo* a = found.get(); a != nullptr; a = a->ai_next) {
      error = ConnectOnce(*a, deadline, &socket);
      if (error == 0) return socket;
    }
    const int pause =
        std::min(RemainingMs(deadline), static_cast<int>(kRetry / absl::Milliseconds(1)));
    poll(nullptr, 0, pause);
  } while (RemainingMs(deadline) > 0);
  return absl::DeadlineExceededError(std::strerror(error));
}

Socket Socket::Accept() const {
  return Socket(accept4(fd_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
}

absl::StatusOr<std::string> Socket::LocalHost() const {
  sockaddr_storage address = {};
  socklen_t size = sizeof(address);
  std::array<char, NI_MAXHOST> host = {};
  if (getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    return absl::InternalError(std::strerror(errno));
  }
  const int rc = getnameinfo(reinterpret_cast<const sockaddr*>(&address), size, host.data(),
                             host.size(), nullptr, 0, NI_NUMERICHOST);
  if (rc != 0) return absl::InternalError(gai_strerror(rc));
  return std::string(host.data());
}

absl::Status Socket::WriteFrame(const std::string& frame, SteadyTime deadline) const {
  const uint32_t length = static_cast<uint32_t>(frame.size());
  std::string bytes(reinterpret_cast<const char*>(&length), sizeof(length));
  bytes += frame;
  return TransferAll(fd_, bytes.data(), bytes.size(), deadline, POLLOUT);
}

absl::StatusOr<std::string> Socket::ReadFrame(SteadyTime deadline) const {
  uint32_t length = 0;
  RETURN_IF_ERROR(
      TransferAll(fd_, reinterpret_cast<char*>(&length), sizeof(length), deadline, POLLIN));
  if (length > kMaxFrameBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a frame may have ", kMaxFrameBytes, " bytes, this has ", length));
  }
  std::string frame(length, '\0');
  RETURN_IF_ERROR(TransferAll(fd_, frame.data(), frame.size(), deadline, POLLIN));
  return frame;
}

bool Socket::ReadAvailable(std::string* bytes) const {
  std::array<char, 4096> chunk;
  while (true) {
    const ssize_t got = recv(fd_, chunk.data(), chunk.size(), MSG_DONTWAIT);
    if (got > 0) {
      bytes->append(chunk.data(), got);
    } else if (got == 0) {
      return false;
    } else if (errno != EINTR) {
      return errno == EAGAIN;
    }
  }
}

absl::StatusOr<bool> TakeFrame(std::string* bytes, std::string* frame) {
  uint32_t length = 0;
  if (bytes->size() < sizeof(length)) return false;
  std::memcpy(&length, bytes->data(), sizeof(length));
  if (length > kMaxFrameBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a frame may have ", kMaxFrameBytes, " bytes, this has ", length));
  }
  if (bytes->size() - sizeof(length) < length) return false;
  *frame = bytes->substr(sizeof(length), length);
  bytes->erase(0, sizeof(length) + length);
  return true;
}

}  // namespace jevons
