#include "tests/chaos/chaos.h"

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "base/random.h"
#include "tests/chaos/chaos_clients.h"
#include "tests/chaos/chaos_faults.h"
#include "tests/chaos/chaos_group.h"
#include "tests/support/checkpoint_writer.h"
#include "tests/support/wait_for.h"

namespace jevons {
namespace {

constexpr int kCacheTokens = 8192;  // of a rank: enough for all clients
constexpr absl::Duration kPoll = absl::Milliseconds(20);
// Of everything that a group may have begun, on a machine that is busy.
constexpr absl::Duration kIdleTime = absl::Minutes(2);
constexpr absl::Duration kDrainTime = absl::Minutes(2);
constexpr absl::Duration kReturnTime = absl::Minutes(2);  // the pause of a rank doubles
constexpr int kMoreLosses = 3;                            // of a group whose ranks come back
constexpr double kSilentCpus = 0.02;

using Arguments = std::vector<std::string>;

class ChaosRun {
 public:
  ChaosRun(const ChaosOptions& options, ChaosReport& report)
      : options_(options), report_(report), random_(options.seed) {}

  absl::Status Run() {
    WriteChaosModel(model_.path(), options_.seed);
    std::vector<v1::GenerateRequest> requests =
        CanaryRequests(options_.seed, options_.num_canaries);
    requests.push_back(FillRequest(kCacheTokens));
    const Arguments alone = {"--listen", "127.0.0.1:0", "--ranks", "1"};
    ASSIGN_OR_RETURN(canaries_, AnswerAlone(Serve(alone), requests));
    fill_ = canaries_.back();
    canaries_.pop_back();
    end_ = absl::Now() + options_.duration;
    do {
      RETURN_IF_ERROR(RunGroup());
    } while (absl::Now() < end_ && report_.failures().empty());
    return absl::OkStatus();
  }

 private:
  Arguments Serve(const Arguments& more) const {
    Arguments out = {options_.binary,
                     "serve",
                     "--model",
                     model_.path(),
                     "--backend",
                     "cpu",
                     "--threads",
                     "1",
                     "--max-num-seqs",
                     "8",
                     "--max-num-batched-tokens",
                     "128",
                     "--kv-cache-tokens",
                     absl::StrCat(kCacheTokens)};
    out.insert(out.end(), more.begin(), more.end());
    return out;
  }

  // Experts in their places, or with replicas, or moving all the time.
  // Lost ranks stay lost, or come back.
  Arguments DrawFlags() {
    const int64_t kind = random_.Below(3);
    restarts_ = options_.lab == nullptr && random_.Below(2) == 0;
    return {"--ranks",
            absl::StrCat(options_.num_ranks),
            "--transport",
            "processes",
            "--restart-seconds",
            restarts_ ? "1" : "0",
            "--rank-timeout-ms",
            absl::StrCat(absl::ToInt64Milliseconds(options_.rank_timeout)),
            "--redundant-experts",
            absl::StrCat(kind == 0 ? 0 : options_.num_ranks),
            "--balance-interval-steps",
            absl::StrCat(kind == 2 ? 20 : 0)};
  }

  absl::Status RunGroup() {
    const Arguments flags = DrawFlags();
    Say(absl::StrCat("group ", ++num_groups_, ": ", absl::StrJoin(flags, " ")));
    ASSIGN_OR_RETURN(group_, ChaosGroup::Start({.serve = Serve(flags),
                                                .num_ranks = options_.num_ranks,
                                                .log = options_.log,
                                                .lab = options_.lab}));
    report_.Count("groups");
    clients_.emplace(group_->address(), canaries_, options_.num_clients, random_.Bits(), &report_);
    const int max_losses = options_.max_losses * (restarts_ ? kMoreLosses : 1);
    faults_ = std::make_unique<FaultMaker>(FaultOptions{.faults = options_.faults,
                                                        .max_losses = max_losses,
                                                        .rank_timeout = options_.rank_timeout,
                                                        .lab = options_.lab},
                                           random_.Bits(), group_.get(),
                                           [this](const Fault& fault) { Note(fault); });
    bool whole = Faults() && Settle();
    if (whole && options_.silence > absl::ZeroDuration()) KeepSilent();
    if (whole) CheckPools();
    EndGroup();
    clients_.reset();
    group_.reset();
    return absl::OkStatus();
  }

  // Until the time is over or the group has had what it is to have. False where it is broken.
  bool Faults() {
    const absl::Time group_end = std::min(end_, absl::Now() + kLongestGroup);
    while (absl::Now() < group_end && !faults_->done()) {
      const absl::Duration pause = options_.mean_pause * -std::log(1 - random_.Uniform());
      if (!Watch(std::min(group_end, absl::Now() + std::max(pause, kShortestPause)))) return false;
      if (absl::Now() >= group_end) break;
      if (restarts_) group_->TakeBack();
      faults_->Next([this](absl::Duration time) { return Watch(absl::Now() + time); });
      if (!report_.failures().empty()) return false;
    }
    // What was lost has its time to be noticed.
    return Watch(absl::Now() + options_.rank_timeout + absl::Seconds(1));
  }

