// A communicator that misbehaves as planned, for tests of what stands on top.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "parallel/communicator.h"

namespace jevons {

enum class FaultKind {
  kDelay,    // sleeps before the call
  kDrop,     // does not take part, in this call or a later one, and returns when aborted
  kCorrupt,  // after the call one bit of what arrived is another
  kKill,     // runs FaultPlan::kill before the call
};

struct Fault {
  FaultKind kind = FaultKind::kDelay;
  int64_t call_number = 0;   // from 1; 0: each call, with `probability`
  double probability = 1.0;  // [0, 1]
  absl::Duration delay = absl::Milliseconds(10);
};

struct FaultPlan {
  uint64_t seed = 0;  // the same seed and calls give the same faults
  std::vector<Fault> faults = {};
  std::function<void()> kill = {};
};

// Data in host memory alone. The halves of an exchange are one call, whose faults come with Start, a bit
// that changes with Finish.
std::unique_ptr<Communicator> CreateFaultyCommunicator(std::unique_ptr<Communicator> inner,
                                                       FaultPlan plan);

}  // namespace jevons
