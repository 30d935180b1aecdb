#include "server/engine_host.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/background.h"
#include "server/listen.h"
#include "server/rank_children.h"
#include "server/rank_leader.h"

namespace jevons {
namespace {

constexpr char kLoopback[] = "127.0.0.1:0";
constexpr absl::Duration kGiveUp = absl::Seconds(3);  // a loading thread that hangs in a lost group
constexpr absl::Duration kKillSoon = absl::Seconds(1);  // ranks of a group that failed

class EngineHostImpl : public EngineHost {
 public:
  EngineHostImpl(const EngineOptions& options, const GroupOptions& group, const Clock* clock)
      : options_(options), group_(group), clock_(clock) {}
  ~EngineHostImpl() override {
    children_.StopStarting();
    if (engine_ != nullptr && !engine_->failure().ok()) children_.SetPatience(kKillSoon);
  }

  Engine& engine() override { return *engine_; }

  absl::Status Start(const std::function<void()>& wait) {
    const bool processes =
        options_.rank_transport == RankTransport::kProcesses && options_.num_ranks > 1;
    if (processes) RETURN_IF_ERROR(StartLeader());
    absl::Status loaded;
    {
      const Background load([&] { loaded = processes ? LoadGroup() : LoadAlone(); });
      absl::Time give_up = absl::InfiniteFuture();
      while (!load.done()) {
        wait();
        if (!processes) continue;
        const absl::Status ended = children_.Ended();
        if (!ended.ok()) control_->Fail(ended);
        if (!control_->failure().ok()) give_up = std::min(give_up, absl::Now() + kGiveUp);
        if (absl::Now() > give_up) GiveUp();
      }
    }
    if (loaded.ok() && starts_others_ && group_.restart_pause > absl::ZeroDuration()) {
      children_.KeepStarted(group_.restart_pause);
    }
    if (loaded.ok() || !processes) return loaded;
    children_.SetPatience(kKillSoon);
    if (leader_ == nullptr) return loaded;
    const absl::Status failure = leader_->failure();
    leader_->Fail(absl::UnavailableError(absl::StrCat("rank 0: ", loaded.message())));
    return failure.ok() ? loaded : failure;
  }

 private:
  absl::Status StartLeader() {
    starts_others_ = group_.place.leader.empty();
    if (starts_others_ && options_.backend == BackendKind::kCuda) {
      RETURN_IF_ERROR(CheckDevices(options_.num_ranks));
    }
    ASSIGN_OR_RETURN(facts_, GroupFacts(options_));
    ASSIGN_OR_RETURN(leader_,
                     RankLeader::Start({.listen = starts_others_ ? kLoopback : group_.place.leader,
                                        .world_size = options_.num_ranks,
                                        .version = group_.version,
                                        .facts = facts_,
                                        .silence = group_.silence,
                                        .lost = [this](int32_t rank) { children_.Kill(rank); }}));
    control_ = leader_.get();
    if (!starts_others_) return absl::OkStatus();
    return children_.Start(options_.num_ranks, [this](int32_t r) { return ArgumentsOf(r); });
  }

  // Each process has a GPU for itself.
  std::vector<std::string> ArgumentsOf(int32_t rank) const {
    std::vector<std::string> out = group_.arguments;
    out.insert(out.end(), {"--rank", absl::StrCat(rank), "--leader", leader_->address()});
    if (options_.backend == BackendKind::kCuda) {
      out.insert(out.end(), {"--device", absl::StrCat(rank)});
    }
    return out;
  }

  absl::Status LoadAlone() {
    ASSIGN_OR_RETURN(engine_, Engine::Create(options_, clock_));
    return absl::OkStatus();
  }

  absl::Status LoadGroup() {
    RETURN_IF_ERROR(leader_->WaitJoined(group_.join_timeout));
    ASSIGN_OR_RETURN(const std::string rendezvous, FreePort(leader_->address()));
    leader_->Begin(rendezvous);
    const ProcessRankOptions rank = {.engine = options_,
                                     .rank = 0,
                                     .rendezvous = rendezvous,
                                     .listen_host = {},
                                     .facts = facts_,
                                     .load_timeout = group_.load_timeout};
    ASSIGN_OR_RETURN(LoadedModel model, LoadProcessRank(rank));
    RETURN_IF_ERROR(leader_->WaitLoaded(group_.load_timeout));
    leader_->EnableRequests(model.limits, model.options);
    engine_ = StartEngine(std::move(model), std::move(leader_), clock_, JoinerOf(rank));
    return absl::OkStatus();
  }

  // The loading thread waits for what never comes.
  [[noreturn]] void GiveUp() const {
    std::fprintf(stderr, "error: %s\n", std::string(control_->failure().message()).c_str());
    std::_Exit(EXIT_FAILURE);
  }

  const EngineOptions options_;
  const GroupOptions group_;
  const Clock* const clock_;
  std::vector<GroupFact> facts_;
  bool starts_others_ = false;
  RankChildren children_;               // above the engine: the ranks end by themselves first
  RankLeader* control_ = nullptr;       // of `leader_`, also once the engine has it
  std::unique_ptr<RankLeader> leader_;  // until the engine has it
  std::unique_ptr<Engine> engine_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<EngineHost>> EngineHost::Create(const EngineOptions& options,
                                                               const GroupOptions& group,
                                                               const Clock* clock,
                                                               const std::function<void()>& wait) {
  auto out = std::make_unique<EngineHostImpl>(options, group, clock);
  RETURN_IF_ERROR(out->Start(wait));
  return out;
}

}  // namespace jevons
