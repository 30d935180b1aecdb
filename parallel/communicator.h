// What the ranks of a group say to each other in a step: one contract, three ways to carry it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/time/time.h"
#include "base/status.h"

namespace jevons {

// A rank is one device with the process or thread that drives it.
struct RankInfo {
  int32_t rank = 0;
  int32_t world_size = 1;
};

enum class ReduceOp { kSum, kMin, kMax };

// What a member hears of its group between its own calls. Called on any thread, with a lock of the
// group's held: calls nothing of the group.
class GroupWatcher {
 public:
  virtual ~GroupWatcher() = default;
  // The group is broken, by an error or an abort here or elsewhere. Called once.
  virtual void OnBroken(const absl::Status& error) = 0;
  // Another rank has ended, with ABORTED. What it has sent may still be on its way.
  virtual void OnGone(const absl::Status& who) = 0;
};

// Bytes for and from every rank, each array with world_size entries. Byte ranges of `recv` must not
// overlap each other or `send`.
struct AllToAllArgs {
  const void* send = nullptr;
  std::span<const int64_t> send_offsets = {};
  std::span<const int64_t> send_bytes = {};
  void* recv = nullptr;
  std::span<const int64_t> recv_offsets = {};
  std::span<const int64_t> recv_bytes = {};
  // Of data of the backend: `send` is rows of row_bytes, and those whose key is less than 0 need not
  // travel; what arrives in their place is undefined. Null: all count.
  const int32_t* row_keys = nullptr;
  int64_t row_bytes = 0;
};

// Where a rank stands in its calls. What it sends at a position it has sent before it waits there: a rank
// that waits for one that is as far or further waits for what does not arrive.
struct ExchangePlace {
  int64_t position = 0;      // rising from call to call, and within one
  int32_t waits_for = -1;    // the rank whose message has not come; -1: this one does not wait
  bool behind_rows = false;  // the message comes behind data of any size
};

// A member of a group whose ranks make the same calls in the same order. Used by one thread, but for
// Abort.
//
// Buffers of AllToAll, AllGather and Broadcast are data of this rank's backend: host memory, or
// device memory whose copies are queued on the backend's stream. Either way what the backend does
// after the call sees what arrived, and send buffers may change. The other calls take host memory
// and return when they are done. Errors of what is queued come from a later call, Wait at the latest.
//
// Errors, with the call and its number:
//   INVALID_ARGUMENT   arguments that do not fit together, here or between ranks, with both sides
//   DEADLINE_EXCEEDED  a rank did not take part within the timeout, with the ranks and the time
//   ABORTED            a rank is gone, or an abort, with the reason
// How much of it an implementation can see is in the comment of its factory. After an error the
// group is broken: every later call returns the first error at once, and no buffer is touched any
// more. The error travels to the other ranks as far as they can be reached; one that cannot be ends
// with ABORTED or with its own timeout. A group is not repaired, but made anew. A member that is
// destroyed is gone.
class Communicator {
 public:
  virtual ~Communicator() = default;

  // "threads", "gloo over tcp", "nccl 2.28.9 with threads"
  virtual std::string Description() const = 0;
  virtual RankInfo info() const = 0;

  // Memory of this rank's backend, 256-byte aligned, that the others can store to: all AllToAlls that all
  // ranks receive there may take a shorter way. All ranks call it, once, with as many bytes; it is there
  // as long as the member is. Null: there is no shorter way, and any memory is as good.
  virtual absl::StatusOr<void*> ReceiveMemory(int64_t bytes) { return nullptr; }

  // Rank s's bytes for this rank land at recv_offsets[s]. send_bytes[d] here must be
  // recv_bytes[rank] at d; 0 bytes are allowed.
  virtual absl::Status AllToAll(const AllToAllArgs& args) = 0;
  // The halves of AllToAll, for what is computed while the bytes travel; another rank may make the
  // whole call. Start waits for no other rank. From then to the end of Finish one exchange is under
  // way: what its arguments point to stays as it is, `recv` is not read, and no other call is made but
  // Abort, else INVALID_ARGUMENT. Either half may return the errors of the exchange; after one of
  // Start there is nothing to finish. By default all is done when Start returns.
  virtual absl::Status StartAllToAll(const AllToAllArgs& args) { return AllToAll(args); }
  virtual absl::Status FinishAllToAll() { return absl::OkStatus(); }
  // recv [world_size, bytes]: what each rank sent, by rank.
  virtual absl::Status AllGather(const void* send, int64_t bytes, void* recv) = 0;
  // `data` of the root to all.
  virtual absl::Status Broadcast(void* data, int64_t bytes, int32_t root) = 0;
  // values[i] = op over the ranks' values[i], on all of them. Integers alone: a sum of floats would
  // depend on the order.
  virtual absl::Status AllReduce(std::span<int64_t> values, ReduceOp op) = 0;
  // Returns when all ranks have called it. Takes its own timeout: ranks load at different speeds.
  virtual absl::Status Barrier(absl::Duration timeout) = 0;
  // Waits for everything queued, with its errors. Nothing to do for host memory.
  virtual absl::Status Wait() = 0;
  // Waits until `is_done` says so, which asks the device and does not wait: for one of the things that
  // are queued, with the errors of all. Nothing to do for host memory.
  virtual absl::Status WaitUntil(absl::FunctionRef<absl::StatusOr<bool>()> is_done) {
    return absl::OkStatus();
  }

  // From any thread. By default nothing is known.
  virtual ExchangePlace place() const { return {}; }

  // Breaks the group with ABORTED: a call that waits ends, here and, as far as they can be reached, at
  // the other ranks. A call whose data is already on its way may still end well. From any thread, any
  // number of times; the first reason counts.
  virtual void Abort(const std::string& reason) = 0;

  // `watcher` hears of the group from now on, and before the call returns what has happened so far;
  // null ends it, and no call of it is under way then. For a member that stands on this one: one that
  // none can stand on tells nothing.
  virtual void Watch(GroupWatcher* watcher) {}
};

// Who moves the bytes of an AllToAll between GPUs that receive in ReceiveMemory.
enum class ExchangeBy {
  kCalls,  // the library, by a send and a receive for each pair of ranks
  // The GPUs themselves, by stores to each other's memory: all must reach each other, over NVLink or
  // within one host.
  kKernels,
};
// "calls", "kernels"
std::string_view ExchangeByName(ExchangeBy by);

struct CommunicatorOptions {
  absl::Duration timeout = absl::Seconds(30);  // of each wait for other ranks, but for Barrier
  ExchangeBy exchange_by = ExchangeBy::kCalls;
};

}  // namespace jevons
