// How the server is, for probes: nothing here asks a model or waits for an engine.
#pragma once

#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "base/mutex.h"
#include "engine/engine.h"
#include "grpcpp/health_check_service_interface.h"

namespace jevons {

struct Health {
  struct Rank {
    RankStats known;
    bool progresses = true;
  };

  bool ready = false;       // requests are taken
  bool progresses = false;  // every rank that has work makes steps
  std::string reason;       // why not; empty if both
  std::vector<Rank> ranks;
};

// Thread-safe.
class HealthMonitor {
 public:
  // A rank with work that has made no step for `stall_time` does not progress. `engine` outlives it.
  HealthMonitor(const Engine* engine, absl::Duration stall_time)
      : engine_(engine), stall_time_(stall_time) {}
  ~HealthMonitor();

  Health Look() const;

  // Tells gRPC's health service from now on, ten times a second: `live` always serves, `progress` while
  // ranks progress, `ready`, the whole server and the inference service while requests are taken. Call
  // once; `service` lives as long as this object.
  void Publish(grpc::HealthCheckServiceInterface* service);
  // No more requests are taken, and health says so when this returns.
  void SetDraining();

 private:
  struct Told {
    bool ready = false;
    bool progresses = false;
    bool operator==(const Told&) const = default;
  };

  void Loop();
  void Tell();

  const Engine* const engine_;
  const absl::Duration stall_time_;
  Mutex tell_mutex_ ABSL_ACQUIRED_BEFORE(mutex_);
  grpc::HealthCheckServiceInterface* service_ ABSL_GUARDED_BY(tell_mutex_) = nullptr;
  std::optional<Told> told_ ABSL_GUARDED_BY(tell_mutex_);
  mutable Mutex mutex_;
  CondVar changed_;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool over_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace jevons
