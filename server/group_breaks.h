// The ends of groups whose ranks are all there: what is known of each, and what follows.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "engine/rank.h"
#include "server/rank_ways.h"

namespace jevons {

// Thread-safe.
class GroupBreaks {
 public:
  struct Verdict {
    absl::Status status;        // of the break
    std::vector<int32_t> lost;  // go first, so that the others come together
    bool is_final = false;      // no group comes together
  };

  // A lost rank is noticed, and then the group formed anew for it, within `silence`.
  explicit GroupBreaks(absl::Duration silence);

  // A group forms: what was known of those before does not count any more. After a rank was lost it is the
  // first attempt again.
  void Form(int64_t epoch, SteadyTime now);
  void LostRank();

  // A rank says so.
  void Note(int32_t by, const GroupBreak& seen, SteadyTime now);
  // Where the ranks of the group stand; see RankWays.
  void Look(std::span<const RankWays::Rank> ranks, SteadyTime now);
  // What was seen before a pause of this process may be long over.
  void Pause();

  // What is to be done now; each break is told once. The first in a row may have been a glitch: the same
  // ranks form another group. Then they do so without those that are not reached, and where it is not known
  // which these are, a third time. A group that lives for half a minute ends the row.
  std::optional<Verdict> Due(SteadyTime now);

 private:
  struct Break {
    SteadyTime due;
    absl::Status status;
    std::vector<Unreached> unreached;
  };

  const absl::Duration patience_;
  Mutex mutex_;
  int64_t epoch_ ABSL_GUARDED_BY(mutex_) = 0;
  SteadyTime formed_ ABSL_GUARDED_BY(mutex_);
  int num_attempts_ ABSL_GUARDED_BY(mutex_) = 0;
  std::optional<Break> break_ ABSL_GUARDED_BY(mutex_);
  RankWays ways_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace jevons
