#include "server/stream_pump.h"

#include <utility>

namespace jevons {

StreamPump::StreamPump()
    : queue_(std::make_shared<Queue>()), thread_([queue = queue_] { Loop(*queue); }) {}

StreamPump::~StreamPump() {
  {
    MutexLock lock(&queue_->mutex);
    queue_->stopping = true;
  }
  queue_->changed.NotifyAll();
  thread_.join();
}

std::function<void()> StreamPump::NoticeFor(std::weak_ptr<PumpTarget> target) {
  return [queue = queue_, target = std::move(target)] {
    {
      MutexLock lock(&queue->mutex);
      if (queue->stopping) return;
      queue->waiting.push_back(target);
    }
    queue->changed.NotifyOne();
  };
}

void StreamPump::Loop(Queue& queue) {
  std::deque<std::weak_ptr<PumpTarget>> taken;
  while (true) {
    {
      MutexLock lock(&queue.mutex);
      while (queue.waiting.empty() && !queue.stopping) queue.changed.Wait(&queue.mutex);
      if (queue.stopping) return;
      taken.swap(queue.waiting);
    }
    for (const std::weak_ptr<PumpTarget>& target : taken) {
      if (const std::shared_ptr<PumpTarget> alive = target.lock()) alive->Pump();
    }
    taken.clear();
  }
}

}  // namespace jevons
