#include "server/call_registry.h"

#include <vector>

#include "server/generate_reactor.h"

namespace jevons {

uint64_t CallRegistry::Add(const std::shared_ptr<GenerateReactor>& call) {
  absl::Status abort;
  uint64_t number = 0;
  {
    MutexLock lock(&mutex_);
    number = ++last_number_;
    calls_.emplace(number, call);
    abort = abort_;
  }
  if (!abort.ok()) call->Abort(std::move(abort));
  return number;
}

void CallRegistry::Remove(uint64_t number) {
  MutexLock lock(&mutex_);
  calls_.erase(number);
  changed_.NotifyAll();
}

void CallRegistry::AbortAll(const absl::Status& status) {
  std::vector<std::shared_ptr<GenerateReactor>> open;
  {
    MutexLock lock(&mutex_);
    abort_ = status;
    for (const auto& [number, call] : calls_) open.push_back(call.lock());
  }
  // Outside the lock: a call that ends removes itself.
  for (const auto& call : open) {
    if (call != nullptr) call->Abort(status);
  }
}

bool CallRegistry::WaitOpen(absl::Duration timeout) {
  const SteadyTime deadline = SteadyDeadline(timeout);
  MutexLock lock(&mutex_);
  const uint64_t last = last_number_;
  const auto open = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !calls_.empty() && calls_.begin()->first <= last;
  };
  while (open()) {
    if (!changed_.WaitUntil(&mutex_, deadline)) return !open();
  }
  return true;
}

}  // namespace jevons
