// One rank's end of a communicator of NCCL: how its calls come into the stream, how it waits, and
// how it ends.
#pragma once

#include <cstdint>
#include <functional>
#include <future>
#include <string>
#include <thread>

#include "absl/functional/function_ref.h"
#include "base/mutex.h"
#include "base/status.h"
#include "parallel/communicator.h"

struct ncclComm;

namespace jevons {

// What runs, for errors, and until when.
struct NcclCall {
  NcclCall(const char* name, int64_t number, absl::Duration limit,
           std::function<bool()> cancelled = {})
      : name(name),
        number(number),
        limit(limit),
        end(SteadyDeadline(limit)),
        cancelled(std::move(cancelled)) {}

  const char* name;
  int64_t number;  // of the calls so far
  absl::Duration limit;
  SteadyTime end;
  std::function<bool()> cancelled;  // asked by every wait; may be empty
};

class NcclMember;

// What waits for other ranks on the device by other means than NCCL's.
class PeerWaits {
 public:
  virtual ~PeerWaits() = default;
  // What has gone wrong there.
  virtual absl::Status error(const NcclCall& call, const NcclMember& member) const = 0;
  // The ranks that are waited for for long: "1, 3".
  virtual std::string missing() const = 0;
  // Ends all waits, for good; work that begins later touches no other device. From any thread.
  virtual void Stop() = 0;
};

// Used by one thread, but for Break and status. Results of NCCL and of CUDA are int here, so that no
// other file sees their headers.
class NcclMember : private GroupWatcher {
 public:
  // `host`, the same ranks over host memory, outlives it. What breaks one of the two breaks the other,
  // here and at the other ranks.
  NcclMember(void* stream, Communicator* host) : info_(host->info()), stream_(stream), host_(host) {
    host->Watch(this);
  }
  ~NcclMember() override { host_->Watch(nullptr); }
  NcclMember(const NcclMember&) = delete;
  NcclMember& operator=(const NcclMember&) = delete;

  // One more stream that calls may be queued on, for Close.
  void AddStream(void* stream) { side_stream_ = stream; }
  // `peers` outlives it.
  void SetPeers(PeerWaits* peers);
  // Returns when all ranks have come. To be called once, before Queue.
  absl::Status Join(const std::string& id, const NcclCall& call);
  // Queues one group of NCCL's calls, which `calls` makes and gives the first error of. They are in
  // the stream when it returns: until then a thread of NCCL is at work, and nothing else may be
  // queued.
  absl::Status Queue(const NcclCall& call, absl::FunctionRef<int(ncclComm*)> calls);
  // For what is queued by other means.
  void SetQueued(const NcclCall& call) { queued_ = call.name; }
  absl::Status WaitForStream(const NcclCall& call);
  // Until `is_done` says so and NCCL has no work under way. What a rank that has ended well has sent
  // comes soon, if at all.
  absl::Status WaitUntil(const NcclCall& call, absl::FunctionRef<absl::StatusOr<bool>()> is_done);

  // Runs calls of the host's whose error the caller gives to Break under another name; until then what
  // happens to the group is not heard.
  absl::Status RunUnwatched(absl::FunctionRef<absl::Status()> calls);

  // The first error of the group. Ends what is in the stream: kernels that wait for other ranks do
  // so no longer, and whoever waits for the stream goes on.
  absl::Status Break(absl::Status status);
  absl::Status status();

  // The last call. False if something still holds the communicator or the stream: graphs that have
  // calls of it, other ranks, kernels.
  bool Close(const NcclCall& call);

  absl::Status Error(const NcclCall& call, absl::StatusCode code, const std::string& text) const;
  absl::Status FromCuda(const NcclCall& call, int error, const char* what) const;

 private:
  void OnBroken(const absl::Status& error) override;
  void OnGone(const absl::Status& who) override;

  // Keeps the first error. Returns whether it is this one.
  bool BreakHere(const absl::Status& error);
  absl::Status gone();
  // Who is missing, for an error.
  std::string MissingText();
  absl::Status FromNccl(const NcclCall& call, int result, const char* what) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<bool> IsIdle(const NcclCall& call);  // false while NCCL has work under way
  // Gives the communicator to a thread of its own: it may take long to end. Kernels of peers come to
  // their end before it does.
  void End(int (*function)(ncclComm*)) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const RankInfo info_;
  void* const stream_;
  void* side_stream_ = nullptr;  // null: none
  Communicator* const host_;
  const char* queued_ = "none";  // the last call that queued something

  Mutex mutex_;
  ncclComm* comm_ ABSL_GUARDED_BY(mutex_) = nullptr;  // null before Join, and once it is to end
  PeerWaits* peers_ ABSL_GUARDED_BY(mutex_) = nullptr;
  absl::Status broken_ ABSL_GUARDED_BY(mutex_);
  absl::Status gone_ ABSL_GUARDED_BY(mutex_);  // the first of the other ranks that has ended
  std::thread ending_ ABSL_GUARDED_BY(mutex_);
  std::future<void> ended_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace jevons
