#include "server/rank_link.h"

#include <utility>

#include "server/wire.h"

namespace jevons {

std::shared_ptr<RankLink> RankLink::Create(LinkOwner* owner) {
  std::shared_ptr<RankLink> out(new RankLink(owner));
  out->self_ = out;
  out->StartRead(&out->incoming_);
  return out;
}

void RankLink::Send(wire::ToRank message) {
  MutexLock lock(&mutex_);
  if (end_) return;
  waiting_.push_back(std::move(message));
  WriteLocked();
}

void RankLink::Close(const absl::Status& status) {
  MutexLock lock(&mutex_);
  if (end_) return;
  end_ = status;
  WriteLocked();
}

void RankLink::OnReadDone(bool ok) {
  if (!ok) {
    if (rank_ != nullptr) owner_->Broken(*rank_);
    return Close(absl::CancelledError("the stream has broken"));
  }
  if (rank_ != nullptr) {
    owner_->Hear(*rank_, incoming_);
  } else if (incoming_.has_hello()) {
    absl::StatusOr<std::shared_ptr<RemoteRank>> rank =
        owner_->Admit(incoming_.hello(), shared_from_this());
    if (!rank.ok()) return Close(rank.status());
    rank_ = *std::move(rank);
  } else {
    return Close(absl::InvalidArgumentError("a rank says hello first"));
  }
  StartRead(&incoming_);
}

void RankLink::OnWriteDone(bool ok) {
  MutexLock lock(&mutex_);
  writing_ = false;
  // The read says what became of the stream.
  if (!ok) waiting_.clear();
  WriteLocked();
}

void RankLink::OnDone() { const std::shared_ptr<RankLink> self = std::move(self_); }

void RankLink::WriteLocked() {
  if (writing_ || finished_) return;
  if (!waiting_.empty()) {
    outgoing_ = std::move(waiting_.front());
    waiting_.pop_front();
    writing_ = true;
    return StartWrite(&outgoing_);
  }
  if (!end_) return;
  finished_ = true;
  Finish(ToGrpcStatus(*end_));
}

}  // namespace jevons
