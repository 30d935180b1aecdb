// A member of a group, as EngineGroup sees it: in this process or another one.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "engine/engine.h"

namespace jevons {

// Thread-safe. No call waits for another process, but for those that say so: what a remote rank says
// of itself is what it said last.
class Rank {
 public:
  virtual ~Rank() = default;

  // As Engine.
  virtual absl::StatusOr<std::shared_ptr<TokenStream>> Submit(GenerationRequest request,
                                                              std::function<void()> ready = {}) = 0;
  virtual absl::Status failure() const = 0;
  virtual EngineStats stats() const = 0;
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

  // By rank, from 1. They live as long as this object.
  virtual std::vector<Rank*> ranks() = 0;

  // `lost` is called once, on any thread, when a rank is lost, with the status that every stream ends
  // with; at once if one is lost already.
  virtual void OnLoss(std::function<void(const absl::Status&)> lost) = 0;
};

}  // namespace jevons
