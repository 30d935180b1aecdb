#include "server/rank_leader.h"

#include <algorithm>
#include <map>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/log.h"
#include "server/group_breaks.h"
#include "server/listen.h"
#include "server/rank_hello.h"
#include "server/rank_link.h"

namespace jevons {
namespace {

using State = RemoteRank::State;

constexpr absl::Duration kTick = absl::Milliseconds(100);
// Memory that is taken for weights may hold up every thread of a process.
constexpr absl::Duration kLoadSilence = absl::Seconds(10);
// The same while a group forms, which streams wait for.
constexpr absl::Duration kFormSilence = absl::Seconds(4);
constexpr absl::Duration kRest = absl::Minutes(5);

class RankLeaderImpl : public RankLeader, public LinkOwner {
 public:
  explicit RankLeaderImpl(const RankLeaderOptions& options)
      : options_(options), breaks_(options.silence) {
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
  }

  absl::Status Listen() {
    RETURN_IF_ERROR(door_.Open(options_.listen));
    watch_ = std::thread([this] { Watch(); });
    return absl::OkStatus();
  }

  const std::string& address() const override { return door_.address(); }

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
    MutexLock serial(&change_mutex_);
    shape_ = {.max_model_len = options.max_model_len, .kv_cache_tokens = options.kv_cache_tokens};
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

  void Broken(const GroupBreak& seen) override {
    breaks_.Note(0, seen, std::chrono::steady_clock::now());
  }

  absl::StatusOr<std::shared_ptr<RemoteRank>> Admit(const wire::Hello& hello,
                                                    std::shared_ptr<RankSender> sender) override {
    const absl::Status fits = CheckHello(hello, options_);
    if (!fits.ok()) {
      if (!complete()) Fail(fits);
      return fits;
    }
    MutexLock serial(&change_mutex_);
    MutexLock lock(&mutex_);
    RETURN_IF_ERROR(failure_);
    if (stopping_) return absl::UnavailableError("the group has ended");
    const std::shared_ptr<RemoteRank>& rank = ranks_[hello.rank() - 1];
    const bool returns = rank->state() == State::kLost;
    if (returns) RETURN_IF_ERROR(CheckRest(hello.rank()));
    if (!returns && rank->state() != State::kAbsent) {
      return absl::AlreadyExistsError(absl::StrCat("rank ", hello.rank(), " of ",
                                                   options_.world_size, " has joined ", address(),
                                                   " already: no other process can"));
    }
    rank->Attach(std::move(sender));
    changed_.NotifyAll();
    if (!returns) return rank;
    LogInfo("rank_returns", {{"which", rank->rank()}});
    GroupShape shape = shape_;
    shape.num_slots = listener_->FirstStats().num_expert_slots;
    rank->Send(ToWire(shape));
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
      return breaks_.Note(rank.rank(), FromWire(message.broken()),
                          std::chrono::steady_clock::now());
    }
    if (message.has_loaded() && rank.state() == State::kReturns) return TakeIn(rank);
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
    if (rank.state() == State::kReturns) {
      LogWarning("rank_did_not_return", {{"which", rank.rank()}, {"error", status.ToString()}});
      rank.Lose(status);
      return;
    }
    breaks_.LostRank();
    Form(std::string(status.message()), Leave(rank, status));
  }

  // It has loaded beside the others, which take it in.
  void TakeIn(RemoteRank& rank) {
    MutexLock serial(&change_mutex_);
    if (over() || rank.state() != State::kReturns) return;
    LogInfo("rank_returned", {{"which", rank.rank()}});
    rank.TakeIn();
    Form(absl::StrCat("rank ", rank.rank(), " has come back"), {});
  }

  // One that others do not reach would break the group again and again.
  absl::Status CheckRest(int32_t rank) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(change_mutex_) {
    const auto until = rests_.find(rank);
    const SteadyTime now = std::chrono::steady_clock::now();
    if (until == rests_.end() || now >= until->second) return absl::OkStatus();
    return absl::UnavailableError(absl::StrCat(
        "rank ", rank, " did not reach every other rank: it can come back in ",
        absl::FormatDuration(absl::Ceil(absl::FromChrono(until->second - now), absl::Seconds(1)))));
  }

