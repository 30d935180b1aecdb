// Ranks that are threads of one process, each with a device.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"
#include "parallel/communicator.h"

namespace jevons {

// What the members of a group share. Outlives them. Thread-safe.
//
// Data goes over NCCL; what takes host memory, AllReduce and Barrier, from thread to thread, so that it
// waits for no device. An error of one member is ABORTED with its text for all, also for one that waits
// for its device by other means than its communicator.
class DeviceGroup {
 public:
  // Errors of MakeNcclGroupId.
  static absl::StatusOr<std::unique_ptr<DeviceGroup>> Create(
      int32_t world_size, const CommunicatorOptions& options = {});
  ~DeviceGroup();

  // The rank's member, once for each rank: all call it at the same time, on a thread each, and each
  // returns when all have come. `stream`: a cudaStream_t of the device. Errors of
  // CreateNcclCommunicator. Of an intact group all members end at the same time, on a thread each.
  absl::StatusOr<std::unique_ptr<Communicator>> Join(int32_t rank, int32_t device, void* stream);

  // For a rank that has no member yet; else as Communicator::Abort.
  void Abort(const std::string& reason);

  class State;

 private:
  explicit DeviceGroup(std::unique_ptr<State> state);

  const std::unique_ptr<State> state_;
};

}  // namespace jevons
