// SIGINT and SIGTERM as something to wait for.
#pragma once

#include "absl/time/time.h"

namespace jevons {

// Make one before threads are started: they inherit the blocked signals. One thread waits.
class StopSignals {
 public:
  StopSignals();

  // True if a signal came within `timeout`.
  bool Wait(absl::Duration timeout) const;
};

}  // namespace jevons
