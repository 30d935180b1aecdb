// The engine of one rank: the queue, the thread, and the steps that it takes, alone or together with
// the other ranks of a group.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
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
//
// A group that breaks ends what runs with UNAVAILABLE, unless it can be made anew: then the engine
// waits to be told who is left, joins them, and computes its sequences anew from the tokens that they
// had. Nothing is seen of it at the streams but a pause.
class RankEngine : public Engine, public Rank {
 public:
  // How a broken group is made anew.
  struct Regrouping {
    JoinGroup join;
    // Called on the engine thread when it is broken; Regroup should follow.
    std::function<void(const GroupBreak& seen)> broken;
  };

  RankEngine(LoadedModel model, const Clock* clock,
             std::optional<Regrouping> regrouping = std::nullopt);
  ~RankEngine() override;

  absl::StatusOr<std::shared_ptr<TokenStream>> Submit(GenerationRequest request,
                                                      std::function<void()> ready) override;
  void Drain(absl::Duration patience) override;
  absl::Status Resume(OpenRequest open) override;
  absl::Status failure() const override;
  EngineStats stats() const override;
  int32_t NumCachedBlocks(std::span<const uint64_t> keys) const override;
  // What the prefix cache knows, where that is not what it was at this version.
  std::optional<PrefixDigest> PrefixesSince(int64_t version) const;
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
  // The same for a rank that comes later: as many pokes as the others have had, or will have.
  void PokeUpTo(int64_t count);
  // Breaks the group that this rank is in, for good: what runs ends with UNAVAILABLE and this reason.
  void Abort(const std::string& reason);
  // Breaks it and has this rank join another one. The last membership counts.
  void Regroup(Membership membership);

 private:
  enum class Next { kStep, kWait, kEnd };

  bool IdleLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopped_ || (queue_.empty() && !working_);
  }
  bool WakeLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // The engine thread.
  void Loop();
  void RunSteps();
  // Waits for a membership and takes part. False where the engine has to end: why is in the loop.
  bool Rejoin();
  std::vector<int32_t> SeenUnreached();
  std::optional<Membership> AwaitMembership(const std::vector<int32_t>& unreached);
  absl::Status Join(const Membership& membership);
  void Fail(const absl::Status& failure);
  Next TakeWork();
  Next Agree(bool stopping, int64_t num_pokes);
  // Keeps the error that ends the group for this rank.
  bool GroupIsWhole(const absl::Status& status);
  void CheckIfWanted() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What others may see of the loop.
  void UpdateStats() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  LoadedModel model_;
  const std::optional<Regrouping> regrouping_;
  mutable Mutex mutex_;
  CondVar changed_;  // anything below that somebody waits for
  std::deque<QueuedRequest> queue_ ABSL_GUARDED_BY(mutex_);
  EngineStats stats_ ABSL_GUARDED_BY(mutex_);
  PrefixDigest prefixes_ ABSL_GUARDED_BY(mutex_);
  uint64_t last_id_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  bool working_ ABSL_GUARDED_BY(mutex_) = false;
  bool stepping_ ABSL_GUARDED_BY(mutex_) = false;  // else it waits for work
  // The end of the last step, or when work came after a wait.
  SteadyTime turn_ ABSL_GUARDED_BY(mutex_) = std::chrono::steady_clock::now();
  int64_t num_pokes_ ABSL_GUARDED_BY(mutex_) = 0;
  Communicator* group_ ABSL_GUARDED_BY(mutex_);  // of the model; null while it has none
  Membership joined_ ABSL_GUARDED_BY(mutex_);    // of `group_`; ranks empty: those from the start
  std::optional<Membership> wanted_ ABSL_GUARDED_BY(mutex_);
  bool aborted_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t checks_wanted_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t checks_done_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status check_result_ ABSL_GUARDED_BY(mutex_);

  // Engine thread only, once the thread runs.
  StepLoop loop_;
  std::unique_ptr<ExpertBalancer> balancer_;  // null where experts stay where they are
  int64_t num_moved_layers_ = 0;              // by balancers before this one
  int64_t epoch_ = 0;
  bool group_works_ = false;  // some rank had work when they last agreed
  int64_t agreed_pokes_ = 0;  // that every rank had seen then
  Mutex join_mutex_;
  std::thread thread_;
};

}  // namespace jevons
