// The Generate calls that are open, so that a stopping server can wait for them or end them.
#pragma once

#include <memory>
#include <unordered_map>

#include "base/mutex.h"
#include "base/status.h"

namespace jevons {

class GenerateReactor;

// Thread-safe.
class CallRegistry {
 public:
  void Add(const std::shared_ptr<GenerateReactor>& call);
  void Remove(const GenerateReactor* call);

  // Ends every open call with `status`, and every later one as soon as it is added.
  void AbortAll(const absl::Status& status);
  // False if calls are still open after `timeout`.
  bool WaitEmpty(absl::Duration timeout);

 private:
  Mutex mutex_;
  CondVar changed_;
  std::unordered_map<const GenerateReactor*, std::weak_ptr<GenerateReactor>> calls_
      ABSL_GUARDED_BY(mutex_);
  absl::Status abort_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace jevons