  std::vector<OpenRequest> Leave(RemoteRank& rank, const absl::Status& status) {
    LogError("rank_lost", {{"which", rank.rank()}, {"error", status.ToString()}});
    if (options_.lost) options_.lost(rank.rank());
    return rank.Lose(status);
  }

  // A group of the ranks that are left.
  void Form(const std::string& reason, std::vector<OpenRequest> open)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(change_mutex_) {
    const absl::StatusOr<std::string> rendezvous = FreePort(address());
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
    }
    breaks_.Form(membership.epoch, std::chrono::steady_clock::now());
    LogWarning("group_forms",
               {{"epoch", membership.epoch}, {"ranks", absl::StrJoin(membership.ranks, ",")}});
    for (size_t i = 1; i < membership.ranks.size(); ++i) {
      ranks_[membership.ranks[i] - 1]->Send(ToWire(membership));
    }
    listener_->OnRegroup(membership, std::move(open));
  }

  // No rank was lost, but the data plane broke, or something is lost on its ways.
  void CheckBreaks() {
    MutexLock serial(&change_mutex_);
    if (listener_ == nullptr || over()) return;
    std::vector<RankWays::Rank> places;
    const auto add = [&places, epoch = epoch()](int32_t rank, const EngineStats& stats) {
      if (stats.place_epoch == epoch) places.push_back({.rank = rank, .place = stats.place});
    };
    add(0, listener_->FirstStats());
    for (const auto& rank : ranks_) {
      if (rank->state() == State::kLoaded) add(rank->rank(), rank->stats());
    }
    const SteadyTime now = std::chrono::steady_clock::now();
    breaks_.Look(places, now);
    const std::optional<GroupBreaks::Verdict> verdict = breaks_.Due(now);
    if (!verdict) return;
    if (verdict->is_final) return FailLocked(verdict->status);
    std::vector<OpenRequest> open;
    for (int32_t number : verdict->lost) {
      if (ranks_[number - 1]->state() != State::kLoaded) continue;
      breaks_.LostRank();
      rests_[number] = SteadyDeadline(kRest);
      const absl::Status status = absl::UnavailableError(absl::StrCat(
          "rank ", number, " does not reach every other rank: ", verdict->status.message()));
      for (OpenRequest& one : Leave(*ranks_[number - 1], status)) open.push_back(std::move(one));
    }
    Form(std::string(verdict->status.message()), std::move(open));
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
                       " of ", options_.world_size, " did not ", what, " at ", address(),
                       " within ", absl::FormatDuration(timeout)));
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
      if (now < paused_until_) {
        breaks_.Pause();
        continue;
      }
      CheckSilence();
      CheckBreaks();
    }
  }

  void CheckSilence() {
    for (const auto& rank : ranks_) {
      const State state = rank->state();
      const bool loads = state == State::kJoined || state == State::kReturns;
      if (!loads && state != State::kLoaded) continue;
      absl::Duration limit = options_.silence;
      if (loads) {
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
  SteadyTime paused_until_;  // of the watching thread
  GroupBreaks breaks_;

  Mutex change_mutex_
      ABSL_ACQUIRED_BEFORE(mutex_);  // changes of the group come one after the other
  Listener* listener_ ABSL_GUARDED_BY(change_mutex_) = nullptr;
  GroupShape shape_ ABSL_GUARDED_BY(change_mutex_);  // but the slots, which change
  std::map<int32_t, SteadyTime> rests_ ABSL_GUARDED_BY(change_mutex_);
  RankDoor door_{this};  // below what its links use
  std::thread watch_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<RankLeader>> RankLeader::Start(const RankLeaderOptions& options) {
  auto out = std::make_unique<RankLeaderImpl>(options);
  RETURN_IF_ERROR(out->Listen());
  return out;
}

}  // namespace jevons
