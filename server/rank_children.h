// The other ranks of a group as processes that this one starts.
#pragma once

#include <sys/types.h>

#include <string>
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

  // OK, or which rank's process ended, and how.
  absl::Status Ended();

  // Ends the process of a rank at once. From any thread; nothing where it has ended, or is not here.
  void Kill(int32_t rank);

  // How long the destructor waits.
  void SetPatience(absl::Duration patience) { patience_ = patience; }

 private:
  struct Child {
    int32_t rank = 0;
    pid_t pid = -1;  // -1: it has ended
  };
  Mutex mutex_;
  std::vector<Child> children_ ABSL_GUARDED_BY(mutex_);
  absl::Duration patience_ = absl::Seconds(10);
};

}  // namespace jevons
