// The Generate calls that are open, so that a stopping server can wait for them or end them.
#pragma once

#include <cstdint>
#include <map>
#include <memory>

#include "base/mutex.h"
#include "base/status.h"

namespace jevons {

class GenerateReactor;

// Thread-safe.
class CallRegistry {
 public:
  // Returns the call's number, for Remove.
  uint64_t Add(const std::shared_ptr<GenerateReactor>& call);
  void Remove(uint64_t number);

  // Ends every open call with `status`, and every later one as soon as it is added.
  void AbortAll(const absl::Status& status);
  // Waits until the calls that are open now have ended, however many come meanwhile. False if some are
  // still open after `timeout`.
  bool WaitOpen(absl::Duration timeout);

 private:
  Mutex mutex_;
  CondVar changed_;
  // By number, rising.
  std::map<uint64_t, std::weak_ptr<GenerateReactor>> calls_ ABSL_GUARDED_BY(mutex_);
  uint64_t last_number_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status abort_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace jevons
