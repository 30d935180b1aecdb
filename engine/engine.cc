#include "engine/engine.h"

#include <algorithm>
#include <deque>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/mutex.h"
#include "engine/loaded_model.h"
#include "engine/step_loop.h"

namespace jevons {
namespace {

class EngineImpl : public Engine {
 public:
  EngineImpl(LoadedModel model, const Clock* clock)
      : model_(std::move(model)), loop_(&model_, clock), thread_([this] { Loop(); }) {}

  ~EngineImpl() override { Drain(absl::ZeroDuration()); }

  absl::StatusOr<std::shared_ptr<TokenStream>> Submit(GenerationRequest request,
                                                      std::function<void()> ready) override {
    RETURN_IF_ERROR(ValidateGeneration(request, model_.limits));
    auto stream = std::make_shared<TokenStream>(std::move(ready));
    MutexLock lock(&mutex_);
    RETURN_IF_ERROR(failure_);
    if (draining_) return absl::UnavailableError("the server is shutting down");
    const int64_t waiting = static_cast<int64_t>(queue_.size()) + stats_.num_queued;
    if (waiting >= model_.options.max_queued_requests) {
      return absl::ResourceExhaustedError(absl::StrCat("the queue is full: ", waiting,
                                                       " requests wait, the limit is ",
                                                       model_.options.max_queued_requests));
    }
    queue_.push_back({.id = ++last_id_, .request = std::move(request), .stream = stream});
    changed_.NotifyAll();
    return stream;
  }

  void Drain(absl::Duration patience) override {
    {
      MutexLock lock(&mutex_);
      draining_ = true;
      const SteadyTime deadline = SteadyDeadline(patience);
      while (!IdleLocked() && changed_.WaitUntil(&mutex_, deadline)) {
      }
      stopping_ = true;
    }
    changed_.NotifyAll();
    MutexLock lock(&join_mutex_);
    if (thread_.joinable()) thread_.join();
  }

  EngineStats stats() const override {
    MutexLock lock(&mutex_);
    EngineStats out = stats_;
    out.num_queued += static_cast<int64_t>(queue_.size());
    out.num_requests = static_cast<int64_t>(last_id_);
    return out;
  }

  absl::Status CheckIntegrity() override {
    MutexLock lock(&mutex_);
    if (stopped_) return loop_.CheckIntegrity();
    const int64_t wanted = ++checks_wanted_;
    changed_.NotifyAll();
    while (checks_done_ < wanted && !stopped_) changed_.Wait(&mutex_);
    return stopped_ ? loop_.CheckIntegrity() : check_result_;
  }

  absl::Status failure() const override {
    MutexLock lock(&mutex_);
    return failure_;
  }

  const ModelConfig& config() const override { return model_.config; }
  const Tokenizer& tokenizer() const override { return *model_.tokenizer; }
  const ChatFormat& chat_format() const override { return *model_.chat_format; }
  const GenerationLimits& limits() const override { return model_.limits; }
  const EngineOptions& options() const override { return model_.options; }
  std::string backend_description() const override { return model_.backend->Description(); }

 private:
  bool IdleLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopped_ || (queue_.empty() && !working_);
  }
  bool WakeLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !queue_.empty() || stopping_ || checks_done_ < checks_wanted_;
  }

  // The engine thread.
  void Loop() {
    while (loop_.failure().ok() && TakeWork()) loop_.Step();
    if (!loop_.failure().ok()) Fail();
    loop_.EndAll(loop_.failure().ok() ? absl::UnavailableError("the server is shutting down")
                                      : loop_.failure());
    MutexLock lock(&mutex_);
    UpdateStats();
    stopped_ = true;
    changed_.NotifyAll();
  }

  // Refuses from now on, and admits what was queued so that it ends with the rest.
  void Fail() {
    LogError("device_failed", {{"error", loop_.failure().ToString()}});
    MutexLock lock(&mutex_);
    failure_ = loop_.failure();
    for (QueuedRequest& queued : queue_) loop_.Admit(std::move(queued));
    queue_.clear();
  }

  // Between two steps: publishes the numbers, waits while there is nothing to do, admits what was
  // queued. False: stop.
  bool TakeWork() {
    std::deque<QueuedRequest> taken;
    MutexLock lock(&mutex_);
    working_ = loop_.has_work();
    UpdateStats();
    if (!working_) changed_.NotifyAll();
    while (!working_ && !WakeLocked()) changed_.Wait(&mutex_);
    if (checks_done_ < checks_wanted_) {
      check_result_ = loop_.CheckIntegrity();
      checks_done_ = checks_wanted_;
      changed_.NotifyAll();
    }
    taken.swap(queue_);
    for (QueuedRequest& queued : taken) loop_.Admit(std::move(queued));
    working_ = loop_.has_work();
    UpdateStats();
    return !stopping_;
  }

  void UpdateStats() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    stats_ = {};
    loop_.FillStats(stats_);
  }

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
  int64_t checks_wanted_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t checks_done_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status check_result_ ABSL_GUARDED_BY(mutex_);

  StepLoop loop_;  // engine thread only, once the thread runs
  Mutex join_mutex_;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const EngineOptions& options,
                                                       const Clock* clock) {
  ASSIGN_OR_RETURN(LoadedModel model, LoadModel(options));
  return StartEngine(std::move(model), clock);
}

std::unique_ptr<Engine> StartEngine(LoadedModel model, const Clock* clock) {
  return std::make_unique<EngineImpl>(std::move(model), clock);
}

}  // namespace jevons
