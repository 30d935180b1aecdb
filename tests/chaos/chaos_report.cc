#include "tests/chaos/chaos_report.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

namespace jevons {
namespace {

constexpr size_t kMaxFailures = 50;  // the first ones say it

int64_t Quantile(std::vector<absl::Duration> gaps, double fraction) {
  if (gaps.empty()) return 0;
  const size_t at = std::min(gaps.size() - 1, static_cast<size_t>(fraction * gaps.size()));
  std::nth_element(gaps.begin(), gaps.begin() + at, gaps.end());
  return absl::ToInt64Milliseconds(gaps[at]);
}

}  // namespace

void ChaosReport::Fail(const std::string& what) {
  MutexLock lock(&mutex_);
  ++counts_["failures"];
  if (failures_.size() >= kMaxFailures) return;
  failures_.push_back(what);
  std::fprintf(stderr, "chaos: FAILED %s\n", what.c_str());
}

void ChaosReport::Count(const std::string& what, int64_t count) {
  MutexLock lock(&mutex_);
  counts_[what] += count;
}

void ChaosReport::AddGap(const std::string& fault, absl::Duration gap) {
  MutexLock lock(&mutex_);
  gaps_[fault].push_back(gap);
}

std::vector<std::string> ChaosReport::failures() const {
  MutexLock lock(&mutex_);
  return failures_;
}

int64_t ChaosReport::count(const std::string& what) const {
  MutexLock lock(&mutex_);
  const auto found = counts_.find(what);
  return found == counts_.end() ? 0 : found->second;
}

absl::Duration ChaosReport::MaxGap(const std::string& fault) const {
  MutexLock lock(&mutex_);
  const auto found = gaps_.find(fault);
  if (found == gaps_.end()) return absl::ZeroDuration();
  return *std::max_element(found->second.begin(), found->second.end());
}

std::string ChaosReport::Summary() const {
  MutexLock lock(&mutex_);
  std::string out;
  for (const auto& [what, count] : counts_) absl::StrAppendFormat(&out, "%8d  %s\n", count, what);
  absl::StrAppend(&out, "longest time without a message after a fault, of each open stream, ms:\n");
  for (const auto& [fault, gaps] : gaps_) {
    absl::StrAppendFormat(&out, "%12s  n %5d  p50 %6d  p99 %6d  max %6d\n", fault, gaps.size(),
                          Quantile(gaps, 0.5), Quantile(gaps, 0.99), Quantile(gaps, 1));
  }
  for (const std::string& failure : failures_) absl::StrAppend(&out, "FAILED  ", failure, "\n");
  return out;
}

std::string ChaosReport::Json() const {
  MutexLock lock(&mutex_);
  nlohmann::ordered_json out;
  for (const auto& [what, count] : counts_) out["counts"][what] = count;
  for (const auto& [fault, gaps] : gaps_) {
    out["gap_ms"][fault] = {{"streams", gaps.size()},
                            {"p50", Quantile(gaps, 0.5)},
                            {"p99", Quantile(gaps, 0.99)},
                            {"max", Quantile(gaps, 1)}};
  }
  out["failures"] = failures_;
  return out.dump();
}

}  // namespace jevons
