// A checkpoint that ranks read at the same time.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "tests/support/skewed_checkpoint.h"

namespace jevons {

// A SkewedCheckpoint for each thread that reads.
class SharedCheckpoint : public Checkpoint {
 public:
  SharedCheckpoint(const ModelConfig& config, int32_t num_wanted)
      : config_(config), num_wanted_(num_wanted) {}

  absl::StatusOr<TensorView> Find(std::string_view name) const override {
    return OfThread().Find(name);
  }
  bool Has(std::string_view name) const override { return OfThread().Has(name); }
  std::vector<std::string> Names() const override { return OfThread().Names(); }
  void Release(std::string_view name) const override { OfThread().Release(name); }

 private:
  const SkewedCheckpoint& OfThread() const {
    MutexLock lock(&mutex_);
    auto& own = by_thread_[std::this_thread::get_id()];
    if (own == nullptr) own = std::make_unique<SkewedCheckpoint>(config_, 7, num_wanted_);
    return *own;
  }

  const ModelConfig config_;
  const int32_t num_wanted_;
  mutable Mutex mutex_;
  mutable std::map<std::thread::id, std::unique_ptr<SkewedCheckpoint>> by_thread_
      ABSL_GUARDED_BY(mutex_);
};

}  // namespace jevons
