// One call beside the thread that makes it.
#pragma once

#include <functional>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "base/mutex.h"
#include "base/status.h"

namespace jevons {

// Used by one thread. Its own thread is there from the first Start on, and sleeps between calls.
class BackgroundCall {
 public:
  explicit BackgroundCall(std::function<absl::Status()> call) : call_(std::move(call)) {}
  // Waits for a call that runs.
  ~BackgroundCall();
  BackgroundCall(const BackgroundCall&) = delete;
  BackgroundCall& operator=(const BackgroundCall&) = delete;

  // To be followed by one Finish, which waits for the call.
  void Start();
  absl::Status Finish();

 private:
  enum class State { kIdle, kRuns, kDone, kEnds };

  void Loop();

  const std::function<absl::Status()> call_;
  std::thread thread_;
  Mutex mutex_;
  CondVar changed_;
  State state_ ABSL_GUARDED_BY(mutex_) = State::kIdle;
  absl::Status result_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace jevons
