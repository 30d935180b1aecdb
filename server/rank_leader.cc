#include "server/rank_leader.h"

#include <algorithm>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/log.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "jevons/internal/v1/ranks.grpc.pb.h"
#include "server/listen.h"
#include "server/rank_hello.h"
#include "server/rank_link.h"

namespace jevons {
namespace {

using State = RemoteRank::State;

constexpr absl::Duration kTick = absl::Milliseconds(100);
constexpr absl::Duration kCloseTime = absl::Seconds(1);
// Memory that is taken for weights may hold up every thread of a process.
constexpr absl::Duration kLoadSilence = absl::Seconds(10);
// The same while a group forms, which streams wait for.
constexpr absl::Duration kFormSilence = absl::Seconds(4);
constexpr int kMinPingMs = 1'000;  // ranks ping every two seconds
// A broken data plane alone: so often in a row another group is formed, each after a lost rank would have
// been noticed, and a group that lived for longer ends the row.
constexpr int kMostAttempts = 3;
constexpr absl::Duration kMargin = absl::Milliseconds(300);
constexpr absl::Duration kHealthy = absl::Seconds(30);

class RankLeaderImpl : public RankLeader, public LinkOwner {
 public:
  explicit RankLeaderImpl(const RankLeaderOptions& options) : options_(options), service_(this) {
    for (int32_t r = 1; r < options.world_size; ++r) {
      ranks_.push_back(std::make_shared<RemoteRank>(r));
    }
  }
  ~RankLeaderImpl() override {
    {
      MutexLock lock(&mutex_);
      stopping_ = true;
      changed_.NotifyAll();
    }
    if (watch_.joinable()) watch_.join();
    for (const auto& rank : ranks_) End(*rank, absl::UnavailableError("the group has ended"));
    if (server_ == nullptr) return;
    server_->Shutdown(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(kCloseTime));
    server_->Wait();
  }

  absl::Status Listen() {
    ASSIGN_OR_RETURN(const HostPort parsed, ParseAddress("leader", options_.listen));
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort(options_.listen, grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&service_);
    builder.SetMaxReceiveMessageSize(-1);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kMinPingMs);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port == 0) {
      return absl::UnavailableError(
          absl::StrCat("leader: cannot listen on ", options_.listen, ": ", ListenFault(parsed)));
    }
    address_ = absl::StrCat(options_.listen.substr(0, options_.listen.rfind(':')), ":", port);
    watch_ = std::thread([this] { Watch(); });
    return absl::OkStatus();
  }

  const std::string& address() const override { return address_; }

  absl::Status WaitJoined(absl::Duration timeout) override {
    return WaitFor(State::kJoined, "join", timeout);
  }
  absl::Status WaitLoaded(absl::Duration timeout) override {
    return WaitFor(State::kLoaded, "load", timeout);
  }

  void Begin(const std::string& rendezvous) override {
    wire::ToRank message;
    message.mutable_start()->set_rendezvous(rendezvous);
    for (const auto& rank : ranks_) rank->Send(message);
  }

  void EnableRequests(const GenerationLimits& limits, const EngineOptions& options) override {
    for (const auto& rank : ranks_) rank->EnableRequests(limits, options);
  }

  void Fail(const absl::Status& status) override {
    MutexLock serial(&change_mutex_);
    FailLocked(status);
  }

  absl::Status failure() const override {
    MutexLock lock(&mutex_);
    return failure_;
  }

  std::vector<Rank*> ranks() override {
    std::vector<Rank*> out;
    for (const auto& rank : ranks_) out.push_back(rank.get());
    return out;
  }

  void Listen(Listener* listener) override {
    MutexLock serial(&change_mutex_);
    listener_ = listener;
    const absl::Status failed = failure();
    if (!failed.ok()) listener->OnEnd(failed);
  }

  void Broken(int64_t epoch, const absl::Status& status) override {
    MutexLock lock(&mutex_);
    if (epoch != epoch_ || broken_) return;
    broken_ = {.since = std::chrono::steady_clock::now(), .status = status};
  }

  absl::StatusOr<std::shared_ptr<RemoteRank>> Admit(const wire::Hello& hello,
                                                    std::shared_ptr<RankSender> sender) override {
    const absl::Status fits = CheckHello(hello, options_);
    if (!fits.ok()) {
      if (!complete()) Fail(fits);
      return fits;
    }
    MutexLock lock(&mutex_);
    RETURN_IF_ERROR(failure_);
    const std::shared_ptr<RemoteRank>& rank = ranks_[hello.rank() - 1];
    if (rank->state() == State::kLost) {
      return absl::FailedPreconditionError(
          absl::StrCat("rank ", hello.rank(), " of ", options_.world_size,
                       " was lost, and the others go on without it: it can come back when the ",
                       "group is started again"));
    }
    if (rank->state() != State::kAbsent) {
      return absl::AlreadyExistsError(absl::StrCat("rank ", hello.rank(), " of ",
                                                   options_.world_size, " has joined ", address_,
                                                   " already: no other process can"));
    }
    rank->Attach(std::move(sender));
    changed_.NotifyAll();
    return rank;
  }

