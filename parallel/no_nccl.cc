// Stands for NCCL in a build without it.
#include "parallel/nccl_communicator.h"

namespace jevons {

absl::StatusOr<std::unique_ptr<Communicator>> CreateNcclCommunicator(
    std::unique_ptr<Communicator> host, const NcclOptions& options) {
  return absl::UnimplementedError(
      "this build has no NCCL: it was configured without CUDA, or where nccl.h and libnccl were "
      "not found");
}

}  // namespace jevons
