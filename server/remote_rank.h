// A rank in another process, as the process of rank 0 sees it.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"
#include "engine/rank.h"
#include "server/rank_wire.h"

namespace jevons {

// The way to the rank. Thread-safe; no call waits.
class RankSender {
 public:
  virtual ~RankSender() = default;
  virtual void Send(wire::ToRank message) = 0;
  // Ends the stream with `status` behind what was sent.
  virtual void Close(const absl::Status& status) = 0;
};

// Thread-safe. Its load is what the rank reported last, with every request that has gone there since.
class RemoteRank : public Rank, public std::enable_shared_from_this<RemoteRank> {
 public:
  explicit RemoteRank(int32_t rank) : rank_(rank) {}

  int32_t rank() const { return rank_; }

  // Of the control plane, in the order of a rank's life. kReturns: it is lost, and a new process in its
  // place loads.
  enum class State { kAbsent, kJoined, kLoaded, kStopped, kLost, kReturns };
  State state() const;
  // Its process has come, for the first time or after it was lost.
  void Attach(std::shared_ptr<RankSender> sender);
  void Leave();   // before it was started: it may come again
  void TakeIn();  // from kReturns: it is as any other rank again
  void Send(wire::ToRank message);
  // What it sent but hello, loaded, failed and stopped.
  void Hear(const wire::FromRank& message);
  void Advance(State state);
  // The time since it was heard.
  absl::Duration silence() const;
  void EnableRequests(const GenerationLimits& limits, const EngineOptions& options);
  // It is lost, or does not return: no message of it counts any more. Returns what it has not finished;
  // nothing where it is lost already, or has stopped.
  std::vector<OpenRequest> Lose(const absl::Status& status);

  absl::StatusOr<std::shared_ptr<TokenStream>> Submit(GenerationRequest request,
                                                      std::function<void()> ready) override;
  absl::Status Resume(OpenRequest open) override;
  absl::Status failure() const override;
  EngineStats stats() const override;
  int32_t NumCachedBlocks(std::span<const uint64_t> keys) const override;
  absl::Status CheckIntegrity() override;
  void StopAccepting() override;
  void WaitIdle(SteadyTime deadline) override;
  void Stop() override;
  void Join() override;
  void Poke() override;

 private:
  std::function<void()> CancelOf(uint64_t id);
  void Cancel(uint64_t id);
  void TakeChunk(const wire::Chunk& chunk) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndAllLocked(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SendLocked(wire::ToRank message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void PokeLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CloseLocked(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int32_t rank_;
  mutable Mutex mutex_;
  CondVar changed_;
  State state_ ABSL_GUARDED_BY(mutex_) = State::kAbsent;
  std::shared_ptr<RankSender> sender_ ABSL_GUARDED_BY(mutex_);
  SteadyTime last_heard_ ABSL_GUARDED_BY(mutex_);
  absl::Status loss_ ABSL_GUARDED_BY(mutex_);
  GenerationLimits limits_ ABSL_GUARDED_BY(mutex_);
  EngineOptions options_ ABSL_GUARDED_BY(mutex_);
  bool accepts_ ABSL_GUARDED_BY(mutex_) = false;
  EngineStats reported_ ABSL_GUARDED_BY(mutex_);
  PrefixDigest prefixes_ ABSL_GUARDED_BY(mutex_);  // as it reported
  int64_t num_pokes_ ABSL_GUARDED_BY(mutex_) = 0;  // also of those that it was lost for
  uint64_t last_id_ ABSL_GUARDED_BY(mutex_) = 0;
  std::unordered_map<uint64_t, OpenRequest> open_ ABSL_GUARDED_BY(mutex_);
  int64_t last_check_ ABSL_GUARDED_BY(mutex_) = 0;
  std::optional<wire::Checked> checked_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace jevons
