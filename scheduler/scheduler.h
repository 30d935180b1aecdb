// Decides what each step computes. Host logic only: no clock, no device, no model.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "base/status.h"
#include "scheduler/batch.h"
#include "scheduler/block_manager.h"
#include "scheduler/prefix_cache.h"

namespace jevons {

struct SchedulerConfig {
  int32_t max_num_seqs = 64;             // running sequences, >= 1
  int32_t max_num_batched_tokens = 512;  // query tokens a step, >= max_num_seqs
  int32_t max_prefill_chunk_tokens = 0;  // of one prompt in one step; 0: no limit of its own
};

// Engine thread only.
//
// A step serves running sequences first, oldest first, and keeps a token of the budget for each of
// them, so decode never waits for a prompt; what is left goes to prompts in order of arrival. When
// blocks run out, the youngest running sequence is preempted: it gives back its blocks, goes to the
// head of the queue, and is later computed anew from its tokens.
//
// A step may be planned while the one before it is under way and its tokens are not known: its
// sequences go on with tokens that UnknownTokenId stands for. Steps run one after the other on the
// device, so blocks that are given back while a step under way still uses them may be given out at
// once.
//
// A sequence that is admitted, for the first time or again, takes the whole blocks that the prefix
// cache knows for its tokens, all but the last token, and computes the rest. Its own blocks become
// known when the step that filled them has ended well.
//
// Every sequence finishes. Running is a prefix of the order of arrival, waiting the rest: admission
// takes the head, preemption puts the youngest back as head. The oldest running sequence loses its
// blocks to nobody and advances in each step, since alone it fits the pool; when it is done, the
// next one is the oldest. With none running, every block is free, and the head is admitted.
class Scheduler {
 public:
  // `prefixes` is of the same blocks; null: every sequence computes all of its tokens.
  Scheduler(const SchedulerConfig& config, BlockManager* blocks, PrefixCache* prefixes = nullptr);

  // Puts a waiting sequence at the back of the queue. It must fit the pool alone:
  // BlocksFor(prompt + max_new_tokens) <= num_blocks, which the caller has checked.
  void Add(Sequence* sequence);

  // Plans a step, while at most one is under way. The batch is valid until the second call from
  // here. Empty only if no sequence waits or runs, or those that run have all their tokens but
  // unknown ones. No allocation once both batches have had their largest size, but for the first
  // admission of a sequence, which reserves what it may grow to.
  const Batch& Schedule();

  // The planned step, which is not empty, is under way: its tokens count as computed, and each
  // sequence that samples has one more, unknown token.
  void Start();

  // Ends the oldest step under way, after Start where it is only planned: `sampled[i]` is the new
  // token of the i-th entry that samples. kSkip finishes the sequence without one, and no prefix is
  // known any more: its numbers may come from there. What is given for a sequence that has finished
  // since is dropped.
  static constexpr int32_t kSkip = -1;
  void Update(std::span<const int32_t> sampled);

  // Ends the oldest step under way, which has failed, as Update does: its sequences are finished.
  void Fail();

  // Nothing that is in the cache counts any more: steps under way give no token, and every running
  // sequence is preempted. Never between Schedule and Start.
  void StartOver();

  // Takes a sequence out, in any state, and returns its blocks; none that is finished already
  // changes. Its entries of steps under way stay, without it. Never between Schedule and Start.
  void Finish(Sequence* sequence);

  int32_t num_waiting() const { return static_cast<int32_t>(waiting_.size()); }
  int32_t num_running() const { return static_cast<int32_t>(running_.size()); }
  int64_t num_preemptions() const { return num_preemptions_; }

  // Every invariant of scheduler and blocks; INTERNAL with the first one broken.
  absl::Status CheckIntegrity() const;

 private:
  struct Budget {
    int32_t tokens = 0;  // of this step, not yet given away
    int64_t promised_blocks =
        0;  // free, but running sequences need them for the tokens that they have, plus one
  };

  void PlanRunning(Budget& budget);
  void PlanWaiting(Budget& budget);
  void TakePrefix(Sequence* sequence);
  // Of the tokens in front of `num_computed` those that fill a block are known from now on.
  void Publish(Sequence* sequence, int32_t num_computed);
  void ForgetPrefixes();
  int32_t ChunkTokens(const Sequence& sequence, int32_t max_tokens) const;
  // Makes room for the first `num_tokens` tokens of running_[running_idx], preempting younger
  // sequences; false if it was the youngest itself and is preempted.
  bool GrowTable(size_t running_idx, int32_t num_tokens);
  void PreemptYoungest();
  void AppendEntry(Sequence* sequence, int32_t num_tokens, Budget& budget);
  void FillBlockTables();
  // The oldest step under way, which is not so any more.
  const Batch& EndOldest();
  static void ReturnAllBlocks(Sequence* sequence);
  // Tokens that nobody will know.
  static void ForgetUnknown(Sequence* sequence);
  // The batch of the oldest step under way is number 0; the one that is planned comes last.
  const Batch& batch(int idx) const { return batches_[(oldest_ + idx) % 2]; }
  Batch& batch(int idx) { return batches_[(oldest_ + idx) % 2]; }
  Batch& planned() { return batch(num_under_way_); }
  absl::Status CheckRunning(const Sequence& sequence, int32_t num_planned) const;
  absl::Status CheckUnknown(const Sequence& sequence) const;
  absl::Status CheckBatch(const Batch& batch) const;
  absl::Status CheckEntry(const Batch& batch, size_t entry_idx) const;

  const SchedulerConfig config_;
  BlockManager* const blocks_;
  PrefixCache* const prefixes_;
  std::deque<Sequence*> waiting_;
  std::vector<Sequence*> running_;  // by age, oldest first
  std::array<Batch, 2> batches_;
  int oldest_ = 0;
  int num_under_way_ = 0;
  bool is_planned_ = false;     // between Schedule and Start
  bool has_preempted_ = false;  // since the last Schedule began
  int64_t num_preemptions_ = 0;
};

}  // namespace jevons
