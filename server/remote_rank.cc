#include "server/remote_rank.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace jevons {
namespace {

constexpr absl::Duration kCheckTime = absl::Seconds(30);
constexpr absl::Duration kStopTime = absl::Seconds(10);

}  // namespace

RemoteRank::State RemoteRank::state() const {
  MutexLock lock(&mutex_);
  return state_;
}

void RemoteRank::Attach(std::shared_ptr<RankSender> sender) {
  MutexLock lock(&mutex_);
  sender_ = std::move(sender);
  state_ = state_ == State::kLost ? State::kReturns : State::kJoined;
  reported_ = {};
  last_heard_ = std::chrono::steady_clock::now();
}

void RemoteRank::Leave() {
  MutexLock lock(&mutex_);
  sender_ = nullptr;
  state_ = State::kAbsent;
}

void RemoteRank::TakeIn() {
  MutexLock lock(&mutex_);
  loss_ = absl::OkStatus();
  state_ = State::kLoaded;
  PokeLocked();
}

void RemoteRank::Send(wire::ToRank message) {
  MutexLock lock(&mutex_);
  SendLocked(std::move(message));
}

void RemoteRank::SendLocked(wire::ToRank message) {
  if (sender_ != nullptr) sender_->Send(std::move(message));
}

void RemoteRank::CloseLocked(const absl::Status& status) {
  state_ = State::kLost;
  if (sender_ != nullptr) sender_->Close(status);
  sender_ = nullptr;
  changed_.NotifyAll();
}

void RemoteRank::Hear(const wire::FromRank& message) {
  MutexLock lock(&mutex_);
  last_heard_ = std::chrono::steady_clock::now();
  if (message.has_heartbeat()) {
    reported_ = FromWire(message.heartbeat());
    prefixes_.Apply(PrefixChangesFromWire(message.heartbeat()));
  }
  if (message.has_chunk()) TakeChunk(message.chunk());
  if (message.has_checked()) checked_ = message.checked();
  changed_.NotifyAll();
}

// The lock is held while the stream is filled: it has one end, by its rank or by a loss.
void RemoteRank::TakeChunk(const wire::Chunk& message) {
  const auto found = open_.find(message.id());
  if (found == open_.end()) return;
  StreamChunk chunk = FromWire(message);
  OpenRequest& open = found->second;
  const StreamDelta& delta = chunk.delta;
  GivenOutput& given = open.request.given;
  given.token_ids.insert(given.token_ids.end(), delta.token_ids.begin(), delta.token_ids.end());
  given.num_prompt_logprobs += static_cast<int32_t>(delta.prompt_logprobs.size());
  open.stream->Push(std::move(chunk.delta));
  if (!chunk.end) return;
  // The rank fails, or stops: the request is not at its end.
  if (absl::IsUnavailable(chunk.end->error)) return;
  open.stream->End(*std::move(chunk.end));
  open_.erase(found);
}

void RemoteRank::Advance(State state) {
  MutexLock lock(&mutex_);
  if (state_ != State::kLost && state_ != State::kReturns) state_ = state;
  if (state == State::kStopped && sender_ != nullptr) {
    sender_->Close(absl::OkStatus());
    sender_ = nullptr;  // it holds this rank
  }
  changed_.NotifyAll();
}

absl::Duration RemoteRank::silence() const {
  MutexLock lock(&mutex_);
  return absl::FromChrono(std::chrono::steady_clock::now() - last_heard_);
}

void RemoteRank::EnableRequests(const GenerationLimits& limits, const EngineOptions& options) {
  MutexLock lock(&mutex_);
  limits_ = limits;
  options_ = options;
  accepts_ = true;
}

std::vector<OpenRequest> RemoteRank::Lose(const absl::Status& status) {
  std::vector<OpenRequest> out;
  MutexLock lock(&mutex_);
  if (state_ == State::kReturns) CloseLocked(status);
  if (state_ == State::kStopped || !loss_.ok()) return out;
  loss_ = status;
  for (auto& [id, open] : open_) out.push_back(std::move(open));
  open_.clear();
  reported_.num_queued = reported_.num_running = 0;
  reported_.num_blocks = reported_.num_free_blocks = 0;
  prefixes_ = {};
  reported_.step_age = absl::ZeroDuration();
  CloseLocked(status);
  return out;
}

void RemoteRank::EndAllLocked(const absl::Status& status) {
  for (auto& [id, open] : open_) {
    open.stream->End({.reason = FinishReason::kError, .error = status});
  }
  open_.clear();
}

