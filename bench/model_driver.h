// Drives a ModelRunner without a server: steps of chosen shape and depth, timed.
#pragma once

#include <memory>
#include <vector>

#include "base/random.h"
#include "bench/counting_backend.h"
#include "engine/loaded_model.h"

namespace jevons {

struct StepTiming {
  double seconds = 0;
  OpTotals totals;
};

// Used by one thread at a time.
class ModelDriver {
 public:
  // `max_context` tokens of cache for each of `max_seqs` sequences, steps of at most `max_tokens`.
  static absl::StatusOr<std::unique_ptr<ModelDriver>> Create(const ModelConfig& config,
                                                             const Checkpoint& checkpoint,
                                                             std::unique_ptr<Backend> backend,
                                                             int32_t max_seqs, int32_t max_context,
                                                             int32_t max_tokens);

  // One step of `num_seqs` sequences with `num_tokens` random tokens each behind `depth` cached
  // ones, the logits of the last row of each sequence and its most likely token included.
  absl::StatusOr<StepTiming> Step(int32_t num_seqs, int32_t num_tokens, int32_t depth);

 private:
  ModelDriver() = default;

  std::unique_ptr<CountingBackend> backend_;
  std::unique_ptr<ModelRunner> runner_;
  int32_t max_blocks_ = 0;
  Random random_{1};
};

}  // namespace jevons
