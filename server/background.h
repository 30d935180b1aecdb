// Work beside the thread that hears signals.
#pragma once

#include <atomic>
#include <functional>
#include <thread>
#include <utility>

namespace jevons {

// Runs `work` on a thread of its own; the destructor waits for it.
class Background {
 public:
  explicit Background(std::function<void()> work)
      : thread_([this, work = std::move(work)] {
          work();
          done_ = true;
        }) {}
  ~Background() { thread_.join(); }
  bool done() const { return done_; }

 private:
  std::atomic<bool> done_{false};
  std::thread thread_;
};

}  // namespace jevons
