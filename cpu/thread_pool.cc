#include "cpu/thread_pool.h"

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/mutex.h"

namespace jevons {
namespace {

// How long an idle worker looks for the next loop before it sleeps: longer than the gap between two
// ops of one step, short enough that an idle server burns nothing.
constexpr std::chrono::microseconds kSpin(50);
constexpr int kPausesPerClockRead = 64;
// A worker may have lost its CPU in the middle of a task: the caller then gives way.
constexpr int kPausesBeforeYield = 4096;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

// The gate: loop number << 32 | open << 31 | workers inside.
constexpr uint64_t kOpen = uint64_t{1} << 31;
constexpr uint64_t kInside = kOpen - 1;
constexpr uint64_t kNextLoop = uint64_t{1} << 32;

}  // namespace

struct ThreadPool::State {
  using Fn = absl::FunctionRef<void(int64_t, int)>;

  // A worker that has entered through the open gate may read `fn` and `num_tasks`; the caller
  // changes them only when the gate is shut and nobody is inside. So a worker that wakes late costs
  // the caller nothing.
  alignas(64) std::atomic<uint64_t> gate{0};
  alignas(64) std::atomic<int64_t> next_task{0};
  alignas(64) const Fn* fn = nullptr;
  int64_t num_tasks = 0;

  std::atomic<bool> stop{false};
  std::atomic<int> num_sleeping{0};
  Mutex mutex;
  CondVar wake;
  std::vector<std::thread> workers;

  bool Changed(uint64_t loop) const { return gate.load() / kNextLoop != loop || stop.load(); }

  void Work(int thread) {
    for (int64_t task = next_task.fetch_add(1, std::memory_order_relaxed); task < num_tasks;
         task = next_task.fetch_add(1, std::memory_order_relaxed)) {
      (*fn)(task, thread);
    }
  }

  // False if the gate is shut.
  bool Enter() {
    uint64_t seen = gate.load();
    while (seen & kOpen) {
      if (gate.compare_exchange_weak(seen, seen + 1)) return true;
    }
    return false;
  }

  // Returns when a loop other than `loop` has been announced.
  void WaitForChange(uint64_t loop) {
    const auto deadline = std::chrono::steady_clock::now() + kSpin;
    do {
      for (int i = 0; i < kPausesPerClockRead; ++i) {
        if (Changed(loop)) return;
        Pause();
      }
    } while (std::chrono::steady_clock::now() < deadline);

    MutexLock lock(&mutex);
    num_sleeping.fetch_add(1);
    while (!Changed(loop)) wake.Wait(&mutex);
    num_sleeping.fetch_sub(1);
  }

  void WorkerLoop(int thread) {
    uint64_t loop = 0;
    while (true) {
      WaitForChange(loop);
      if (stop.load()) return;
      loop = gate.load() / kNextLoop;
      if (!Enter()) continue;
      Work(thread);
      gate.fetch_sub(1);
    }
  }

  // The announcement comes first and the look at the sleepers after it; a worker does it the other
  // way round. So one of the two sees the other.
  void WakeSleepers() {
    if (num_sleeping.load() == 0) return;
    MutexLock lock(&mutex);
    wake.NotifyAll();
  }

  void ShutGate() {
    gate.fetch_and(~kOpen);
    for (int pauses = 0; gate.load() & kInside; ++pauses) {
      if (pauses < kPausesBeforeYield) {
        Pause();
      } else {
        std::this_thread::yield();
      }
    }
  }
};

ThreadPool::ThreadPool(int num_threads)
    : num_threads_(num_threads), state_(std::make_unique<State>()) {
  CHECK(num_threads >= 1);
  for (int i = 1; i < num_threads; ++i) {
    state_->workers.emplace_back([state = state_.get(), i] { state->WorkerLoop(i); });
  }
}

ThreadPool::~ThreadPool() {
  state_->stop.store(true);
  state_->WakeSleepers();
  for (std::thread& worker : state_->workers) worker.join();
}

void ThreadPool::ParallelFor(int64_t num_tasks,
                             absl::FunctionRef<void(int64_t task, int thread)> fn) {
  if (num_threads_ == 1 || num_tasks <= 1) {
    for (int64_t task = 0; task < num_tasks; ++task) fn(task, 0);
    return;
  }
  State& state = *state_;
  state.fn = &fn;
  state.num_tasks = num_tasks;
  state.next_task.store(0, std::memory_order_relaxed);
  state.gate.store((state.gate.load() / kNextLoop + 1) * kNextLoop | kOpen);
  state.WakeSleepers();
  state.Work(0);
  state.ShutGate();
}

}  // namespace jevons