  void Hear(RemoteRank& rank, const wire::FromRank& message) override {
    rank.Hear(message);
    if (message.has_failed()) {
      const absl::Status error = FromWire(message.failed().error());
      return Lose(
          rank, absl::UnavailableError(absl::StrCat("rank ", rank.rank(), ": ", error.message())));
    }
    if (message.has_broken()) {
      return Broken(message.broken().epoch(), FromWire(message.broken().error()));
    }
    if (!message.has_loaded() && !message.has_stopped()) return;
    rank.Advance(message.has_loaded() ? State::kLoaded : State::kStopped);
    MutexLock lock(&mutex_);
    changed_.NotifyAll();
  }

  void Broken(RemoteRank& rank) override {
    const State state = rank.state();
    if (state == State::kStopped || state == State::kLost) return;
    {
      MutexLock lock(&mutex_);
      if (!complete_) {
        LogWarning("rank_left", {{"which", rank.rank()}});
        return rank.Leave();
      }
    }
    Lose(rank, absl::UnavailableError(absl::StrCat("rank ", rank.rank(),
                                                   " is lost: its process closed the connection")));
  }

 private:
  class Service : public wire::Ranks::CallbackService {
   public:
    explicit Service(LinkOwner* owner) : owner_(owner) {}
    grpc::ServerBidiReactor<wire::FromRank, wire::ToRank>* Join(
        grpc::CallbackServerContext*) override {
      return RankLink::Create(owner_).get();
    }

   private:
    LinkOwner* const owner_;
  };

  struct BrokenGroup {
    SteadyTime since;
    absl::Status status;
  };

  static void End(RemoteRank& rank, const absl::Status& status) {
    for (OpenRequest& open : rank.Lose(status)) {
      open.stream->End({.reason = FinishReason::kError, .error = status});
    }
  }

