// Reads of a checkpoint that are made before a loader wants them.
#pragma once

#include <string>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "model/checkpoint.h"

namespace jevons {

// Fetches tensors on threads of its own, several at a time: a disk is fast when many reads are under
// way, and one who copies from mapped memory waits for one page after the other.
class ReadAhead {
 public:
  // `names`: tensors in the order in which they will be wanted. `checkpoint` outlives it.
  ReadAhead(const Checkpoint& checkpoint, std::vector<std::string> names);
  // Waits for the fetches that are under way.
  ~ReadAhead();
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;

  // From now on names[begin, end) are wanted: those before are not fetched any more, those behind not
  // yet. Both only grow. Waits for nothing.
  void MoveTo(size_t begin, size_t end);

 private:
  void Run();

  const Checkpoint& checkpoint_;
  const std::vector<std::string> names_;
  Mutex mutex_;
  CondVar changed_;
  size_t next_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t end_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace jevons
