// Which ranks do not reach each other although rank 0 reaches them all, and who has to go for it.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "base/mutex.h"
#include "engine/engine.h"

namespace jevons {

// One rank says, or it can be seen of it, that another one does not come to it.
struct Unreached {
  int32_t by = 0;
  int32_t rank = 0;
  bool operator==(const Unreached&) const = default;
};

// The ranks to go on without, by number, so that no two are left that accuse each other: of a pair the
// one with the most pairs, and of equals the higher number. Where no two accuse each other, the one that
// most others accuse, of equals the higher number. Never rank 0: where one rank alone accuses it, that one
// goes; where several do, nobody. Depends on the set of accusations alone.
std::vector<int32_t> RanksToLose(std::span<const Unreached> accusations);

// Looks at where the ranks stand in their exchanges. Thread-compatible.
class RankWays {
 public:
  struct Rank {
    int32_t rank = 0;
    ExchangePlace place;  // as it said last
  };

  // Waits for what was sent that have lasted too long: longer than `patience`, in which what a rank says
  // of itself may be late, and than TCP takes to send again what was lost, or to send many rows.
  // `ranks` are of one group; Forget follows with the next one.
  std::vector<Unreached> Look(std::span<const Rank> ranks, SteadyTime now, absl::Duration patience);
  void Forget() { waits_.clear(); }

 private:
  struct Wait {
    int64_t position = 0;
    SteadyTime since;
  };
  std::map<std::pair<int32_t, int32_t>, Wait> waits_;  // by who waits, and for whom
};

}  // namespace jevons
