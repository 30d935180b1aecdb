// Groups of ranks under random faults, with clients that know what they must be told.
#pragma once

#include <string>

#include "absl/time/time.h"
#include "base/status.h"
#include "tests/chaos/chaos_report.h"

namespace jevons {

class NetworkLab;

// kShortStops: what a group must not lose anything by. kAll: lost ranks too.
enum class ChaosFaults { kNone, kShortStops, kAll };

struct ChaosOptions {
  std::string binary;  // of jevons
  uint64_t seed = 1;   // of everything that is drawn; moments depend on the machine beside
  absl::Duration duration = absl::Seconds(20);
  int num_ranks = 8;
  int num_clients = 12;
  int num_canaries = 60;
  int max_losses = 6;  // in one group, which is then ended and made anew
  ChaosFaults faults = ChaosFaults::kAll;
  absl::Duration rank_timeout = absl::Seconds(3);
  absl::Duration mean_pause = absl::Seconds(4);    // between two faults
  absl::Duration silence = absl::ZeroDuration();   // of all clients, once in each group
  absl::Duration longest_gap = absl::Seconds(30);  // without a message of an open stream
  std::string log = {};                            // see ChaosGroupOptions
  NetworkLab* lab = nullptr;                       // with a host for each rank: networks fail too
};

// Runs groups, one after the other, for the duration; then each is ended as the last one is. What was
// promised and did not hold is in the report, as are counts and times. An error where a group could
// not be started.
absl::Status RunChaos(const ChaosOptions& options, ChaosReport& report);

}  // namespace jevons
