#include "server/rank_leader.h"

#include <algorithm>
#include <functional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/log.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "jevons/internal/v1/ranks.grpc.pb.h"
#include "server/listen.h"
#include "server/rank_link.h"

namespace jevons {
namespace {

using State = RemoteRank::State;

constexpr absl::Duration kTick = absl::Milliseconds(100);
constexpr absl::Duration kCloseTime = absl::Seconds(1);
// Memory that is taken for weights may hold up every thread of a process.
constexpr absl::Duration kLoadSilence = absl::Seconds(10);
constexpr int kMinPingMs = 1'000;  // ranks ping every two seconds

absl::Status CheckHello(const wire::Hello& hello, const RankLeaderOptions& options) {
  const auto differ = [&](const std::string& name, const std::string& own,
                          const std::string& other) {
    return absl::FailedPreconditionError(absl::StrCat("rank ", hello.rank(),
                                                      " does not fit: ", name, " is ", own,
                                                      " at rank 0 and ", other, " there"));
  };
  if (hello.version() != options.version) {
    return differ("the version", options.version, hello.version());
  }
  if (hello.world_size() != options.world_size) {
    return differ("the world size", absl::StrCat(options.world_size),
                  absl::StrCat(hello.world_size()));
  }
  if (hello.rank() < 1 || hello.rank() >= options.world_size) {
    return absl::FailedPreconditionError(
        absl::StrCat("rank must be in [1, ", options.world_size - 1, "], given ", hello.rank()));
  }
  for (size_t i = 0; i < options.facts.size(); ++i) {
    const GroupFact& own = options.facts[i];
    const bool there = i < static_cast<size_t>(hello.facts_size());
    if (there && hello.facts(i).name() == own.name && hello.facts(i).value() == own.value) continue;
    return differ(own.name, own.value, there ? hello.facts(i).value() : "missing");
  }
  return absl::OkStatus();
}

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
    for (const auto& rank : ranks_) rank->Lose(absl::UnavailableError("the group has ended"));
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
    std::function<void(const absl::Status&)> lost;
    {
      MutexLock lock(&mutex_);
      if (!failure_.ok() || stopping_) return;
      failure_ = status;
      lost = std::move(lost_);
      changed_.NotifyAll();
    }
    LogError("group_failed", {{"error", status.ToString()}});
    for (const auto& rank : ranks_) rank->Lose(status);
    if (lost) lost(status);
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

  void OnLoss(std::function<void(const absl::Status&)> lost) override {
    absl::Status failure;
    {
      MutexLock lock(&mutex_);
      failure = failure_;
      if (failure.ok()) lost_ = std::move(lost);
    }
    if (!failure.ok()) lost(failure);
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
      return Fail(
          absl::UnavailableError(absl::StrCat("rank ", rank.rank(), ": ", error.message())));
    }
    if (!message.has_loaded() && !message.has_stopped()) return;
    rank.Advance(message.has_loaded() ? State::kLoaded : State::kStopped);
    MutexLock lock(&mutex_);
    changed_.NotifyAll();
  }

  void Broken(RemoteRank& rank) override {
    if (rank.state() == State::kStopped) return;
    {
      MutexLock lock(&mutex_);
      if (!complete_) {
        LogWarning("rank_left", {{"which", rank.rank()}});
        return rank.Leave();
      }
    }
    Fail(absl::UnavailableError(
        absl::StrCat("rank ", rank.rank(), " is lost: its process closed the connection")));
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
      if (now >= paused_until_) CheckSilence();
    }
  }

  void CheckSilence() {
    for (const auto& rank : ranks_) {
      const State state = rank->state();
      if (state != State::kJoined && state != State::kLoaded) continue;
      absl::Duration limit = options_.silence;
      if (state == State::kJoined) limit = std::max(limit, kLoadSilence);
      if (rank->silence() <= limit) continue;
      Fail(absl::UnavailableError(absl::StrCat("rank ", rank->rank(), " is lost: no heartbeat for ",
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
  std::function<void(const absl::Status&)> lost_ ABSL_GUARDED_BY(mutex_);
  SteadyTime paused_until_;  // of the watching thread
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
