// What a chaos run has seen.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "base/mutex.h"

namespace jevons {

// Thread-safe.
class ChaosReport {
 public:
  // Something that was promised and did not hold.
  void Fail(const std::string& what);
  void Count(const std::string& what, int64_t count = 1);
  // The longest time without a message after a fault, of a stream that was open then.
  void AddGap(const std::string& fault, absl::Duration gap);

  std::vector<std::string> failures() const;
  int64_t count(const std::string& what) const;
  // The largest of all faults, or of those of one kind.
  absl::Duration MaxGap(const std::string& fault) const;
  // Counts and gaps, a line each.
  std::string Summary() const;
  // The same as one JSON object.
  std::string Json() const;

 private:
  mutable Mutex mutex_;
  std::vector<std::string> failures_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, int64_t> counts_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::vector<absl::Duration>> gaps_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace jevons
