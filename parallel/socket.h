// TCP sockets whose every wait has a deadline.
#pragma once

#include <cstdint>
#include <string>

#include "base/mutex.h"
#include "base/status.h"

namespace jevons {

// Owns a socket. Thread-compatible.
class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  Socket& operator=(Socket&& other) noexcept;
  ~Socket();

  // `address` is HOST:PORT. UNAVAILABLE with the system's reason.
  static absl::StatusOr<Socket> Listen(const std::string& address);
  // Tries again until the deadline while nobody listens there.
  static absl::StatusOr<Socket> Connect(const std::string& address, SteadyTime deadline);

  int fd() const { return fd_; }
  // The next connection; an invalid socket if there is none.
  Socket Accept() const;
  bool valid() const { return fd_ >= 0; }
  // This side's address without the port.
  absl::StatusOr<std::string> LocalHost() const;

  // A frame is a 32-bit length and as many bytes.
  absl::Status WriteFrame(const std::string& frame, SteadyTime deadline) const;
  absl::StatusOr<std::string> ReadFrame(SteadyTime deadline) const;
  // Appends what is there without waiting; false when the other side has closed.
  bool ReadAvailable(std::string* bytes) const;

 private:
  int fd_ = -1;
};

// The frame at the start of `bytes`, if it is complete. INVALID_ARGUMENT above the limit of a frame.
absl::StatusOr<bool> TakeFrame(std::string* bytes, std::string* frame);

}  // namespace jevons
