#include "parallel/background_call.h"

#include "base/check.h"

namespace jevons {

BackgroundCall::~BackgroundCall() {
  if (!thread_.joinable()) return;
  {
    MutexLock lock(&mutex_);
    while (state_ == State::kRuns) changed_.Wait(&mutex_);
    state_ = State::kEnds;
    changed_.NotifyAll();
  }
  thread_.join();
}

void BackgroundCall::Start() {
  if (!thread_.joinable()) thread_ = std::thread([this] { Loop(); });
  MutexLock lock(&mutex_);
  CHECK(state_ == State::kIdle);
  state_ = State::kRuns;
  changed_.NotifyAll();
}

absl::Status BackgroundCall::Finish() {
  MutexLock lock(&mutex_);
  CHECK(state_ == State::kRuns || state_ == State::kDone);
  while (state_ == State::kRuns) changed_.Wait(&mutex_);
  state_ = State::kIdle;
  return result_;
}

void BackgroundCall::Loop() {
  while (true) {
    {
      MutexLock lock(&mutex_);
      while (state_ == State::kIdle || state_ == State::kDone) changed_.Wait(&mutex_);
      if (state_ == State::kEnds) return;
    }
    absl::Status result = call_();
    MutexLock lock(&mutex_);
    result_ = std::move(result);
    state_ = State::kDone;
    changed_.NotifyAll();
  }
}

}  // namespace jevons
