// The simulator against what others have published: the same shape, machine and way to send.
#pragma once

#include <string>
#include <vector>

#include "bench/ep_sim_model.h"

namespace jevons::ep_sim {

struct Check {
  std::string group;  // kernel, exchange, step or ratio
  std::string name;
  std::string source;
  std::string unit;
  double published = 0;
  double predicted = 0;
  bool is_input = false;  // a rate of the simulator was taken from this very point

  double error() const { return predicted / published - 1; }
};

// INVALID_ARGUMENT or RESOURCE_EXHAUSTED where a published step does not fit the model of it.
absl::StatusOr<std::vector<Check>> PublishedChecks();

}  // namespace jevons::ep_sim
