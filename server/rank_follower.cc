#include "server/rank_follower.h"

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mutex.h"
#include "engine/process_rank.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "jevons/internal/v1/ranks.grpc.pb.h"
#include "server/listen.h"
#include "server/rank_wire.h"
#include "server/signals.h"
#include "server/stream_pump.h"

namespace jevons {
namespace {

constexpr absl::Duration kHeartbeat = absl::Milliseconds(300);
constexpr absl::Duration kAnswerTime = absl::Seconds(3);  // of rank 0, after a failure
constexpr int kPingMs = 2'000;  // with the next line: a leader that stands still is noticed within
constexpr int kPingTimeoutMs = 4'000;  // some seconds

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& leader) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kPingMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kPingTimeoutMs);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  return grpc::CreateCustomChannel(leader, grpc::InsecureChannelCredentials(), arguments);
}

// The stream to rank 0. Thread-safe, but for Read and Finish.
class LeaderStream {
 public:
  explicit LeaderStream(const std::shared_ptr<grpc::Channel>& channel)
      : stub_(wire::Ranks::NewStub(channel)), stream_(stub_->Join(&context_)) {}

  bool Read(wire::ToRank* message) { return stream_->Read(message); }
  // A write that fails shows in Read.
  void Send(const wire::FromRank& message) {
    MutexLock lock(&mutex_);
    stream_->Write(message);
  }
  // After Read has returned false.
  absl::Status Finish() {
    const grpc::Status status = stream_->Finish();
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  }

 private:
  const std::unique_ptr<wire::Ranks::Stub> stub_;
  grpc::ClientContext context_;
  Mutex mutex_;  // of writes
  const std::unique_ptr<grpc::ClientReaderWriter<wire::FromRank, wire::ToRank>> stream_;
};

// Moves the chunks of one request to rank 0.
class ChunkSender : public PumpTarget {
 public:
  ChunkSender(uint64_t id, LeaderStream* leader, std::function<void()> ended)
      : id_(id), leader_(leader), ended_(std::move(ended)) {}

  void SetStream(std::shared_ptr<TokenStream> stream) {
    MutexLock lock(&mutex_);
    stream_ = std::move(stream);
  }
  void Cancel() {
    MutexLock lock(&mutex_);
    if (stream_ != nullptr) stream_->Cancel();
  }

  void Pump() override {
    std::shared_ptr<TokenStream> stream;
    {
      MutexLock lock(&mutex_);
      stream = stream_;
    }
    if (stream == nullptr) return;
    while (const std::optional<StreamChunk> chunk = stream->TakeChunk()) {
      wire::FromRank message;
      *message.mutable_chunk() = ToWire(id_, *chunk);
      leader_->Send(message);
      if (chunk->end) return ended_();
    }
  }

 private:
  const uint64_t id_;
  LeaderStream* const leader_;
  const std::function<void()> ended_;
  Mutex mutex_;
  std::shared_ptr<TokenStream> stream_ ABSL_GUARDED_BY(mutex_);
};

class Follower {
 public:
  Follower(const RankFollowerOptions& options, std::vector<GroupFact> facts,
           const std::shared_ptr<grpc::Channel>& channel)
      : options_(options), facts_(std::move(facts)), leader_(channel) {}
  ~Follower() {
    {
      MutexLock lock(&mutex_);
      over_ = true;
      changed_.NotifyAll();
    }
    for (std::thread* thread : {&heart_, &load_, &end_}) {
      if (thread->joinable()) thread->join();
    }
  }

  absl::Status Run() {
    SayHello();
    heart_ = std::thread([this] { Beat(); });
    wire::ToRank message;
    while (leader_.Read(&message)) Hear(message);
    const absl::Status status = leader_.Finish();
    if (status.ok() || !begun_) return status;
    Lost(status);
  }

 private:
  // What this rank waits for may never come: threads are not joined.
  [[noreturn]] void Lost(const absl::Status& status) const {
    LogError("group_lost", {{"error", status.ToString()}});
    std::fprintf(stderr, "error: rank %d has lost its group at %s: %s\n", options_.rank,
                 options_.leader.c_str(), std::string(status.message()).c_str());
    std::_Exit(EXIT_FAILURE);
  }

