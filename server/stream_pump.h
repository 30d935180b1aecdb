// Moves "something can be written" from the engine thread to a thread that may write.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <thread>

#include "base/mutex.h"

namespace jevons {

// Something that writes when it is told that there is more.
class PumpTarget {
 public:
  virtual ~PumpTarget() = default;
  // Writes what it can without waiting. Called on the pump's thread.
  virtual void Pump() = 0;
};

// Thread-safe. One thread that pumps targets in the order of their notices. A target that is gone
// by its turn is skipped.
class StreamPump {
 public:
  StreamPump();
  ~StreamPump();  // notices that wait are dropped, later ones too

  // A callback that only enqueues a notice for `target`: for the engine thread. It may outlive the
  // pump.
  std::function<void()> NoticeFor(std::weak_ptr<PumpTarget> target);

 private:
  struct Queue {
    Mutex mutex;
    CondVar changed;
    std::deque<std::weak_ptr<PumpTarget>> waiting ABSL_GUARDED_BY(mutex);
    bool stopping ABSL_GUARDED_BY(mutex) = false;
  };
  static void Loop(Queue& queue);

  const std::shared_ptr<Queue> queue_;
  std::thread thread_;
};

}  // namespace jevons