  void FailLocked(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(change_mutex_) {
    {
      MutexLock lock(&mutex_);
      if (!failure_.ok() || stopping_) return;
      failure_ = status;
      changed_.NotifyAll();
    }
    LogError("group_failed", {{"error", status.ToString()}});
    for (const auto& rank : ranks_) End(*rank, status);
    if (listener_ != nullptr) listener_->OnEnd(status);
  }

  void Lose(RemoteRank& rank, const absl::Status& status) {
    MutexLock serial(&change_mutex_);
    if (listener_ == nullptr) return FailLocked(status);
    if (over() || rank.state() == State::kLost || rank.state() == State::kStopped) return;
    LogError("rank_lost", {{"which", rank.rank()}, {"error", status.ToString()}});
    if (options_.lost) options_.lost(rank.rank());
    num_attempts_ = 0;
    Form(std::string(status.message()), rank.Lose(status));
  }

  // A group of the ranks that are left.
  void Form(const std::string& reason, std::vector<OpenRequest> open)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(change_mutex_) {
    const absl::StatusOr<std::string> rendezvous = FreePort(address_);
    if (!rendezvous.ok()) {
      for (OpenRequest& request : open) {
        request.stream->End({.reason = FinishReason::kError, .error = rendezvous.status()});
      }
      return FailLocked(rendezvous.status());
    }
    Membership membership = {.epoch = 0, .ranks = {}, .rendezvous = *rendezvous, .reason = reason};
    membership.ranks.push_back(0);
    for (const auto& rank : ranks_) {
      if (rank->state() == State::kLoaded) membership.ranks.push_back(rank->rank());
    }
    {
      MutexLock lock(&mutex_);
      membership.epoch = ++epoch_;
      broken_.reset();
    }
    formed_ = std::chrono::steady_clock::now();
    LogWarning("group_forms",
               {{"epoch", membership.epoch}, {"ranks", absl::StrJoin(membership.ranks, ",")}});
    for (size_t i = 1; i < membership.ranks.size(); ++i) {
      ranks_[membership.ranks[i] - 1]->Send(ToWire(membership));
    }
    listener_->OnRegroup(membership, std::move(open));
  }

  // No rank was lost, but the data plane broke.
  void CheckBroken() {
    absl::Status status;
    {
      MutexLock lock(&mutex_);
      const absl::Duration patience = std::min(options_.silence, kLoadSilence) + kMargin;
      if (!broken_ ||
          std::chrono::steady_clock::now() < broken_->since + absl::ToChronoNanoseconds(patience)) {
        return;
      }
      status = broken_->status;
    }
    MutexLock serial(&change_mutex_);
    if (listener_ == nullptr || over()) return;
    if (std::chrono::steady_clock::now() - formed_ > absl::ToChronoNanoseconds(kHealthy)) {
      num_attempts_ = 0;
    }
    if (++num_attempts_ > kMostAttempts) {
      return FailLocked(absl::UnavailableError(absl::StrCat(
          "no group could be formed in ", kMostAttempts, " attempts: ", status.message())));
    }
    Form(std::string(status.message()), {});
  }

  bool over() const {
    MutexLock lock(&mutex_);
    return stopping_ || !failure_.ok();
  }

  int64_t epoch() const {
    MutexLock lock(&mutex_);
    return epoch_;
  }

  bool complete() const {
    MutexLock lock(&mutex_);
    return complete_;
  }

  absl::Status WaitFor(State state, const char* what, absl::Duration timeout) {
    const SteadyTime deadline = SteadyDeadline(timeout);
    MutexLock lock(&mutex_);
    while (true) {
      RETURN_IF_ERROR(failure_);
      std::vector<int32_t> missing;
      for (const auto& rank : ranks_) {
        if (rank->state() < state) missing.push_back(rank->rank());
      }
      if (missing.empty()) {
        complete_ = true;
        return absl::OkStatus();
      }
      if (changed_.WaitUntil(&mutex_, deadline)) continue;
      return absl::DeadlineExceededError(
          absl::StrCat(missing.size() == 1 ? "rank " : "ranks ", absl::StrJoin(missing, ", "),
                       " of ", options_.world_size, " did not ", what, " at ", address_, " within ",
                       absl::FormatDuration(timeout)));
    }
  }

  void Watch() {
    SteadyTime last = std::chrono::steady_clock::now();
    while (true) {
      {
        MutexLock lock(&mutex_);
        if (!stopping_) changed_.WaitUntil(&mutex_, SteadyDeadline(kTick));
        if (stopping_) return;
      }
      // After a pause of this process itself, what the ranks sent has yet to be read.
      const SteadyTime now = std::chrono::steady_clock::now();
      const absl::Duration pause = absl::FromChrono(now - last);
      last = now;
      if (pause > options_.silence / 2) {
        paused_until_ = now + absl::ToChronoNanoseconds(options_.silence);
      }
      if (now < paused_until_) continue;
      CheckSilence();
      CheckBroken();
    }
  }

  void CheckSilence() {
    for (const auto& rank : ranks_) {
      const State state = rank->state();
      if (state != State::kJoined && state != State::kLoaded) continue;
      absl::Duration limit = options_.silence;
      if (state == State::kJoined) {
        limit = std::max(limit, kLoadSilence);
      } else if (rank->stats().group_epoch != epoch()) {
        limit = std::max(limit, kFormSilence);
      }
      if (rank->silence() <= limit) continue;
      Lose(*rank,
           absl::UnavailableError(absl::StrCat("rank ", rank->rank(), " is lost: no heartbeat for ",
                                               absl::FormatDuration(limit))));
    }
  }

  const RankLeaderOptions options_;
  std::vector<std::shared_ptr<RemoteRank>> ranks_;  // from rank 1 on
  mutable Mutex mutex_;
  CondVar changed_;
  bool complete_ ABSL_GUARDED_BY(mutex_) = false;  // every rank has joined: none may leave
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  int64_t epoch_ ABSL_GUARDED_BY(mutex_) = 0;
  std::optional<BrokenGroup> broken_ ABSL_GUARDED_BY(mutex_);  // of this epoch
  SteadyTime paused_until_;                                    // of the watching thread

  Mutex change_mutex_
      ABSL_ACQUIRED_BEFORE(mutex_);  // changes of the group come one after the other
  Listener* listener_ ABSL_GUARDED_BY(change_mutex_) = nullptr;
  int num_attempts_ ABSL_GUARDED_BY(change_mutex_) = 0;
  SteadyTime formed_ ABSL_GUARDED_BY(change_mutex_);
  Service service_;
  std::unique_ptr<grpc::Server> server_;  // below `service_`: it goes first
  std::string address_;
  std::thread watch_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<RankLeader>> RankLeader::Start(const RankLeaderOptions& options) {
  auto out = std::make_unique<RankLeaderImpl>(options);
  RETURN_IF_ERROR(out->Listen());
  return out;
}

}  // namespace jevons