  void SayHello() {
    wire::FromRank message;
    wire::Hello& hello = *message.mutable_hello();
    hello.set_rank(options_.rank);
    hello.set_world_size(options_.engine.num_ranks);
    hello.set_version(options_.version);
    for (const GroupFact& fact : facts_) {
      wire::Fact& out = *hello.add_facts();
      out.set_name(fact.name);
      out.set_value(fact.value);
    }
    leader_.Send(message);
  }

  RankEngine* engine() {
    MutexLock lock(&mutex_);
    return engine_.get();
  }

  // Says that this rank lives, with its load, and that its engine has failed.
  void Beat() {
    PrefixDigest sent;
    while (true) {
      wire::FromRank message;
      RankEngine* const engine = this->engine();
      *message.mutable_heartbeat() = ToWire(engine == nullptr ? EngineStats() : engine->stats());
      if (engine != nullptr) {
        std::optional<PrefixDigest> prefixes = engine->PrefixesSince(sent.version());
        if (prefixes) SetPrefixChanges(sent.ChangesTo(*prefixes), message.mutable_heartbeat());
        if (prefixes) sent = *std::move(prefixes);
      }
      leader_.Send(message);
      if (engine != nullptr && !engine->failure().ok()) return SayFailed(engine->failure());
      const SteadyTime next = SteadyDeadline(kHeartbeat);
      MutexLock lock(&mutex_);
      while (!over_ && changed_.WaitUntil(&mutex_, next)) {
      }
      if (over_) return;
    }
  }

  void SayFailed(const absl::Status& failure) {
    wire::FromRank message;
    *message.mutable_failed()->mutable_error() = ToWire(failure);
    leader_.Send(message);
    const SteadyTime deadline = SteadyDeadline(kAnswerTime);
    {
      MutexLock lock(&mutex_);
      while (!over_ && changed_.WaitUntil(&mutex_, deadline)) {
      }
      if (over_) return;
    }
    Lost(failure);
  }

  void Hear(const wire::ToRank& message) {
    switch (message.message_case()) {
      case wire::ToRank::kStart:
        begun_ = true;
        load_ = std::thread([this, start = message.start()] { Load(start); });
        return;
      case wire::ToRank::kSubmit:
        return Submit(message.submit());
      case wire::ToRank::kCancel:
        return Cancel(message.cancel().id());
      case wire::ToRank::kPoke:
        if (RankEngine* const engine = this->engine()) engine->PokeUpTo(message.poke().count());
        return;
      case wire::ToRank::kCheck:
        return Check(message.check().number());
      case wire::ToRank::kStop:
        if (engine() != nullptr) Stop();
        return;
      case wire::ToRank::kRegroup:
        if (RankEngine* const engine = this->engine()) engine->Regroup(FromWire(message.regroup()));
        return;
      case wire::ToRank::MESSAGE_NOT_SET:
        LogWarning("unknown_message");
        return;
    }
  }

  void Load(const wire::Start& start) {
    const ProcessRankOptions rank = {.engine = options_.engine,
                                     .rank = options_.rank,
                                     .rendezvous = start.rendezvous(),
                                     .listen_host = {},
                                     .facts = facts_,
                                     .load_timeout = options_.load_timeout};
    absl::StatusOr<LoadedModel> model = start.has_shape()
                                            ? LoadReturningRank(rank, FromWire(start.shape()))
                                            : LoadProcessRank(rank);
    if (!model.ok()) return SayFailed(model.status());
    const RankEngine::Regrouping regrouping = {
        .join = JoinerOf(rank),
        .broken = [this](const GroupBreak& seen) { leader_.Send(ToWire(seen)); }};
    {
      auto engine = std::make_unique<RankEngine>(*std::move(model), &clock_, regrouping);
      MutexLock lock(&mutex_);
      engine_ = std::move(engine);
    }
    wire::FromRank message;
    message.mutable_loaded();
    leader_.Send(message);
  }

