// Stands for NCCL in a build without it.
#include "parallel/nccl_communicator.h"

namespace jevons {
namespace {

absl::Status NoNccl() {
  return absl::UnimplementedError(
      "this build has no NCCL: it was configured without CUDA, or where nccl.h and libnccl were "
      "not "
      "found");
}

}  // namespace

absl::StatusOr<std::string> MakeNcclGroupId() { return NoNccl(); }

absl::StatusOr<std::unique_ptr<Communicator>> CreateNcclCommunicator(const RankInfo& info,
                                                                     const std::string& group_id,
                                                                     const NcclOptions& options) {
  return NoNccl();
}

absl::StatusOr<std::unique_ptr<Communicator>> CreateNcclCommunicator(
    std::unique_ptr<Communicator> group, const NcclOptions& options) {
  return NoNccl();
}

}  // namespace jevons
