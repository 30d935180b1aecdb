#include "server/group_breaks.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace jevons {
namespace {

constexpr int kMostAttempts = 3;
constexpr absl::Duration kMargin = absl::Milliseconds(300);
constexpr absl::Duration kLongest = absl::Seconds(10);  // of a silence that is waited for
constexpr absl::Duration kHealthy = absl::Seconds(30);

}  // namespace

GroupBreaks::GroupBreaks(absl::Duration silence)
    : patience_(std::min(silence, kLongest) + kMargin) {}

void GroupBreaks::Form(int64_t epoch, SteadyTime now) {
  MutexLock lock(&mutex_);
  epoch_ = epoch;
  formed_ = now;
  break_.reset();
  ways_.Forget();
}

void GroupBreaks::LostRank() {
  MutexLock lock(&mutex_);
  num_attempts_ = 0;
}

void GroupBreaks::Note(int32_t by, const GroupBreak& seen, SteadyTime now) {
  MutexLock lock(&mutex_);
  if (seen.epoch != epoch_) return;
  if (!break_) {
    break_ = {
        .due = now + absl::ToChronoNanoseconds(patience_), .status = seen.status, .unreached = {}};
  }
  for (int32_t rank : seen.unreached) break_->unreached.push_back({.by = by, .rank = rank});
}

void GroupBreaks::Look(std::span<const RankWays::Rank> ranks, SteadyTime now) {
  MutexLock lock(&mutex_);
  std::vector<Unreached> cut = ways_.Look(ranks, now, patience_);
  if (cut.empty()) return;
  const absl::Status status = absl::UnavailableError(
      absl::StrCat("what rank ", cut[0].rank, " sends does not arrive at rank ", cut[0].by));
  break_ = {.due = now, .status = status, .unreached = std::move(cut)};
}

void GroupBreaks::Pause() {
  MutexLock lock(&mutex_);
  ways_.Forget();
}

std::optional<GroupBreaks::Verdict> GroupBreaks::Due(SteadyTime now) {
  MutexLock lock(&mutex_);
  if (!break_ || now < break_->due) return std::nullopt;
  const Break due = *std::exchange(break_, std::nullopt);
  if (now - formed_ > absl::ToChronoNanoseconds(kHealthy)) num_attempts_ = 0;
  Verdict out = {.status = due.status, .lost = {}};
  if (++num_attempts_ > 1) out.lost = RanksToLose(due.unreached);
  if (out.lost.empty() && num_attempts_ > kMostAttempts) {
    out.status = absl::UnavailableError(absl::StrCat("no group could be formed in ", kMostAttempts,
                                                     " attempts: ", due.status.message()));
    out.is_final = true;
  }
  return out;
}

}  // namespace jevons
