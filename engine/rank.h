// A member of a group, as EngineGroup sees it: in this process or another one.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "engine/engine.h"
#include "parallel/communicator.h"

namespace jevons {

// A request whose rank cannot finish it: `request.given` is what `stream` has got.
struct OpenRequest {
  GenerationRequest request;
  std::shared_ptr<TokenStream> stream;
};

// The ranks that make up a group from now on.
struct Membership {
  int64_t epoch = 0;  // 0 is the group at the start; rising
  std::vector<int32_t>
      ranks;               // numbers from the start, rising; a rank's place here is its new number
  std::string rendezvous;  // HOST:PORT where the first of them listens
  std::string reason;      // why there is another group
};

// What a rank has seen of the end of its group.
struct GroupBreak {
  int64_t epoch = 0;  // of the group that broke, or did not come together
  absl::Status status;
  std::vector<int32_t> unreached = {};  // numbers from the start; see UnreachedRanks
};

// The way to the others over host memory. Returns when all members have come. May look at `cancelled`
// while it waits, and then give up.
using JoinGroup = std::function<absl::StatusOr<std::unique_ptr<Communicator>>(
    const Membership& membership, const std::function<bool()>& cancelled)>;

// Thread-safe. No call waits for another process, but for those that say so: what a remote rank says
// of itself is what it said last.
class Rank {
 public:
  virtual ~Rank() = default;

  // As Engine.
  virtual absl::StatusOr<std::shared_ptr<TokenStream>> Submit(GenerationRequest request,
                                                              std::function<void()> ready = {}) = 0;
  // Takes over what another rank cannot finish; the queue's limit does not count. After an error the
  // stream is the caller's.
  virtual absl::Status Resume(OpenRequest open) = 0;
  virtual absl::Status failure() const = 0;
  virtual EngineStats stats() const = 0;
  // How many of the first blocks of a prompt it has computed already, by PrefixKeys.
  virtual int32_t NumCachedBlocks(std::span<const uint64_t> keys) const = 0;
  virtual absl::Status CheckIntegrity() = 0;  // waits

  // The parts of Engine::Drain: the ranks of a group must all have stopped before one can end.
  virtual void StopAccepting() = 0;
  virtual void WaitIdle(SteadyTime deadline) = 0;
  virtual void Stop() = 0;
  // Waits until the rank has stopped; every stream has its end then.
  virtual void Join() = 0;

  // To every rank of a group, after Submit or Stop of any.
  virtual void Poke() = 0;
};

// The ranks of a group that other processes run. Thread-safe.
class RemoteRanks {
 public:
  virtual ~RemoteRanks() = default;  // the processes end

  // By rank, from 1. They live as long as this object. One that is lost has a failure.
  virtual std::vector<Rank*> ranks() = 0;

  // Called on any thread, one call at a time.
  class Listener {
   public:
    virtual ~Listener() = default;
    // The group is made anew: rank 0 takes part, and `open` are the requests of the ranks that were lost.
    virtual void OnRegroup(const Membership& membership, std::vector<OpenRequest> open) = 0;
    // It cannot be: every stream ends with this status.
    virtual void OnEnd(const absl::Status& status) = 0;
    // Of rank 0.
    virtual EngineStats FirstStats() const = 0;
  };
  // A group is made anew only while somebody listens. `listener` lives as long as this object.
  virtual void Listen(Listener* listener) = 0;

  // Rank 0 has found its group broken.
  virtual void Broken(const GroupBreak& seen) = 0;

  // Ends the group. The first failure counts.
  virtual void Fail(const absl::Status& status) = 0;
  virtual absl::Status failure() const = 0;
};

}  // namespace jevons
