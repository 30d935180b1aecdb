// A scheduler with its blocks and sequences, checked at every step.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "scheduler/scheduler.h"

namespace jevons {

inline constexpr int32_t kBlock = kKvBlockTokens;

class SchedulerTest : public testing::Test {
 protected:
  void Make(const SchedulerConfig& config, int32_t num_blocks) {
    blocks_ = std::make_unique<BlockManager>(num_blocks);
    scheduler_ = std::make_unique<Scheduler>(config, blocks_.get());
  }
  void MakeWithPrefixes(const SchedulerConfig& config, int32_t num_blocks) {
    blocks_ = std::make_unique<BlockManager>(num_blocks);
    prefixes_ = std::make_unique<PrefixCache>(blocks_.get());
    scheduler_ = std::make_unique<Scheduler>(config, blocks_.get(), prefixes_.get());
  }

  // A waiting sequence whose prompt is 1000 * id, 1000 * id + 1, ...
  Sequence* Add(int32_t num_prompt, int32_t max_new_tokens = 8) {
    Request request = {.id = sequences_.size() + 1, .max_new_tokens = max_new_tokens};
    for (int32_t i = 0; i < num_prompt; ++i) {
      request.prompt_ids.push_back(static_cast<int32_t>(request.id) * 1000 + i);
    }
    return Add(std::move(request));
  }
  Sequence* Add(Request request) {
    sequences_.push_back(std::make_unique<Sequence>(std::move(request)));
    scheduler_->Add(sequences_.back().get());
    return sequences_.back().get();
  }

  const Batch& Schedule() {
    const Batch& batch = scheduler_->Schedule();
    EXPECT_TRUE(scheduler_->CheckIntegrity().ok()) << scheduler_->CheckIntegrity();
    return batch;
  }

  // Every entry that samples gets `token_id`.
  void Update(const Batch& batch, int32_t token_id = 7) {
    std::vector<int32_t> sampled;
    for (const BatchEntry& entry : batch.entries) {
      if (entry.samples) sampled.push_back(token_id);
    }
    scheduler_->Update(sampled);
    EXPECT_TRUE(scheduler_->CheckIntegrity().ok()) << scheduler_->CheckIntegrity();
  }

  void Step() { Update(Schedule()); }

  static std::vector<std::pair<uint64_t, int32_t>> Plan(const Batch& batch) {
    std::vector<std::pair<uint64_t, int32_t>> plan;
    for (const BatchEntry& entry : batch.entries) {
      plan.emplace_back(entry.sequence->request.id, entry.num_tokens);
    }
    return plan;
  }

  std::unique_ptr<BlockManager> blocks_;
  std::unique_ptr<PrefixCache> prefixes_;
  std::vector<std::unique_ptr<Sequence>> sequences_;
  std::unique_ptr<Scheduler> scheduler_;
};

using Pair = std::pair<uint64_t, int32_t>;

}  // namespace jevons
