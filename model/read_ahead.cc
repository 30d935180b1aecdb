#include "model/read_ahead.h"

#include <algorithm>
#include <utility>

namespace jevons {
namespace {

// Reads that are under way at a time. They wait for the disk and take little of a core.
constexpr int kReaders = 8;

}  // namespace

ReadAhead::ReadAhead(const Checkpoint& checkpoint, std::vector<std::string> names)
    : checkpoint_(checkpoint), names_(std::move(names)) {
  for (int i = 0; i < kReaders; ++i) threads_.emplace_back([this] { Run(); });
}

ReadAhead::~ReadAhead() {
  {
    MutexLock lock(&mutex_);
    stopped_ = true;
  }
  changed_.NotifyAll();
  for (std::thread& thread : threads_) thread.join();
}

void ReadAhead::MoveTo(size_t begin, size_t end) {
  {
    MutexLock lock(&mutex_);
    next_ = std::max(next_, begin);
    end_ = std::min(end, names_.size());
  }
  changed_.NotifyAll();
}

void ReadAhead::Run() {
  while (true) {
    size_t mine = 0;
    {
      MutexLock lock(&mutex_);
      while (!stopped_ && next_ >= end_) changed_.Wait(&mutex_);
      if (stopped_) return;
      mine = next_++;
    }
    checkpoint_.Fetch(names_[mine]);
  }
}

}  // namespace jevons
