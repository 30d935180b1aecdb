// The life of sequences on the engine thread: admit, drop, schedule, run, sample, emit.
#pragma once

#include <array>
#include <memory>
#include <span>
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

// Whether an error is of what ranks do together, and not of this one.
bool BreaksGroup(const absl::Status& status);

// Engine thread only.
//
// Where it overlaps, a step is queued on the device while the one before it still runs there, and
// only then the tokens of that one are waited for: the device finds them itself (UnknownTokenId). A
// sequence that turns out to have ended has one token too many in the step under way, which nobody
// sees. The streams get what they get without.
class StepLoop {
 public:
  StepLoop(LoadedModel* model, const Clock* clock);

  void Admit(QueuedRequest queued);
  bool has_work() const { return !active_.empty() || under_way_ != nullptr; }

  // One step for everything in work: cancelled and expired sequences end, a batch is queued, and the
  // tokens of the step that was under way are pushed, or its own where no step stays under way.
  // In a group the batch may be empty: the other ranks need this one.
  void Step();

  // OK, or UNAVAILABLE once the device has failed in a step: no further step makes sense.
  const absl::Status& failure() const { return failure_; }
  // OK, or UNAVAILABLE while the group is broken. No token of the step in which it broke counts, and
  // every sequence is computed anew from those that it had, in the steps after Mend.
  const absl::Status& broken() const { return broken_; }
  void Break(const absl::Status& status);
  // The model has a group again.
  void Mend() { broken_ = absl::OkStatus(); }

  // Ends every sequence with this status.
  void EndAll(const absl::Status& status);

  // Adds what only the engine thread knows.
  void FillStats(EngineStats& stats) const;
  // Of the prefix cache, since the last call.
  PrefixChanges TakePrefixChanges() { return prefixes_.TakeChanges(); }
  absl::Status CheckIntegrity() const;

 private:
  struct Active {
    Active(QueuedRequest queued, Request scheduled, const LoadedModel& model);

    // Takes what the request has given elsewhere. Why it ends with that; kNone: it does not.
    FinishReason TakeGiven();

    Sequence sequence;
    GenerationRequest request;
    std::shared_ptr<TokenStream> stream;
    OutputProcessor output;
    int32_t num_prompt_scored =
        0;  // prompt logprobs sent; after a preemption they are not sent again
    absl::Time last_token = absl::InfiniteFuture();  // pushed; none yet
  };
  // A row of logits that is wanted: the token after `position` of the entry's sequence.
  struct WantedRow {
    int32_t row = 0;
    int32_t entry_idx = 0;
    int32_t position = 0;
    int32_t sampled_idx = -1;  // among the entries that sample; -1: the token is known, and scored
  };
  // A step, from its plan to its tokens.
  struct StepWork {
    const Batch* batch = nullptr;
    std::vector<WantedRow> wanted;  // those that sample first, which is what UnknownTokenId counts
    std::vector<int32_t> rows;      // of wanted
    bool is_queued = false;         // with all its samples: nothing needs to be waited for
    absl::Status status;            // of what was queued
  };

  void DropCancelledAndExpired();
  void BeginStep(const Batch& batch, StepWork& work);
  absl::Status Queue(StepWork& work);
  void CollectRows(StepWork& work);
  void EndStep(StepWork& work);
  absl::Status RunBatch(const Batch& batch);
  // Logs the error of a step, and keeps it where no further step makes sense.
  void NoteFailure(const absl::Status& status, int32_t num_tokens);
  absl::Status TakeResults(StepWork& work);
  // Samples and scores for wanted[begin, end): from logits on the host, or on the device.
  absl::Status UseHostLogits(const StepWork& work, size_t begin, size_t end);
  absl::Status UseDeviceLogits(const StepWork& work, size_t begin, size_t end);
  void MakeSampleRequests(const StepWork& work, size_t begin, size_t end);
  void UseSamples(const StepWork& work, size_t begin, std::span<const SampleResult> results);
  void TakeToken(const WantedRow& wanted, absl::StatusOr<int32_t> token);
  void PushPromptLogprobs(Active& active, int32_t position, Logprobs logprobs);
  void Emit(const Batch& batch);
  void End(Active& active, FinishReason reason, absl::Status error);
  static int64_t NewTokenIdx(const Active& active, const WantedRow& wanted) {
    return wanted.position + 1 - active.sequence.num_prompt_tokens();
  }
  Active& ActiveOf(const BatchEntry& entry) { return *active_.at(entry.sequence); }

  LoadedModel* const model_;
  const Clock* const clock_;
  BlockManager blocks_;
  PrefixCache prefixes_;
  Scheduler scheduler_;
  std::unordered_map<const Sequence*, std::unique_ptr<Active>> active_;

  const bool overlaps_;
  std::array<StepWork, 2> works_;
  StepWork* under_way_ = nullptr;  // queued, and its tokens not taken
  std::vector<SampleRequest> sample_requests_;

  // Of the step that ends.
  std::vector<int32_t> sampled_;                 // by entry that samples
  std::vector<absl::Status> failed_;             // by entry
  std::vector<std::vector<Logprobs>> logprobs_;  // by entry, of the sampled token
  std::vector<Active*> ending_;

  absl::Status failure_;
  absl::Status broken_;
  int64_t num_steps_ = 0;
  int64_t num_prompt_tokens_ = 0;
  int64_t num_cached_tokens_ = 0;
  int64_t num_new_tokens_ = 0;
  absl::Duration largest_token_gap_;
};

}  // namespace jevons
