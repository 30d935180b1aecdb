#include "bench/model_driver.h"

#include <algorithm>
#include <chrono>

#include "model/sampler.h"
#include "scheduler/block_manager.h"

namespace jevons {

absl::StatusOr<std::unique_ptr<ModelDriver>> ModelDriver::Create(
    const ModelConfig& config, const Checkpoint& checkpoint, std::unique_ptr<Backend> backend,
    int32_t max_seqs, int32_t max_context, int32_t max_tokens) {
  auto driver = std::unique_ptr<ModelDriver>(new ModelDriver());
  driver->backend_ = std::make_unique<CountingBackend>(std::move(backend));
  ASSIGN_OR_RETURN(ModelWeights weights, LoadModelWeights(config, checkpoint, *driver->backend_));
  driver->max_blocks_ = static_cast<int32_t>(BlocksFor(max_context));
  ASSIGN_OR_RETURN(driver->runner_,
                   ModelRunner::Create(config, std::move(weights), driver->backend_.get(),
                                       {.max_tokens = max_tokens,
                                        .max_num_seqs = max_seqs,
                                        .max_positions = max_context,
                                        .max_logits_rows = max_seqs,
                                        .num_blocks = max_seqs * driver->max_blocks_,
                                        .block_tokens = kKvBlockTokens}));
  return driver;
}

absl::StatusOr<StepTiming> ModelDriver::Step(int32_t num_seqs, int32_t num_tokens, int32_t depth) {
  std::vector<int32_t> token_ids, positions, cu_seqlens_q = {0}, context_lens, block_tables, rows;
  std::vector<int64_t> slots;
  for (int32_t s = 0; s < num_seqs; ++s) {
    for (int32_t i = 0; i < num_tokens; ++i) {
      token_ids.push_back(static_cast<int32_t>(random_.Below(runner_->config().vocab_size)));
      positions.push_back(depth + i);
      slots.push_back(int64_t{s} * max_blocks_ * kKvBlockTokens + depth + i);
    }
    rows.push_back(static_cast<int32_t>(token_ids.size()) - 1);
    cu_seqlens_q.push_back(static_cast<int32_t>(token_ids.size()));
    context_lens.push_back(depth + num_tokens);
    for (int32_t b = 0; b < max_blocks_; ++b) block_tables.push_back(s * max_blocks_ + b);
  }
  backend_->Reset();
  const auto start = std::chrono::steady_clock::now();
  RETURN_IF_ERROR(runner_->Run({.token_ids = token_ids,
                                .positions = positions,
                                .slot_mapping = slots,
                                .cu_seqlens_q = cu_seqlens_q,
                                .context_lens = context_lens,
                                .block_tables = block_tables,
                                .max_blocks = max_blocks_}));
  ASSIGN_OR_RETURN(const TensorView logits, runner_->Logits(rows));
  const SamplingParams greedy = {.temperature = 0, .logit_bias = {}};
  for (int32_t s = 0; s < num_seqs; ++s) {
    const std::span<const float> row(logits.row<float>(s), static_cast<size_t>(logits.dim(1)));
    ASSIGN_OR_RETURN(const int32_t token,
                     SampleToken(row, runner_->config().vocab_size, greedy, 0));
    static_cast<void>(token);
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  return StepTiming{.seconds = took.count(), .totals = backend_->totals()};
}

}  // namespace jevons
