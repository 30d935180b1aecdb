// Communicator over NCCL: each rank is a GPU, of this process or of another.
#pragma once

#include <functional>
#include <memory>

#include "parallel/communicator.h"

namespace jevons {

enum class NcclCheck {
  kOff,
  // Before each call the ranks tell each other over `host` what they are about to do, and wait for it:
  // for tests and for the search for a fault.
  kCalls,
};

struct NcclOptions {
  int32_t device = 0;
  void* stream = nullptr;  // cudaStream_t of the device's backend; must outlive the communicator
  absl::Duration timeout = absl::Seconds(30);        // of each wait, but for Barrier and creation
  absl::Duration create_timeout = absl::Minutes(2);  // a large group takes long to connect
  NcclCheck check = NcclCheck::kOff;
  ExchangeBy exchange_by = ExchangeBy::kCalls;
  // Looked at while the communicator is created, which then ends with CANCELLED; may be empty.
  std::function<bool()> cancelled = {};
};

// The ranks of `host`, threads or processes, with a device each: data goes over NCCL, what takes host
// memory over `host`, so that it waits for no device. The new member owns `host`, and what breaks
// either of the two breaks both, at all ranks: also for one that waits for its device by other means.
//
// Returns when all ranks have come and have exchanged a few bytes, so that the connections are there
// and their memory is taken. UNIMPLEMENTED in a build without NCCL; INVALID_ARGUMENT for a device that
// cannot be, two ranks on one device among them; UNAVAILABLE where NCCL finds no network interface;
// else the errors of Communicator.
//
// What this implementation does with the contract of Communicator:
// - Every call on the device makes it current for the calling thread.
// - AllToAll, AllGather and Broadcast take device memory and return when they are queued. What waits
//   for the stream by other means (Backend::Read) has no deadline: call Wait before it. They may be
//   recorded in a CUDA graph, after a run outside of one; no other call may.
// - An exchange that is started runs on a stream of its own, behind what the backend's had until then;
//   with Finish the backend's stream waits for it. Both halves may be recorded, into one graph.
// - With ExchangeBy::kKernels, ReceiveMemory is UNIMPLEMENTED where NCCL is older than 2.28 or a device
//   does not reach all others. AllToAll there sees sizes that differ between ranks, in the wait, and
//   DEADLINE_EXCEEDED says who did not come.
// - Else NCCL sees neither calls nor sizes that differ between ranks: the wait ends with
//   DEADLINE_EXCEEDED, or what arrives is undefined. With NcclCheck::kCalls it is INVALID_ARGUMENT.
// - NCCL does not say who is missing: DEADLINE_EXCEEDED names the call, this rank and the time.
// - An error or an Abort ends what this rank has queued or recorded, in the state it is in; kernels
//   may touch buffers until the stream has come to its end, which it then does.
// - A rank that has ended, killed or well, ends the waits of the others for data that does not come
//   soon.
// - The destructor waits, at most for `timeout`, for what is queued and for the CUDA graphs that hold
//   recorded calls, which must be gone. Else its memory stays, with a line in the log. Ranks meet in
//   a Barrier before they end: one may still be read from.
absl::StatusOr<std::unique_ptr<Communicator>> CreateNcclCommunicator(
    std::unique_ptr<Communicator> host, const NcclOptions& options);

}  // namespace jevons
