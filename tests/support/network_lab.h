// Hosts with networks of their own on one machine, for what happens between machines.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "base/status.h"
#include "tests/support/process.h"

namespace jevons {

// What packets meet on their way from one host to another.
struct NetworkPath {
  absl::Duration delay = absl::ZeroDuration();
  double loss = 0;  // chance of each packet, [0, 1]; at 1 the way is cut
};

// Each host is a network namespace with one device, whose other end is in this process: a thread
// passes the packets on, or does not. The devices go away with the process, however it ends.
// Thread-safe, but for Create.
class NetworkLab {
 public:
  virtual ~NetworkLab() = default;

  // Hosts 0 to num_hosts - 1, and this process as host num_hosts. The calling thread, and those that
  // it starts from now on, leave the machine's network for good: call it from main's thread before
  // others are started. Needs root or user namespaces, and /dev/net/tun; the error says what is
  // missing. `seed` draws the packets that are lost.
  static absl::StatusOr<std::unique_ptr<NetworkLab>> Create(int num_hosts, uint64_t seed);

  // This process as a host.
  virtual int own_host() const = 0;
  // "10.77.0.1" for host 0.
  static std::string Address(int host);

  // A program on a host.
  virtual std::unique_ptr<Process> Start(int host, const std::vector<std::string>& argv) = 0;

  // From now on, from one host to another, that way alone.
  virtual void SetPath(int from, int to, const NetworkPath& path) = 0;
  // Both ways between each two of the hosts.
  virtual void SetBetween(const std::vector<int>& hosts, const NetworkPath& path) = 0;
  // Both ways between a host and all others, this process included.
  virtual void SetHost(int host, const NetworkPath& path) = 0;
  // The device of a host goes up or down, as its programs see it.
  virtual absl::Status SetDevice(int host, bool up) = 0;

  // Passed on, and lost, so far.
  virtual int64_t num_passed() const = 0;
  virtual int64_t num_lost() const = 0;
};

}  // namespace jevons
