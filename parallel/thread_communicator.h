// Ranks that are threads of one process.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"
#include "parallel/communicator.h"

namespace jevons {

// What the members of a group share. Outlives them. Thread-safe.
class ThreadGroup {
 public:
  // world_size at least 1.
  explicit ThreadGroup(int32_t world_size, const CommunicatorOptions& options = {});
  ~ThreadGroup();

  // The rank's member, once for each rank. A receiver copies straight from the sender's buffer. A
  // member that is gone breaks the group.
  absl::StatusOr<std::unique_ptr<Communicator>> Join(int32_t rank);

  // As Communicator::Abort, also before a member is there.
  void Abort(const std::string& reason);

  class State;

 private:
  std::unique_ptr<State> state_;
};

}  // namespace jevons
