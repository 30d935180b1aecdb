// Ranks that are threads of one process, each with a device.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"
#include "parallel/communicator.h"
#include "parallel/thread_communicator.h"

namespace jevons {

// What the members of a group share. Outlives them. Thread-safe.
class DeviceGroup {
 public:
  // world_size at least 1.
  explicit DeviceGroup(int32_t world_size, const CommunicatorOptions& options = {})
      : options_(options), threads_(world_size, options) {}

  // The rank's member, once for each rank: all call it at the same time, on a thread each, and each
  // returns when all have come. `stream`: a cudaStream_t of the device. Errors of
  // CreateNcclCommunicator. Of an intact group all members end at the same time, on a thread each.
  absl::StatusOr<std::unique_ptr<Communicator>> Join(int32_t rank, int32_t device, void* stream);

  // As Communicator::Abort, also before a member is there.
  void Abort(const std::string& reason) { threads_.Abort(reason); }

 private:
  const CommunicatorOptions options_;
  ThreadGroup threads_;
};

}  // namespace jevons
