#include "server/work_thread.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace jevons {

WorkThread::WorkThread(size_t max_waiting)
    : max_waiting_(max_waiting), thread_([this] { Loop(); }) {}

WorkThread::~WorkThread() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
  }
  changed_.NotifyAll();
  thread_.join();
}

absl::Status WorkThread::Post(std::function<void()> job) {
  {
    MutexLock lock(&mutex_);
    if (waiting_.size() >= max_waiting_) {
      return absl::ResourceExhaustedError(
          absl::StrCat(waiting_.size(), " large requests wait to be tokenised, the limit is ",
                       max_waiting_, "; try again later"));
    }
    waiting_.push_back(std::move(job));
  }
  changed_.NotifyOne();
  return absl::OkStatus();
}

void WorkThread::Loop() {
  while (true) {
    std::function<void()> job;
    {
      MutexLock lock(&mutex_);
      while (waiting_.empty() && !stopping_) changed_.Wait(&mutex_);
      if (waiting_.empty()) return;
      job = std::move(waiting_.front());
      waiting_.pop_front();
    }
    job();
  }
}

}  // namespace jevons
