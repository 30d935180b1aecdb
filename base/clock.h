// Time as a dependency, so that tests can own it.
#pragma once

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/mutex.h"

namespace jevons {

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() const = 0;
};

class RealClock : public Clock {
 public:
  absl::Time Now() const override { return absl::Now(); }
};

// Stands still until told.
class FakeClock : public Clock {
 public:
  absl::Time Now() const override {
    MutexLock lock(&mutex_);
    return now_;
  }
  void Advance(absl::Duration d) {
    MutexLock lock(&mutex_);
    now_ += d;
  }

 private:
  mutable Mutex mutex_;
  absl::Time now_ ABSL_GUARDED_BY(mutex_) = absl::FromUnixSeconds(1'000'000'000);
};

}  // namespace jevons
