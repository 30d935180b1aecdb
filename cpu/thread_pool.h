// Threads that run one loop at a time, for the CPU backend.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"

namespace jevons {

// Used by one thread at a time; that thread works too, so `num_threads` 1 starts none.
class ThreadPool {
 public:
  explicit ThreadPool(int num_threads);
  ~ThreadPool();

  int num_threads() const { return num_threads_; }

  // Calls fn(task, thread) once for each task in [0, num_tasks), thread in [0, num_threads), and
  // returns when all are done. Which thread gets which task is open; tasks are handed out in rising
  // order.
  void ParallelFor(int64_t num_tasks, absl::FunctionRef<void(int64_t task, int thread)> fn);

 private:
  struct State;
  int num_threads_;
  std::unique_ptr<State> state_;
};

}  // namespace jevons
