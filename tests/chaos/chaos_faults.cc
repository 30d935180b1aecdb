#include "tests/chaos/chaos_faults.h"

#include <algorithm>
#include <csignal>

namespace jevons {
namespace {

// Of the timeout of a rank: a stop this long is no loss, with room for heartbeats that are late.
constexpr double kShortStop = 0.4;
// A rank that forms a group with the others may be silent for so long, whatever the timeout.
constexpr absl::Duration kReadingTime = absl::Seconds(10);
// Beside these: certainly a loss.
constexpr absl::Duration kSurely = absl::Seconds(2);

}  // namespace

bool FaultMaker::done() const {
  return num_lost_ >= options_.max_losses || group_->members().size() < 2;
}

void FaultMaker::Next(const Wait& wait) {
  const bool all = options_.faults == ChaosFaults::kAll;
  if (options_.faults == ChaosFaults::kNone) return;
  if (options_.lab != nullptr && random_.Below(2) == 0) {
    const int64_t kind = random_.Below(all ? 3 : 2);
    return kind == 0 ? Slow(wait) : kind == 1 ? CutShort(wait) : CutLong();
  }
  switch (random_.Below(all ? 6 : 2)) {
    case 0:
      return StopShort(wait, 0);
    case 1:
      return StopShort(wait, DrawMember());
    case 2:
      return StopLong(wait);
    case 3:
      return KillTwo(wait);
    default:
      return Kill("kill");
  }
}

int FaultMaker::DrawMember() {
  const auto& members = group_->members();
  return members[1 + random_.Below(static_cast<int64_t>(members.size()) - 1)];
}

absl::Duration FaultMaker::DrawBelow(absl::Duration limit) { return limit * random_.Uniform(); }

absl::Duration FaultMaker::LongStop() {
  return std::max(options_.rank_timeout, kReadingTime) + kSurely + DrawBelow(kSurely);
}

void FaultMaker::Kill(const std::string& kind) {
  const int rank = DrawMember();
  group_->ExpectLoss(rank);
  group_->Signal(rank, SIGKILL);
  ++num_lost_;
  note_({kind, rank});
}

// At the same time, or the second one while the others mend.
void FaultMaker::KillTwo(const Wait& wait) {
  Kill("first of two");
  if (done() || !wait(DrawBelow(absl::Seconds(1)))) return;
  Kill("second of two");
}

void FaultMaker::StopLong(const Wait& wait) {
  const int rank = DrawMember();
  group_->ExpectLoss(rank);
  group_->Signal(rank, SIGSTOP);
  ++num_lost_;
  note_({"long stop", rank});
  wait(LongStop());
  group_->Signal(rank, SIGCONT);
}

void FaultMaker::StopShort(const Wait& wait, int rank) {
  group_->Signal(rank, SIGSTOP);
  note_({rank == 0 ? "short stop of 0" : "short stop", rank});
  wait(DrawBelow(options_.rank_timeout * kShortStop));
  group_->Signal(rank, SIGCONT);
}

void FaultMaker::CutShort(const Wait& wait) {
  const int rank = DrawMember();
  options_.lab->SetHost(rank, {.loss = 1});
  note_({"short cut", rank});
  wait(DrawBelow(options_.rank_timeout * kShortStop));
  std::vector<int> hosts = group_->members();
  hosts.push_back(options_.lab->own_host());
  options_.lab->SetBetween(hosts, {});
}

void FaultMaker::CutLong() {
  const int rank = DrawMember();
  group_->ExpectLoss(rank);
  options_.lab->SetHost(rank, {.loss = 1});
  ++num_lost_;
  note_({"cut", rank});
}

void FaultMaker::Slow(const Wait& wait) {
  options_.lab->SetBetween(group_->members(), {.delay = DrawBelow(absl::Milliseconds(10)),
                                               .loss = 0.02 * random_.Uniform()});
  note_({"slow network", 0});
  wait(absl::Seconds(1) + DrawBelow(absl::Seconds(4)));
  options_.lab->SetBetween(group_->members(), {});
}

}  // namespace jevons
