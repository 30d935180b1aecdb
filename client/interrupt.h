// Turns Ctrl-C into a call on an ordinary thread, where everything is allowed.
#pragma once

#include <functional>
#include <thread>

#include "base/mutex.h"

namespace jevons {

// Thread-safe. Make one before other threads are started: they inherit the blocked signal.
class InterruptWatcher {
 public:
  InterruptWatcher();
  ~InterruptWatcher();  // SIGINT works as before

  // What SIGINT does from now on; empty: nothing. When it returns, the action before it is not
  // running.
  void SetAction(std::function<void()> action);

 private:
  void Loop();

  Mutex mutex_;
  std::function<void()> action_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace jevons
