// What the scheduler knows of a request. Immutable once submitted.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/time/time.h"

namespace jevons {

enum class FinishReason { kNone, kStop, kLength, kToolCalls, kCancelled, kDeadline, kError };

struct Request {
  uint64_t id = 0;
  std::vector<int32_t> prompt_ids = {};  // at least one
  int32_t max_new_tokens = 0;            // at least one
  absl::Time deadline = absl::InfiniteFuture();
  // kNone: every prompt token is computed, because something is wanted of each.
  enum class Reuse { kPrefix, kNone };
  Reuse reuse = Reuse::kPrefix;
  uint64_t cache_salt = 0;  // prefixes are shared between equal ones alone
};

}  // namespace jevons
