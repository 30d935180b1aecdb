#include "client/interrupt.h"

#include <csignal>
#include <utility>

namespace jevons {
namespace {

sigset_t InterruptSet() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  return set;
}

}  // namespace

InterruptWatcher::InterruptWatcher() {
  const sigset_t set = InterruptSet();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  thread_ = std::thread([this] { Loop(); });
}

InterruptWatcher::~InterruptWatcher() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
  }
  pthread_kill(thread_.native_handle(), SIGINT);
  thread_.join();
  const sigset_t set = InterruptSet();
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

void InterruptWatcher::SetAction(std::function<void()> action) {
  MutexLock lock(&mutex_);
  action_ = std::move(action);
}

void InterruptWatcher::Loop() {
  const sigset_t set = InterruptSet();
  while (true) {
    int signal = 0;
    sigwait(&set, &signal);
    MutexLock lock(&mutex_);
    if (stopping_) return;
    if (action_) action_();
  }
}

}  // namespace jevons
