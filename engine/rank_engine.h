// The engine of one rank: the queue, the thread, and the steps that it takes, alone or together with
// the other ranks of a group.
#pragma once

#include <deque>
#include <memory>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "base/mutex.h"
#include "engine/engine.h"
#include "engine/expert_balancer.h"
#include "engine/loaded_model.h"
#include "engine/rank.h"
#include "engine/step_loop.h"

namespace jevons {

// Thread-safe, as Engine.
//
// Ranks of a group step together. Between two steps they agree by one AllReduce: whether any has
// work, whether all are to stop, and which experts may move. When none has work, each waits without a
// thread that spins, until it is poked: after something was given to any rank, all are. A rank may
// have seen a poke too early to find work and another too late; so they also agree on the smallest
// number of pokes that any had seen, and wait only while there have been no more. A poke may reach a
// rank late: until then the others wait for it to agree.
class RankEngine : public Engine, public Rank {
 public:
  RankEngine(LoadedModel model, const Clock* clock);
  ~RankEngine() override;

  absl::StatusOr<std::shared_ptr<TokenStream>> Submit(GenerationRequest request,
                                                      std::function<void()> ready) override;
  void Drain(absl::Duration patience) override;
  absl::Status failure() const override;
  EngineStats stats() const override;
  absl::Status CheckIntegrity() override;

  const ModelConfig& config() const override { return model_.config; }
  const Tokenizer& tokenizer() const override { return *model_.tokenizer; }
  const ChatFormat& chat_format() const override { return *model_.chat_format; }
  const GenerationLimits& limits() const override { return model_.limits; }
  const EngineOptions& options() const override { return model_.options; }
  std::string backend_description() const override { return model_.backend->Description(); }

  void StopAccepting() override;
  void WaitIdle(SteadyTime deadline) override;
  void Stop() override;
  void Join() override;
  void Poke() override;
  // Breaks the group that this rank is in: what runs ends with UNAVAILABLE and this reason.
  void Abort(const std::string& reason);

 private:
  enum class Next { kStep, kWait, kEnd };

  bool IdleLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopped_ || (queue_.empty() && !working_);
  }
  bool WakeLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // The engine thread.
  void Loop();
  void Fail(const absl::Status& failure);
  Next TakeWork();
  Next Agree(bool stopping, int64_t num_pokes);
  // Keeps the error that ends the group for this rank.
  bool GroupIsWhole(const absl::Status& status);
  void CheckIfWanted() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void UpdateStats() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  LoadedModel model_;
  mutable Mutex mutex_;
  CondVar changed_;  // anything below that somebody waits for
  std::deque<QueuedRequest> queue_ ABSL_GUARDED_BY(mutex_);
  EngineStats stats_ ABSL_GUARDED_BY(mutex_);
  uint64_t last_id_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  bool working_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t num_pokes_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t checks_wanted_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t checks_done_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status check_result_ ABSL_GUARDED_BY(mutex_);

  // Engine thread only, once the thread runs.
  StepLoop loop_;
  std::unique_ptr<ExpertBalancer> balancer_;  // null where experts stay where they are
  absl::Status agreement_;                    // why the group can not agree any more
  bool group_works_ = false;                  // some rank had work when they last agreed
  int64_t agreed_pokes_ = 0;                  // that every rank had seen then
  Mutex join_mutex_;
  std::thread thread_;
};

}  // namespace jevons