  void Submit(const wire::Submit& submit) {
    const uint64_t id = submit.id();
    const auto sender = std::make_shared<ChunkSender>(id, &leader_, [this, id] { Forget(id); });
    {
      MutexLock lock(&mutex_);
      senders_.emplace(id, sender);
    }
    const std::function<void()> notice = pump_.NoticeFor(sender);
    absl::StatusOr<std::shared_ptr<TokenStream>> stream =
        submit.has_given() ? Resume(submit, notice)
                           : engine()->Submit(FromWire(submit, clock_.Now()), notice);
    if (!stream.ok()) {
      const absl::Status error = stream.status();
      stream = std::make_shared<TokenStream>();
      (*stream)->End({.reason = FinishReason::kError, .error = error});
    }
    sender->SetStream(*stream);
    notice();  // the engine may have been faster
  }

  absl::StatusOr<std::shared_ptr<TokenStream>> Resume(const wire::Submit& submit,
                                                      const std::function<void()>& notice) {
    auto stream = std::make_shared<TokenStream>(notice);
    RETURN_IF_ERROR(
        engine()->Resume({.request = FromWire(submit, clock_.Now()), .stream = stream}));
    return stream;
  }

  void Forget(uint64_t id) {
    MutexLock lock(&mutex_);
    senders_.erase(id);
    changed_.NotifyAll();
  }

  void Cancel(uint64_t id) {
    std::shared_ptr<ChunkSender> sender;
    {
      MutexLock lock(&mutex_);
      const auto found = senders_.find(id);
      if (found == senders_.end()) return;
      sender = found->second;
    }
    sender->Cancel();
  }

  void Check(int64_t number) {
    RankEngine* const engine = this->engine();
    if (engine == nullptr) return;
    wire::FromRank message;
    message.mutable_checked()->set_number(number);
    const absl::Status status = engine->CheckIntegrity();
    if (!status.ok()) *message.mutable_checked()->mutable_error() = ToWire(status);
    leader_.Send(message);
  }

  void Stop() {
    engine()->StopAccepting();
    engine()->Stop();
    if (end_.joinable()) return;
    end_ = std::thread([this] {
      engine()->Join();
      {
        MutexLock lock(&mutex_);
        while (!senders_.empty() && !over_) changed_.Wait(&mutex_);
      }
      wire::FromRank message;
      message.mutable_stopped();
      leader_.Send(message);
    });
  }

  const RankFollowerOptions options_;
  const std::vector<GroupFact> facts_;
  const RealClock clock_;
  LeaderStream leader_;
  bool begun_ = false;  // of the reading thread

  Mutex mutex_;
  CondVar changed_;
  bool over_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<uint64_t, std::shared_ptr<ChunkSender>> senders_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<RankEngine> engine_ ABSL_GUARDED_BY(mutex_);
  StreamPump pump_;
  std::thread heart_, load_, end_;
};

}  // namespace

absl::Status RunRankFollower(const RankFollowerOptions& options) {
  const StopSignals ignored;
  RETURN_IF_ERROR(ParseAddress("leader", options.leader).status());
  ASSIGN_OR_RETURN(std::vector<GroupFact> facts, GroupFacts(options.engine));
  const std::string where = absl::StrCat("rank ", options.rank, " of ", options.engine.num_ranks,
                                         " joining rank 0 at ", options.leader);
  const std::shared_ptr<grpc::Channel> channel = MakeChannel(options.leader);
  if (!channel->WaitForConnected(absl::ToChronoTime(absl::Now() + options.join_timeout))) {
    return absl::DeadlineExceededError(
        absl::StrCat(where, ": no answer within ", absl::FormatDuration(options.join_timeout)));
  }
  LogInfo("joining", {{"leader", options.leader}});
  const absl::Status status = Follower(options, std::move(facts), channel).Run();
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(where, ": ", status.message()));
}

}  // namespace jevons
