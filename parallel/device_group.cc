#include "parallel/device_group.h"

#include <utility>

#include "parallel/nccl_communicator.h"

namespace jevons {

absl::StatusOr<std::unique_ptr<Communicator>> DeviceGroup::Join(int32_t rank, int32_t device,
                                                                void* stream) {
  ASSIGN_OR_RETURN(std::unique_ptr<Communicator> host, threads_.Join(rank));
  return CreateNcclCommunicator(std::move(host), {.device = device,
                                                  .stream = stream,
                                                  .timeout = options_.timeout,
                                                  .exchange_by = options_.exchange_by});
}

}  // namespace jevons
