#include "server/rank_link.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "grpcpp/server_builder.h"
#include "server/listen.h"
#include "server/wire.h"

namespace jevons {
namespace {

constexpr absl::Duration kCloseTime = absl::Seconds(1);
constexpr int kMinPingMs = 1'000;  // ranks ping every two seconds

}  // namespace

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
  if (closed()) {
    // What comes now is of a rank that is lost: another process may have its place.
    if (ok) StartRead(&incoming_);
    return;
  }
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

bool RankLink::closed() {
  MutexLock lock(&mutex_);
  return end_.has_value();
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

absl::Status RankDoor::Open(const std::string& listen) {
  ASSIGN_OR_RETURN(const HostPort parsed, ParseAddress("leader", listen));
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(listen, grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service_);
  builder.SetMaxReceiveMessageSize(-1);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kMinPingMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port == 0) {
    return absl::UnavailableError(
        absl::StrCat("leader: cannot listen on ", listen, ": ", ListenFault(parsed)));
  }
  address_ = absl::StrCat(listen.substr(0, listen.rfind(':')), ":", port);
  return absl::OkStatus();
}

RankDoor::~RankDoor() {
  if (server_ == nullptr) return;
  server_->Shutdown(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(kCloseTime));
  server_->Wait();
}

}  // namespace jevons
