// The other ranks of a group as processes that this one starts.
#pragma once

#include <sys/types.h>

#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "base/mutex.h"
#include "base/status.h"

namespace jevons {

// Used by one thread, but for Kill, and it must live as long as the ranks: they die with it.
class RankChildren {
 public:
  RankChildren() = default;
  RankChildren(const RankChildren&) = delete;
  RankChildren& operator=(const RankChildren&) = delete;
  ~RankChildren();  // gives them a moment to end by themselves, then kills them

  // This program once for each rank from 1 on, with the arguments that it has there, its own name
  // first. What it prints goes to stderr.
  absl::Status Start(int32_t num_ranks,
                     const std::function<std::vector<std::string>(int32_t rank)>& arguments_of);

  // OK, or which rank's process ended, and how. Until KeepStarted.
  absl::Status Ended();

  // From now on a process that ends is started again, unless it was told to end: it ended with 0.
  // After `pause`, which doubles up to five minutes while it does not live that long.
  void KeepStarted(absl::Duration pause);
  void StopStarting();

  // Ends the process of a rank at once. From any thread; nothing where it has ended, or is not here.
  void Kill(int32_t rank);

  // How long the destructor waits.
  void SetPatience(absl::Duration patience) { patience_ = patience; }

 private:
  struct Child {
    int32_t rank = 0;
    std::vector<std::string> arguments;
    pid_t pid = -1;  // -1: it has ended
    SteadyTime born = {};
    bool was_told = false;               // to end
    absl::Duration pause = {};           // before it is started again
    std::optional<SteadyTime> due = {};  // of that start
  };
  absl::Status StartLocked(Child& child) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void LookAfterLocked(Child& child) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Keep();

  Mutex mutex_;
  CondVar changed_;
  std::vector<Child> children_ ABSL_GUARDED_BY(mutex_);
  bool starts_ ABSL_GUARDED_BY(mutex_) = false;
  bool over_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Duration first_pause_;
  absl::Duration patience_ = absl::Seconds(10);
  std::thread keeper_;  // must outlive the processes that it has started
};

}  // namespace jevons
