// An engine with everything that it needs around it: in this process alone, or a group of processes.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "engine/engine.h"
#include "server/rank_place.h"

namespace jevons {

// How the ranks of a group of processes find each other, and how long they wait.
struct GroupOptions {
  RankPlace place;
  std::string version;
  std::vector<std::string> arguments;  // of this process, for those that it starts
  absl::Duration join_timeout = absl::Seconds(30);
  absl::Duration load_timeout = absl::Minutes(30);
  absl::Duration silence = absl::Milliseconds(900);  // after which a rank is lost
  // After which a lost rank that this process had started is started again; 0: never.
  absl::Duration restart_pause = absl::ZeroDuration();
};

// Used by one thread, which must live as long as the engine: processes that it starts die with it.
class EngineHost {
 public:
  virtual ~EngineHost() = default;  // the engine drains with no patience, and the processes end

  // Loads on a thread of its own. `wait` is called again and again meanwhile; it should return within
  // a tenth of a second, and may end the process. Errors of Engine::Create; with transport processes
  // also those of a group that does not come together: who is missing, who does not fit, whose process
  // ended.
  static absl::StatusOr<std::unique_ptr<EngineHost>> Create(const EngineOptions& options,
                                                            const GroupOptions& group,
                                                            const Clock* clock,
                                                            const std::function<void()>& wait);

  virtual Engine& engine() = 0;
};

}  // namespace jevons
