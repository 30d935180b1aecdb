// The calls of NCCL that queue something.
#include "tests/cuda_emu/collectives.h"

using namespace jevons::emu;

ncclResult_t ncclAllReduce(const void* from, void* to, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  return Enqueue(comm, stream,
                 {.kind = TransferKind::kAllReduce,
                  .from = from,
                  .to = to,
                  .count = static_cast<int64_t>(count),
                  .type = type,
                  .op = op});
}

ncclResult_t ncclReduceScatter(const void* from, void* to, size_t to_count, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  return Enqueue(comm, stream,
                 {.kind = TransferKind::kReduceScatter,
                  .from = from,
                  .to = to,
                  .count = static_cast<int64_t>(to_count),
                  .type = type,
                  .op = op});
}

ncclResult_t ncclAllGather(const void* from, void* to, size_t from_count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
  return Enqueue(comm, stream,
                 {.kind = TransferKind::kAllGather,
                  .from = from,
                  .to = to,
                  .count = static_cast<int64_t>(from_count),
                  .type = type});
}

ncclResult_t ncclBroadcast(const void* from, void* to, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
  return Enqueue(comm, stream,
                 {.kind = TransferKind::kBroadcast,
                  .from = from,
                  .to = to,
                  .count = static_cast<int64_t>(count),
                  .type = type,
                  .peer = root});
}

ncclResult_t ncclSend(const void* from, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  return Enqueue(comm, stream,
                 {.kind = TransferKind::kSend,
                  .from = from,
                  .count = static_cast<int64_t>(count),
                  .type = type,
                  .peer = peer});
}

ncclResult_t ncclRecv(void* to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return Enqueue(comm, stream,
                 {.kind = TransferKind::kRecv,
                  .to = to,
                  .count = static_cast<int64_t>(count),
                  .type = type,
                  .peer = peer});
}
