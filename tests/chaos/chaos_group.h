// One group of ranks as processes, and what should be left of it.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "client/client.h"
#include "tests/support/network_lab.h"
#include "tests/support/process.h"

namespace jevons {

struct ChaosGroupOptions {
  std::vector<std::string> serve;  // the command line but for --listen, --rank and --leader
  int num_ranks = 8;
  std::string log = {};       // file for the stderr of all ranks; empty: this process's own
  NetworkLab* lab = nullptr;  // each rank on a host of its own; null: all on this machine
};

// Used by one thread.
class ChaosGroup {
 public:
  // When it is ready. Its networks are whole then.
  static absl::StatusOr<std::unique_ptr<ChaosGroup>> Start(const ChaosGroupOptions& options);
  ~ChaosGroup();  // kills every rank

  const std::string& address() const { return address_; }
  // Those that should be in the group, rank 0 always.
  const std::vector<int>& members() const { return members_; }
  void Signal(int rank, int number) const;
  bool Runs(int rank) const;

  // The group is to go on without the rank, whose process is to end by itself, or has.
  void ExpectLoss(int rank);
  // Makes members of the lost ranks that were started again and that rank 0 has taken in. Asks it.
  void TakeBack();
  bool whole() const { return members_.size() == ranks_.size(); }
  // A rank that ended though it is a member, or still runs long after it was lost; empty if none.
  std::string CheckProcesses() const;
  // Sockets and threads of the other members than rank 0: no more than at the start, less those to
  // the lost ones. Empty if so. Call while no client is open.
  std::string CheckLeftovers() const;
  double CpuSeconds() const;

  // Sends SIGTERM or SIGKILL to rank 0 and waits for the end of all. What was not as it should be;
  // empty if nothing.
  std::string End(int signal, absl::Duration limit);

 private:
  struct Rank {
    std::unique_ptr<Process> process;  // null where rank 0 started it
    pid_t pid = -1;
    int sockets = 0;
    int threads = 0;
    absl::Time lost = absl::InfiniteFuture();
  };

  ChaosGroup() = default;
  absl::Status Launch(const ChaosGroupOptions& options);

  std::string address_;
  std::unique_ptr<Client> client_;
  std::map<int, Rank> ranks_;
  std::vector<int> members_;
};

}  // namespace jevons
