// What is done to the ranks of a group.
#pragma once

#include <functional>
#include <string>

#include "base/random.h"
#include "tests/chaos/chaos.h"
#include "tests/chaos/chaos_group.h"

namespace jevons {

struct FaultOptions {
  ChaosFaults faults = ChaosFaults::kAll;
  int max_losses = 6;
  absl::Duration rank_timeout;
  NetworkLab* lab = nullptr;
};

struct Fault {
  std::string kind;
  int rank = 0;
};

// Draws faults. Used by one thread.
class FaultMaker {
 public:
  // `note` is called right after each one.
  FaultMaker(const FaultOptions& options, uint64_t seed, ChaosGroup* group,
             std::function<void(const Fault&)> note)
      : options_(options), random_(seed), group_(group), note_(std::move(note)) {}

  // The group has lost as many ranks as it is to lose.
  bool done() const;
  // Makes the next one, with all that belongs to it. `wait` lets a time pass, and returns false where
  // it should not go on.
  void Next(const std::function<bool(absl::Duration)>& wait);

 private:
  using Wait = std::function<bool(absl::Duration)>;

  int DrawMember();  // never rank 0
  absl::Duration DrawBelow(absl::Duration limit);
  absl::Duration LongStop();

  void Kill(const std::string& kind);
  void KillTwo(const Wait& wait);
  void StopLong(const Wait& wait);
  void StopShort(const Wait& wait, int rank);
  void CutShort(const Wait& wait);
  void CutLong();
  void Slow(const Wait& wait);

  const FaultOptions options_;
  Random random_;
  ChaosGroup* const group_;
  const std::function<void(const Fault&)> note_;
  int num_lost_ = 0;
};

}  // namespace jevons
