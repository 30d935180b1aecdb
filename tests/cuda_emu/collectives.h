// How the ranks of a communicator meet. A collective or a transfer is done when all that take part
// have come to it in their streams; until then each of them waits there. Guarded by State::mutex.
#pragma once

#include <nccl.h>

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace jevons::emu {
struct Clique;
}
// One registration, at one rank.
struct ncclWindow_vidmem {
  std::shared_ptr<jevons::emu::Clique> clique;
  size_t number = 0;
};

namespace jevons::emu {

enum class TransferKind { kAllReduce, kReduceScatter, kAllGather, kBroadcast, kSend, kRecv };

// One call, and whether it is done. `count` is the argument of the call, `peer` the root or the
// other side.
struct Transfer {
  TransferKind kind = TransferKind::kAllReduce;
  const void* from = nullptr;
  void* to = nullptr;
  int64_t count = 0;
  ncclDataType_t type = ncclFloat32;
  ncclRedOp_t op = ncclSum;
  int peer = 0;
  bool done = false;
};

// All ranks of one communicator.
struct Clique {
  using Queue = std::deque<std::shared_ptr<Transfer>>;

  int num_ranks = 0;
  std::vector<int> devices;  // by rank; -1: has not joined
  int num_joined = 0;
  ncclResult_t error = ncclSuccess;  // nothing is done any more
  std::string error_text;

  std::vector<Queue> collectives;                        // come, by rank
  std::map<std::pair<int, int>, Queue> sends, receives;  // by (sender, receiver)

  std::vector<std::vector<char*>> windows;  // of each registration, by rank; null: has not come
};

int64_t TypeBytes(ncclDataType_t type);  // 0: none of those supported
// Sums of bf16 are made in f32 and rounded once; all reductions go in the order of the ranks.
bool CanReduce(ncclDataType_t type, ncclRedOp_t op);

// A rank takes back what it has come to and what is not done: nobody gets it.
void Withdraw(Clique& clique, int rank);

// nccl.cc. The rank has come to its next registration.
ncclResult_t RegisterWindow(ncclComm_t comm, void* data, ncclWindow_t* window);
// nccl.cc. Before the communicator ends, which forgets those that are left.
ncclResult_t ForgetWindow(ncclComm_t comm, ncclWindow_t window);
// nccl.cc. Puts a call into its stream, or into the group that this thread has begun.
ncclResult_t Enqueue(ncclComm_t comm, cudaStream_t stream, const Transfer& transfer);

// A rank has come to this call. Does all that now can be done.
void Arrive(Clique& clique, int rank, const std::shared_ptr<Transfer>& transfer);

}  // namespace jevons::emu