absl::StatusOr<std::shared_ptr<TokenStream>> RemoteRank::Submit(GenerationRequest request,
                                                                std::function<void()> ready) {
  MutexLock lock(&mutex_);
  RETURN_IF_ERROR(ValidateGeneration(request, limits_));
  RETURN_IF_ERROR(loss_);
  if (!accepts_) return absl::UnavailableError("the server is shutting down");
  // What runs there is not known to the request; the rank itself refuses what is too many for its blocks.
  const int64_t waiting = static_cast<int64_t>(open_.size()) - options_.max_num_seqs;
  if (waiting >= options_.max_queued_requests) {
    return absl::ResourceExhaustedError(absl::StrCat("the queue is full: ", waiting,
                                                     " requests wait, the limit is ",
                                                     options_.max_queued_requests));
  }
  const uint64_t id = ++last_id_;
  auto stream = std::make_shared<TokenStream>(std::move(ready), CancelOf(id));
  wire::ToRank message;
  *message.mutable_submit() = ToWire(id, request, absl::Now());
  SendLocked(std::move(message));
  open_.emplace(id, OpenRequest{.request = std::move(request), .stream = stream});
  return stream;
}

absl::Status RemoteRank::Resume(OpenRequest open) {
  const std::shared_ptr<TokenStream> stream = open.stream;
  uint64_t id = 0;
  {
    MutexLock lock(&mutex_);
    RETURN_IF_ERROR(loss_);
    if (state_ == State::kStopped) return absl::UnavailableError("the server is shutting down");
    id = ++last_id_;
    stream->SetCancel(CancelOf(id));
    wire::ToRank message;
    *message.mutable_submit() = ToWire(id, open.request, absl::Now());
    SetGiven(open.request.given, message.mutable_submit());
    SendLocked(std::move(message));
    open_.emplace(id, std::move(open));
  }
  if (stream->cancelled()) Cancel(id);
  return absl::OkStatus();
}

// Weak: a stream may outlive its group.
std::function<void()> RemoteRank::CancelOf(uint64_t id) {
  return [self = weak_from_this(), id] {
    if (const std::shared_ptr<RemoteRank> rank = self.lock()) rank->Cancel(id);
  };
}

void RemoteRank::Cancel(uint64_t id) {
  MutexLock lock(&mutex_);
  if (!open_.contains(id)) return;
  wire::ToRank message;
  message.mutable_cancel()->set_id(id);
  SendLocked(std::move(message));
}

absl::Status RemoteRank::failure() const {
  MutexLock lock(&mutex_);
  return loss_;
}

EngineStats RemoteRank::stats() const {
  MutexLock lock(&mutex_);
  EngineStats out = reported_;
  const int64_t open = static_cast<int64_t>(open_.size());
  out.num_running = std::min(reported_.num_running, open);
  out.num_queued = open - out.num_running;
  // It goes on while nothing is heard.
  if (out.step_age > absl::ZeroDuration() && loss_.ok()) {
    out.step_age += absl::FromChrono(std::chrono::steady_clock::now() - last_heard_);
  }
  return out;
}

int32_t RemoteRank::NumCachedBlocks(std::span<const uint64_t> keys) const {
  MutexLock lock(&mutex_);
  return prefixes_.NumLeading(keys);
}

absl::Status RemoteRank::CheckIntegrity() {
  const SteadyTime deadline = SteadyDeadline(kCheckTime);
  MutexLock lock(&mutex_);
  RETURN_IF_ERROR(loss_);
  const int64_t number = ++last_check_;
  wire::ToRank message;
  message.mutable_check()->set_number(number);
  SendLocked(std::move(message));
  while (loss_.ok() && (!checked_ || checked_->number() < number)) {
    if (!changed_.WaitUntil(&mutex_, deadline)) {
      return absl::DeadlineExceededError(absl::StrCat(
          "rank ", rank_, " did not check itself within ", absl::FormatDuration(kCheckTime)));
    }
  }
  RETURN_IF_ERROR(loss_);
  return FromWire(checked_->error());
}

void RemoteRank::StopAccepting() {
  MutexLock lock(&mutex_);
  accepts_ = false;
}

void RemoteRank::WaitIdle(SteadyTime deadline) {
  MutexLock lock(&mutex_);
  while (!open_.empty() && changed_.WaitUntil(&mutex_, deadline)) {
  }
}

void RemoteRank::Stop() {
  wire::ToRank message;
  message.mutable_stop();
  Send(std::move(message));
}

void RemoteRank::Join() {
  const SteadyTime deadline = SteadyDeadline(kStopTime);
  MutexLock lock(&mutex_);
  while (state_ < State::kStopped) {
    if (!changed_.WaitUntil(&mutex_, deadline)) break;
  }
  EndAllLocked(absl::UnavailableError("the server is shutting down"));
}

void RemoteRank::Poke() {
  MutexLock lock(&mutex_);
  ++num_pokes_;
  PokeLocked();
}

void RemoteRank::PokeLocked() {
  wire::ToRank message;
  message.mutable_poke()->set_count(num_pokes_);
  SendLocked(std::move(message));
}

}  // namespace jevons
