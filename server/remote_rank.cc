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
  state_ = State::kJoined;
  last_heard_ = std::chrono::steady_clock::now();
}

void RemoteRank::Leave() {
  MutexLock lock(&mutex_);
  sender_ = nullptr;
  state_ = State::kAbsent;
}

void RemoteRank::Send(wire::ToRank message) {
  MutexLock lock(&mutex_);
  SendLocked(std::move(message));
}

void RemoteRank::SendLocked(wire::ToRank message) {
  if (sender_ != nullptr && loss_.ok()) sender_->Send(std::move(message));
}

void RemoteRank::Hear(const wire::FromRank& message) {
  MutexLock lock(&mutex_);
  last_heard_ = std::chrono::steady_clock::now();
  if (message.has_heartbeat()) reported_ = FromWire(message.heartbeat());
  if (message.has_chunk()) TakeChunk(message.chunk());
  if (message.has_checked()) checked_ = message.checked();
  changed_.NotifyAll();
}

// The lock is held while the stream is filled: it has one end, by its rank or by a loss.
void RemoteRank::TakeChunk(const wire::Chunk& message) {
  const auto found = streams_.find(message.id());
  if (found == streams_.end()) return;
  StreamChunk chunk = FromWire(message);
  found->second->Push(std::move(chunk.delta));
  if (!chunk.end) return;
  found->second->End(*std::move(chunk.end));
  streams_.erase(found);
}

void RemoteRank::Advance(State state) {
  MutexLock lock(&mutex_);
  if (state_ != State::kLost) state_ = state;
  if (state == State::kStopped && sender_ != nullptr) sender_->Close(absl::OkStatus());
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

void RemoteRank::Lose(const absl::Status& status) {
  MutexLock lock(&mutex_);
  if (state_ == State::kStopped || !loss_.ok()) return;
  loss_ = status;
  state_ = State::kLost;
  EndAllLocked(status);
  if (sender_ != nullptr) sender_->Close(status);
  sender_ = nullptr;
  changed_.NotifyAll();
}

void RemoteRank::EndAllLocked(const absl::Status& status) {
  for (auto& [id, stream] : streams_)
    stream->End({.reason = FinishReason::kError, .error = status});
  streams_.clear();
}

absl::StatusOr<std::shared_ptr<TokenStream>> RemoteRank::Submit(GenerationRequest request,
                                                                std::function<void()> ready) {
  MutexLock lock(&mutex_);
  RETURN_IF_ERROR(ValidateGeneration(request, limits_));
  RETURN_IF_ERROR(loss_);
  if (!accepts_) return absl::UnavailableError("the server is shutting down");
  // What runs there is not known to the request; the rank itself refuses what is too many for its blocks.
  const int64_t waiting = static_cast<int64_t>(streams_.size()) - options_.max_num_seqs;
  if (waiting >= options_.max_queued_requests) {
    return absl::ResourceExhaustedError(absl::StrCat("the queue is full: ", waiting,
                                                     " requests wait, the limit is ",
                                                     options_.max_queued_requests));
  }
  const uint64_t id = ++last_id_;
  // Weak: a stream may outlive its group.
  auto stream = std::make_shared<TokenStream>(std::move(ready), [self = weak_from_this(), id] {
    if (const std::shared_ptr<RemoteRank> rank = self.lock()) rank->Cancel(id);
  });
  wire::ToRank message;
  *message.mutable_submit() = ToWire(id, request, absl::Now());
  SendLocked(std::move(message));
  streams_.emplace(id, stream);
  return stream;
}

void RemoteRank::Cancel(uint64_t id) {
  MutexLock lock(&mutex_);
  if (!streams_.contains(id)) return;
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
  const int64_t open = static_cast<int64_t>(streams_.size());
  out.num_running = std::min(reported_.num_running, open);
  out.num_queued = open - out.num_running;
  return out;
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
  while (!streams_.empty() && changed_.WaitUntil(&mutex_, deadline)) {
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
  while (state_ != State::kStopped && state_ != State::kLost) {
    if (!changed_.WaitUntil(&mutex_, deadline)) break;
  }
  EndAllLocked(absl::UnavailableError("the server is shutting down"));
}

void RemoteRank::Poke() {
  wire::ToRank message;
  message.mutable_poke();
  Send(std::move(message));
}

}  // namespace jevons
