#include "server/health_monitor.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace jevons {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(100);
constexpr char kLive[] = "live";
constexpr char kReady[] = "ready";
constexpr char kProgress[] = "progress";
constexpr char kInference[] = "jevons.v1.Inference";

// The ranks that stand still, those first that wait for no other one: it is theirs.
std::string StallText(const std::vector<Health::Rank>& ranks) {
  std::vector<std::string> parts;
  for (const bool waits : {false, true}) {
    for (const Health::Rank& rank : ranks) {
      const EngineStats& stats = rank.known.stats;
      if (rank.progresses || (stats.place.waits_for >= 0) != waits) continue;
      std::string part =
          absl::StrCat("rank ", rank.known.rank, " has work and has made no step for ",
                       absl::FormatDuration(absl::Trunc(stats.step_age, absl::Milliseconds(1))));
      if (waits) absl::StrAppend(&part, ", waiting for rank ", stats.place.waits_for);
      parts.push_back(std::move(part));
    }
  }
  return absl::StrJoin(parts, "; ");
}

}  // namespace

HealthMonitor::~HealthMonitor() {
  {
    MutexLock lock(&mutex_);
    over_ = true;
    changed_.NotifyAll();
  }
  if (thread_.joinable()) thread_.join();
}

Health HealthMonitor::Look() const {
  bool draining = false;
  {
    MutexLock lock(&mutex_);
    draining = draining_;
  }
  Health out;
  const int64_t limit = engine_->options().max_queued_requests;
  int64_t shortest_queue = limit;
  for (RankStats& known : engine_->rank_stats()) {
    const bool lost = !known.failure.ok();
    if (!lost) shortest_queue = std::min(shortest_queue, known.stats.num_queued);
    const bool progresses = lost || known.stats.step_age < stall_time_;
    out.ranks.push_back({.known = std::move(known), .progresses = progresses});
  }
  const absl::Status failure = engine_->failure();
  out.reason = failure.ok() ? StallText(out.ranks) : std::string(failure.message());
  out.progresses = out.reason.empty();
  if (!out.progresses) return out;
  if (draining) {
    out.reason = "the server is shutting down";
  } else if (shortest_queue >= limit) {
    out.reason = absl::StrCat("the queue is full: the limit is ", limit, " requests");
  }
  out.ready = out.reason.empty();
  return out;
}

void HealthMonitor::Publish(grpc::HealthCheckServiceInterface* service) {
  {
    MutexLock lock(&tell_mutex_);
    service_ = service;
  }
  if (service == nullptr) return;
  service->SetServingStatus(kLive, true);
  Tell();
  thread_ = std::thread([this] { Loop(); });
}

void HealthMonitor::SetDraining() {
  {
    MutexLock lock(&mutex_);
    draining_ = true;
  }
  Tell();
}

void HealthMonitor::Loop() {
  while (true) {
    Tell();
    const SteadyTime next = SteadyDeadline(kTick);
    MutexLock lock(&mutex_);
    while (!over_ && changed_.WaitUntil(&mutex_, next)) {
    }
    if (over_) return;
  }
}

// What is said again would be sent to watchers again.
void HealthMonitor::Tell() {
  MutexLock lock(&tell_mutex_);
  if (service_ == nullptr) return;
  const Health health = Look();
  const Told now = {.ready = health.ready, .progresses = health.progresses};
  if (told_ == now) return;
  told_ = now;
  service_->SetServingStatus(kProgress, now.progresses);
  for (const char* name : {"", kReady, kInference}) service_->SetServingStatus(name, now.ready);
}

}  // namespace jevons