  // Looks at the group until `time`. False, with a failure, where something is wrong.
  bool Watch(absl::Time time) {
    do {
      const std::string processes = group_->CheckProcesses();
      const absl::Duration silence = clients_->LongestSilence();
      if (!processes.empty()) report_.Fail(processes);
      if (silence > options_.longest_gap) {
        report_.Fail(absl::StrCat("an open stream is silent for ", absl::FormatDuration(silence)));
      }
      if (!report_.failures().empty()) return false;
      absl::SleepFor(std::clamp(time - absl::Now(), absl::ZeroDuration(), kPoll));
    } while (absl::Now() < time);
    return true;
  }

  void Note(const Fault& fault) {
    Say(absl::StrCat("rank ", fault.rank, ": ", fault.kind, "; ", group_->members().size(),
                     " ranks, ", clients_->num_open(), " streams"));
    report_.Count("fault " + fault.kind);
    clients_->NoteFault(fault.kind);
  }

  // No call is open, and no process has more than it should.
  bool Settle() {
    clients_->Pause();
    if (!clients_->WaitIdle(kIdleTime)) {
      report_.Fail(absl::StrCat(clients_->num_open(), " calls do not end"));
      return false;
    }
    const bool is_back = !restarts_ || WaitFor(
                                           [this] {
                                             group_->TakeBack();
                                             return group_->whole();
                                           },
                                           kReturnTime);
    if (!is_back) report_.Fail("lost ranks do not come back");
    if (restarts_ && is_back) report_.Count("groups that are whole again");
    const std::string left = group_->CheckLeftovers();
    if (!left.empty()) report_.Fail(left);
    return is_back && left.empty();
  }

  void KeepSilent() {
    const double before = group_->CpuSeconds();
    if (!Watch(absl::Now() + options_.silence)) return;
    const double cpus = (group_->CpuSeconds() - before) / absl::ToDoubleSeconds(options_.silence);
    Say(absl::StrCat("silence: ", cpus * 100, " % of a core"));
    // Of three processes together; each more has its heartbeats.
    const double limit = kSilentCpus * std::max<size_t>(1, group_->members().size() / 3);
    if (cpus > limit) report_.Fail(absl::StrCat("in silence ", cpus, " CPUs are used"));
    report_.Count("silences");
  }

  // A sequence for each rank, at once, that needs all of its blocks.
  void CheckPools() {
    const size_t count = group_->members().size();
    const std::unique_ptr<Client> client = Client::Connect(group_->address());
    std::vector<std::thread> threads;
    for (size_t i = 0; i < count; ++i) {
      threads.emplace_back([&] {
        const Generation got =
            Generate(*client, fill_.request, {.deadline = absl::Now() + kIdleTime});
        const std::string wrong =
            got.status.ok() ? DifferenceOf(got, fill_.want) : got.status.ToString();
        if (!wrong.empty()) report_.Fail("a request for all blocks of a rank: " + wrong);
        report_.Count("requests for all blocks of a rank");
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  // Under load again: rank 0 is told to end, or dies.
  void EndGroup() {
    clients_->Resume();
    if (report_.failures().empty()) Watch(absl::Now() + absl::Seconds(1));
    const bool dies = options_.faults == ChaosFaults::kAll && random_.Below(3) == 0;
    Say(dies ? "rank 0 is killed" : "rank 0 is to drain");
    clients_->SetExcuse(dies ? Excuse::kAll : Excuse::kNotStarted);
    report_.Count(dies ? "ends by the loss of rank 0" : "ends by draining");
    const std::string wrong = group_->End(dies ? SIGKILL : SIGTERM, kDrainTime);
    if (!wrong.empty()) report_.Fail(wrong);
    clients_->Pause();
    if (!clients_->WaitIdle(kIdleTime)) report_.Fail("calls outlive their group");
  }

  void Say(const std::string& what) const { std::fprintf(stderr, "chaos: %s\n", what.c_str()); }

  static constexpr absl::Duration kShortestPause = absl::Milliseconds(200);
  static constexpr absl::Duration kLongestGroup = absl::Minutes(2);

  const ChaosOptions& options_;
  ChaosReport& report_;
  Random random_;
  TempFolder model_;
  std::vector<Canary> canaries_;
  Canary fill_;
  absl::Time end_;
  int num_groups_ = 0;
  bool restarts_ = false;
  std::unique_ptr<ChaosGroup> group_;
  std::unique_ptr<FaultMaker> faults_;
  std::optional<ChaosClients> clients_;
};

}  // namespace

absl::Status RunChaos(const ChaosOptions& options, ChaosReport& report) {
  return ChaosRun(options, report).Run();
}

}  // namespace jevons
