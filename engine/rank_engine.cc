#include "engine/rank_engine.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "parallel/unreached.h"

namespace jevons {
namespace {

// For those who decide who is left.
constexpr absl::Duration kMembershipTime = absl::Seconds(20);
// For the others to read the experts that nobody holds.
constexpr absl::Duration kReadTime = absl::Minutes(30);
// For the others to come to the end of their last step.
constexpr absl::Duration kEndTime = absl::Seconds(30);

// From the start, of a place in the group.
int32_t NumberOf(const Membership& group, int32_t place) {
  return group.ranks.empty() ? place : group.ranks[place];
}

std::vector<int32_t> NumbersOf(const Membership& group, std::vector<int32_t> places) {
  for (int32_t& place : places) place = NumberOf(group, place);
  return places;
}

}  // namespace

RankEngine::RankEngine(LoadedModel model, const Clock* clock, std::optional<Regrouping> regrouping)
    : model_(std::move(model)),
      regrouping_(std::move(regrouping)),
      group_(model_.communicator.get()),
      loop_(&model_, clock),
      balancer_(ExpertBalancer::Create(&model_)),
      thread_([this] { Loop(); }) {}

RankEngine::~RankEngine() { Drain(absl::ZeroDuration()); }

absl::StatusOr<std::shared_ptr<TokenStream>> RankEngine::Submit(GenerationRequest request,
                                                                std::function<void()> ready) {
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
  if (!stepping_) turn_ = std::chrono::steady_clock::now();
  queue_.push_back({.id = ++last_id_, .request = std::move(request), .stream = stream});
  changed_.NotifyAll();
  return stream;
}

absl::Status RankEngine::Resume(OpenRequest open) {
  MutexLock lock(&mutex_);
  RETURN_IF_ERROR(failure_);
  if (stopping_) return absl::UnavailableError("the server is shutting down");
  open.stream->SetCancel({});
  if (!stepping_) turn_ = std::chrono::steady_clock::now();
  queue_.push_back(
      {.id = ++last_id_, .request = std::move(open.request), .stream = std::move(open.stream)});
  changed_.NotifyAll();
  return absl::OkStatus();
}

void RankEngine::Drain(absl::Duration patience) {
  StopAccepting();
  WaitIdle(SteadyDeadline(patience));
  Stop();
  Join();
}

void RankEngine::StopAccepting() {
  MutexLock lock(&mutex_);
  draining_ = true;
}

void RankEngine::WaitIdle(SteadyTime deadline) {
  MutexLock lock(&mutex_);
  while (!IdleLocked() && changed_.WaitUntil(&mutex_, deadline)) {
  }
}

void RankEngine::Stop() {
  MutexLock lock(&mutex_);
  stopping_ = true;
  changed_.NotifyAll();
}

void RankEngine::Join() {
  MutexLock lock(&join_mutex_);
  if (thread_.joinable()) thread_.join();
}

void RankEngine::Poke() {
  MutexLock lock(&mutex_);
  ++num_pokes_;
  changed_.NotifyAll();
}

void RankEngine::PokeUpTo(int64_t count) {
  MutexLock lock(&mutex_);
  num_pokes_ = std::max(num_pokes_, count);
  changed_.NotifyAll();
}

void RankEngine::Abort(const std::string& reason) {
  MutexLock lock(&mutex_);
  if (group_ != nullptr) group_->Abort(reason);
  aborted_ = true;
  changed_.NotifyAll();
}

void RankEngine::Regroup(Membership membership) {
  MutexLock lock(&mutex_);
  if (group_ != nullptr) group_->Abort(membership.reason);
  wanted_ = std::move(membership);
  changed_.NotifyAll();
}

EngineStats RankEngine::stats() const {
  MutexLock lock(&mutex_);
  EngineStats out = stats_;
  out.num_queued += static_cast<int64_t>(queue_.size());
  out.num_requests = static_cast<int64_t>(last_id_);
  if (!stopped_ && (stepping_ || !queue_.empty())) {
    out.step_age = absl::FromChrono(std::chrono::steady_clock::now() - turn_);
  }
  if (group_ == nullptr) return out;
  out.place = group_->place();
  out.place_epoch = joined_.epoch;
  if (out.place.waits_for >= 0) out.place.waits_for = NumberOf(joined_, out.place.waits_for);
  return out;
}

int32_t RankEngine::NumCachedBlocks(std::span<const uint64_t> keys) const {
  MutexLock lock(&mutex_);
  return prefixes_.NumLeading(keys);
}

std::optional<PrefixDigest> RankEngine::PrefixesSince(int64_t version) const {
  MutexLock lock(&mutex_);
  if (prefixes_.version() == version) return std::nullopt;
  return prefixes_;
}

absl::Status RankEngine::CheckIntegrity() {
  MutexLock lock(&mutex_);
  if (stopped_) return loop_.CheckIntegrity();
  const int64_t wanted = ++checks_wanted_;
  changed_.NotifyAll();
  while (checks_done_ < wanted && !stopped_) changed_.Wait(&mutex_);
  return stopped_ ? loop_.CheckIntegrity() : check_result_;
}

absl::Status RankEngine::failure() const {
  MutexLock lock(&mutex_);
  return failure_;
}

bool RankEngine::WakeLocked() const {
  if (!queue_.empty() || wanted_.has_value() || aborted_) return true;
  return model_.in_group() ? num_pokes_ > agreed_pokes_ : stopping_;
}

void RankEngine::Loop() {
  absl::Status failure = model_.backend->BindThread();
  if (failure.ok()) {
    do {
      RunSteps();
    } while (loop_.failure().ok() && !loop_.broken().ok() && Rejoin());
    failure = loop_.failure().ok() ? loop_.broken() : loop_.failure();
  } else {
    failure = absl::UnavailableError(absl::StrCat("the device failed: ", failure.message()));
  }
  if (!failure.ok()) Fail(failure);
  loop_.EndAll(failure.ok() ? absl::UnavailableError("the server is shutting down") : failure);
  MutexLock lock(&mutex_);
  UpdateStats();
  stopped_ = true;
  changed_.NotifyAll();
}

void RankEngine::RunSteps() {
  Next next = Next::kStep;
  while (next != Next::kEnd && loop_.failure().ok() && loop_.broken().ok()) {
    next = TakeWork();
    if (next != Next::kStep) continue;
    loop_.Step();
    if (balancer_ != nullptr && loop_.failure().ok() && loop_.broken().ok()) {
      GroupIsWhole(balancer_->AfterStep());
    }
  }
}

bool RankEngine::Rejoin() {
  if (!regrouping_) return false;
  std::vector<int32_t> unreached = SeenUnreached();
  // Steps that are queued may read what the balancer has brought.
  const absl::Status settled = SettleDevice(model_);
  if (balancer_ != nullptr) num_moved_layers_ += balancer_->num_moved_layers();
  balancer_.reset();
  if (!settled.ok()) {
    loop_.Break(settled);
    return false;
  }
  while (true) {
    LogWarning("group_broken", {{"epoch", epoch_}, {"error", loop_.broken().message()}});
    const std::optional<Membership> membership = AwaitMembership(unreached);
    if (!membership) return false;
    epoch_ = membership->epoch;
    const absl::Status status = Join(*membership);
    if (status.ok()) break;
    const bool of_the_group = BreaksGroup(status) || absl::IsCancelled(status);
    loop_.Break(status);
    if (!of_the_group) return false;
    unreached = NumbersOf(*membership, UnreachedRanks(status));
  }
  balancer_ = ExpertBalancer::Create(&model_);
  // All agree once before any waits.
  group_works_ = true;
  loop_.Mend();
  return true;
}

// The group keeps its first error, and so what this rank has seen of it.
std::vector<int32_t> RankEngine::SeenUnreached() {
  if (model_.communicator == nullptr) return {};
  const absl::Status seen = model_.communicator->Wait();
  MutexLock lock(&mutex_);
  return NumbersOf(joined_, UnreachedRanks(seen));
}

std::optional<Membership> RankEngine::AwaitMembership(const std::vector<int32_t>& unreached) {
  {
    MutexLock lock(&mutex_);
    if (aborted_) return std::nullopt;
    if (wanted_) return std::exchange(wanted_, std::nullopt);
  }
  regrouping_->broken({.epoch = epoch_, .status = loop_.broken(), .unreached = unreached});
  const SteadyTime deadline = SteadyDeadline(kMembershipTime);
  MutexLock lock(&mutex_);
  while (!wanted_ && !aborted_ && !stopping_ && changed_.WaitUntil(&mutex_, deadline)) {
    CheckIfWanted();
  }
  if (aborted_) return std::nullopt;
  return std::exchange(wanted_, std::nullopt);
}

absl::Status RankEngine::Join(const Membership& membership) {
  {
    MutexLock lock(&mutex_);
    group_ = nullptr;
  }
  RETURN_IF_ERROR(LeaveGroup(model_));
  const auto cancelled = [this] {
    MutexLock lock(&mutex_);
    return wanted_.has_value() || aborted_;
  };
  ASSIGN_OR_RETURN(std::unique_ptr<Communicator> host, regrouping_->join(membership, cancelled));
  ASSIGN_OR_RETURN(std::unique_ptr<Communicator> group,
                   ConnectBackend(std::move(host), model_.options, *model_.backend, cancelled));
  {
    MutexLock lock(&mutex_);
    if (wanted_ || aborted_) return absl::CancelledError("the ranks form another group");
    group_ = group.get();
    joined_ = membership;
  }
  const absl::Status status = jevons::Regroup(model_, group, kReadTime);
  if (status.ok() || model_.communicator != nullptr) return status;
  MutexLock lock(&mutex_);
  group_ = nullptr;
  return status;
}

// Refuses from now on, and admits what was queued so that it ends with the rest.
void RankEngine::Fail(const absl::Status& failure) {
  LogError("engine_failed", {{"error", failure.ToString()}});
  MutexLock lock(&mutex_);
  // The other ranks would wait for this one.
  if (group_ != nullptr) group_->Abort(std::string(failure.message()));
  failure_ = failure;
  for (QueuedRequest& queued : queue_) loop_.Admit(std::move(queued));
  queue_.clear();
}

// Between two steps: publishes the numbers, waits while there is nothing to do, admits what was
// queued, and agrees with the other ranks on what follows.
RankEngine::Next RankEngine::TakeWork() {
  bool stopping = false;
  int64_t num_pokes = 0;
  {
    MutexLock lock(&mutex_);
    working_ = loop_.has_work();
    UpdateStats();
    turn_ = std::chrono::steady_clock::now();
    if (!working_) changed_.NotifyAll();
    CheckIfWanted();
    while (!working_ && !group_works_ && !WakeLocked()) {
      stepping_ = false;
      changed_.Wait(&mutex_);
      CheckIfWanted();
    }
    if (!std::exchange(stepping_, true)) turn_ = std::chrono::steady_clock::now();
    std::deque<QueuedRequest> taken;
    taken.swap(queue_);
    for (QueuedRequest& queued : taken) loop_.Admit(std::move(queued));
    working_ = loop_.has_work();
    UpdateStats();
    stopping = stopping_;
    num_pokes = num_pokes_;
  }
  if (model_.in_group()) return Agree(stopping, num_pokes);
  return stopping ? Next::kEnd : Next::kStep;
}

RankEngine::Next RankEngine::Agree(bool stopping, int64_t num_pokes) {
  ExpertBalancer::Progress progress;
  if (balancer_ != nullptr) progress = balancer_->progress();
  int64_t values[] = {loop_.has_work() ? 1 : 0, -num_pokes, stopping ? 0 : 1, -progress.num_ready,
                      progress.failed ? 1 : 0};
  if (!GroupIsWhole(model_.communicator->AllReduce(values, ReduceOp::kMax))) return Next::kEnd;
  group_works_ = values[0] > 0;
  agreed_pokes_ = -values[1];
  if (values[2] == 0) {
    // No device may still be read from when its rank ends.
    if (model_.backend->traits().host_memory) return Next::kEnd;
    absl::Status ended = model_.communicator->Wait();
    if (ended.ok()) ended = model_.communicator->Barrier(kEndTime);
    GroupIsWhole(ended);
    return Next::kEnd;
  }
  if (balancer_ != nullptr && !GroupIsWhole(balancer_->Apply({-values[3], values[4] > 0}))) {
    return Next::kEnd;
  }
  return group_works_ ? Next::kStep : Next::kWait;
}

bool RankEngine::GroupIsWhole(const absl::Status& status) {
  if (status.ok()) return true;
  loop_.Break(absl::UnavailableError(
      absl::StrCat("the ranks can not agree on a step: ", status.message())));
  return false;
}

void RankEngine::CheckIfWanted() {
  if (checks_done_ == checks_wanted_) return;
  check_result_ = loop_.CheckIntegrity();
  checks_done_ = checks_wanted_;
  changed_.NotifyAll();
}

void RankEngine::UpdateStats() {
  stats_ = {};
  loop_.FillStats(stats_);
  prefixes_.Apply(loop_.TakePrefixChanges());
  stats_.group_epoch = epoch_;
  stats_.num_moved_layers = num_moved_layers_;
  stats_.num_expert_slots = model_.num_expert_slots();
  if (balancer_ != nullptr) stats_.num_moved_layers += balancer_->num_moved_layers();
}

}  // namespace jevons
