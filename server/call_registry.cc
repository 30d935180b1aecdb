#include "server/call_registry.h"

#include <vector>

#include "server/generate_reactor.h"

namespace jevons {

void CallRegistry::Add(const std::shared_ptr<GenerateReactor>& call) {
  absl::Status abort;
  {
    MutexLock lock(&mutex_);
    calls_.emplace(call.get(), call);
    abort = abort_;
  }
  if (!abort.ok()) call->Abort(std::move(abort));
}

void CallRegistry::Remove(const GenerateReactor* call) {
  MutexLock lock(&mutex_);
  calls_.erase(call);
  if (calls_.empty()) changed_.NotifyAll();
}

void CallRegistry::AbortAll(const absl::Status& status) {
  std::vector<std::shared_ptr<GenerateReactor>> open;
  {
    MutexLock lock(&mutex_);
    abort_ = status;
    for (const auto& [key, call] : calls_) open.push_back(call.lock());
  }
  // Outside the lock: a call that ends removes itself.
  for (const auto& call : open) {
    if (call != nullptr) call->Abort(status);
  }
}

bool CallRegistry::WaitEmpty(absl::Duration timeout) {
  const SteadyTime deadline = SteadyDeadline(timeout);
  MutexLock lock(&mutex_);
  while (!calls_.empty()) {
    if (!changed_.WaitUntil(&mutex_, deadline)) return calls_.empty();
  }
  return true;
}

}  // namespace jevons
