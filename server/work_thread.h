// A thread for requests whose preparation takes longer than a gRPC thread may be held.
#pragma once

#include <deque>
#include <functional>
#include <thread>

#include "base/mutex.h"
#include "base/status.h"

namespace jevons {

// Thread-safe. Runs jobs one after the other.
class WorkThread {
 public:
  // `max_waiting` jobs may wait; one more is refused.
  explicit WorkThread(size_t max_waiting);
  ~WorkThread();  // runs what waits, then joins

  // RESOURCE_EXHAUSTED with the limit where too many wait; the job then never runs.
  absl::Status Post(std::function<void()> job);

 private:
  void Loop();

  const size_t max_waiting_;
  Mutex mutex_;
  CondVar changed_;
  std::deque<std::function<void()>> waiting_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace jevons
