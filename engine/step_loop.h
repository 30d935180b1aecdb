// The life of sequences on the engine thread: admit, drop, schedule, run, sample, emit.
#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "engine/engine.h"
#include "engine/loaded_model.h"
#include "engine/output_processor.h"
#include "engine/token_stream.h"
#include "scheduler/scheduler.h"

namespace jevons {

// A request on its way into the engine.
struct QueuedRequest {
  uint64_t id = 0;
  GenerationRequest request;
  std::shared_ptr<TokenStream> stream;
};

// Engine thread only.
class StepLoop {
 public:
  StepLoop(LoadedModel* model, const Clock* clock);

  void Admit(QueuedRequest queued);
  bool has_work() const { return !active_.empty(); }

  // One step for everything in work: cancelled and expired sequences end, a batch is computed, its
  // tokens are pushed. In a group the batch may be empty: the other ranks need this one.
  void Step();

  // OK, or UNAVAILABLE once the device or the group has failed in a step: no further step makes
  // sense.
  const absl::Status& failure() const { return failure_; }

  // Ends every sequence with this status.
  void EndAll(const absl::Status& status);

  // Adds what only the engine thread knows.
  void FillStats(EngineStats& stats) const;
  absl::Status CheckIntegrity() const;

 private:
  struct Active {
    Active(QueuedRequest queued, Request scheduled, const LoadedModel& model);

    Sequence sequence;
    GenerationRequest request;
    std::shared_ptr<TokenStream> stream;
    OutputProcessor output;
    int32_t num_prompt_scored =
        0;  // prompt logprobs sent; after a preemption they are not sent again
  };
  // A row of logits that is wanted: the token after `position` of the entry's sequence.
  struct WantedRow {
    int32_t row = 0;
    int32_t entry_idx = 0;
    int32_t position = 0;
  };

  void DropCancelledAndExpired();
  absl::Status Run(const Batch& batch);
  void CollectRows(const Batch& batch);
  // Samples and scores for wanted_[begin, end): from logits on the host, or on the device.
  absl::Status UseHostLogits(const Batch& batch, size_t begin, size_t end);
  absl::Status UseDeviceLogits(const Batch& batch, size_t begin, size_t end);
  bool IsSampled(const Active& active, const WantedRow& wanted) const {
    return wanted.position + 1 == active.sequence.num_tokens();
  }
  void TakeToken(Active& active, absl::StatusOr<int32_t> token, int32_t entry_idx);
  void PushPromptLogprobs(Active& active, int32_t position, Logprobs logprobs);
  void Emit(const Batch& batch);
  void End(Active& active, FinishReason reason, absl::Status error);
  Active& ActiveOf(const BatchEntry& entry) { return *active_.at(entry.sequence); }

  LoadedModel* const model_;
  const Clock* const clock_;
  BlockManager blocks_;
  Scheduler scheduler_;
  std::unordered_map<const Sequence*, std::unique_ptr<Active>> active_;

  // Of the step in work.
  std::vector<WantedRow> wanted_;
  std::vector<int32_t> rows_;
  std::vector<SampleRequest> sample_requests_;
  std::vector<int32_t> sampled_;                 // by entry that samples
  std::vector<absl::Status> failed_;             // by entry
  std::vector<std::vector<Logprobs>> logprobs_;  // by entry, of the sampled token
  std::vector<Active*> ending_;

  absl::Status failure_;
  int64_t num_steps_ = 0;
  int64_t num_prompt_tokens_ = 0;
  int64_t num_new_tokens_ = 0;
};

}  // namespace jevons
