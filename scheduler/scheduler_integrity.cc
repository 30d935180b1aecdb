// Scheduler::CheckIntegrity, apart from what the scheduler does.
#include "absl/strings/str_cat.h"
#include "scheduler/scheduler.h"

namespace jevons {
namespace {

template <typename... Args>
absl::Status Broken(const Args&... args) {
  return absl::InternalError(absl::StrCat(args...));
}

absl::Status CheckWaiting(const Sequence& sequence) {
  const uint64_t id = sequence.request.id;
  if (sequence.state != Sequence::State::kWaiting) {
    return Broken("sequence ", id, " is in the queue, but its state is not kWaiting");
  }
  if (sequence.num_computed != 0 || !sequence.block_table.empty()) {
    return Broken("waiting sequence ", id, " has ", sequence.num_computed, " computed tokens and ",
                  sequence.block_table.size(), " blocks");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Scheduler::CheckIntegrity() const {
  RETURN_IF_ERROR(blocks_->CheckIntegrity());
  if (prefixes_ != nullptr) RETURN_IF_ERROR(prefixes_->CheckIntegrity());
  if (num_running() > config_.max_num_seqs) {
    return Broken(num_running(), " sequences run, more than max_num_seqs ", config_.max_num_seqs);
  }
  for (const Sequence* sequence : waiting_) {
    RETURN_IF_ERROR(CheckWaiting(*sequence));
    RETURN_IF_ERROR(CheckUnknown(*sequence));
  }

  const Batch& plan = batch(num_under_way_);
  std::vector<int32_t> num_refs(static_cast<size_t>(blocks_->num_blocks()));
  size_t entry_idx = 0;
  for (const Sequence* sequence : running_) {
    int32_t num_planned = 0;
    if (is_planned_ && entry_idx < plan.entries.size() &&
        plan.entries[entry_idx].sequence == sequence) {
      num_planned = plan.entries[entry_idx++].num_tokens;
    }
    RETURN_IF_ERROR(CheckRunning(*sequence, num_planned));
    RETURN_IF_ERROR(CheckUnknown(*sequence));
    for (size_t i = 0; i < sequence->block_table.size(); ++i) {
      const int32_t block_id = sequence->block_table[i].block_id();
      if (block_id < 0 || block_id >= blocks_->num_blocks()) {
        return Broken("block ", block_id, " of sequence ", sequence->request.id, " does not exist");
      }
      // What is in two places is written to by neither.
      const auto num_whole = static_cast<size_t>(sequence->num_computed / kKvBlockTokens);
      ++num_refs[block_id];
      if (blocks_->num_refs(block_id) > 1 && i >= num_whole) {
        return Broken("block ", block_id, " of sequence ", sequence->request.id,
                      " is in two places, but not whole");
      }
    }
  }
  for (int32_t i = 0; i < blocks_->num_blocks(); ++i) {
    if (num_refs[i] == blocks_->num_refs(i)) continue;
    return Broken("block ", i, " is in ", num_refs[i], " tables, but has ", blocks_->num_refs(i),
                  " references");
  }
  if (!is_planned_) return absl::OkStatus();
  if (entry_idx != plan.entries.size()) {
    return Broken("entry ", entry_idx, " of the step is of no running sequence, or out of order");
  }
  return CheckBatch(plan);
}

absl::Status Scheduler::CheckRunning(const Sequence& sequence, int32_t num_planned) const {
  const uint64_t id = sequence.request.id;
  if (sequence.state != Sequence::State::kRunning) {
    return Broken("sequence ", id, " runs, but its state is not kRunning");
  }
  for (int32_t i = 0; i < sequence.num_known_blocks; ++i) {
    if (blocks_->is_kept(sequence.block_table[i].block_id())) continue;
    return Broken("block ", i, " of sequence ", id, " is not known, of its first ",
                  sequence.num_known_blocks, " that are");
  }
  const int64_t num_held = int64_t{sequence.num_computed} + num_planned;
  if (sequence.num_computed < 0 || num_held > sequence.num_tokens()) {
    return Broken("sequence ", id, " has ", sequence.num_computed, " computed and ", num_planned,
                  " planned tokens of ", sequence.num_tokens());
  }
  if (static_cast<int64_t>(sequence.block_table.size()) != BlocksFor(num_held)) {
    return Broken("sequence ", id, " has ", sequence.block_table.size(), " blocks for ", num_held,
                  " tokens, not ", BlocksFor(num_held));
  }
  return absl::OkStatus();
}

// One for each step under way in which it samples, in the order of the steps.
absl::Status Scheduler::CheckUnknown(const Sequence& sequence) const {
  const uint64_t id = sequence.request.id;
  const int32_t num_known = sequence.num_tokens() - sequence.num_unknown;
  if (sequence.num_unknown < 0 || num_known < sequence.num_prompt_tokens() ||
      sequence.num_new_tokens() > sequence.request.max_new_tokens) {
    return Broken("sequence ", id, " has ", sequence.num_new_tokens(), " of ",
                  sequence.request.max_new_tokens, " new tokens and ", sequence.num_unknown,
                  " of them unknown");
  }
  int32_t position = num_known;
  for (int i = 0; i < num_under_way_; ++i) {
    int32_t num_sampled = 0;
    for (const BatchEntry& entry : batch(i).entries) {
      if (!entry.samples) continue;
      const int32_t unknown_id = UnknownTokenId(num_sampled++);
      if (entry.sequence != &sequence) continue;
      if (position >= sequence.num_tokens() || sequence.token_ids[position] != unknown_id) {
        return Broken("token ", position, " of sequence ", id, " is not that of step ", i,
                      " under way");
      }
      ++position;
    }
  }
  if (position == sequence.num_tokens()) return absl::OkStatus();
  return Broken("token ", position, " of sequence ", id, " is unknown, but of no step under way");
}

absl::Status Scheduler::CheckBatch(const Batch& batch) const {
  const size_t num_entries = batch.entries.size();
  const size_t num_tokens = batch.token_ids.size();
  if (batch.num_tokens() > config_.max_num_batched_tokens) {
    return Broken("the step has ", num_tokens, " tokens, more than max_num_batched_tokens ",
                  config_.max_num_batched_tokens);
  }
  if (batch.positions.size() != num_tokens || batch.slot_mapping.size() != num_tokens ||
      batch.cu_seqlens_q.size() != num_entries + 1 || batch.context_lens.size() != num_entries ||
      batch.block_tables.size() != num_entries * static_cast<size_t>(batch.max_blocks)) {
    return Broken("the arrays of the step have not the sizes of ", num_entries, " entries and ",
                  num_tokens, " tokens");
  }
  for (size_t i = 0; i < num_entries; ++i) RETURN_IF_ERROR(CheckEntry(batch, i));
  return absl::OkStatus();
}

absl::Status Scheduler::CheckEntry(const Batch& batch, size_t entry_idx) const {
  const BatchEntry& entry = batch.entries[entry_idx];
  const Sequence& sequence = *entry.sequence;
  const int32_t begin = batch.cu_seqlens_q[entry_idx];
  const int32_t end = entry.first_position + entry.num_tokens;
  if (entry.num_tokens < 1 || entry.first_position != sequence.num_computed ||
      entry.samples != (end == sequence.num_tokens()) || batch.context_lens[entry_idx] != end ||
      batch.cu_seqlens_q[entry_idx + 1] != begin + entry.num_tokens) {
    return Broken("entry ", entry_idx, " of the step does not fit sequence ", sequence.request.id);
  }
  const std::span<const int32_t> table =
      std::span(batch.block_tables)
          .subspan(entry_idx * static_cast<size_t>(batch.max_blocks),
                   static_cast<size_t>(batch.max_blocks));
  for (size_t i = 0; i < table.size(); ++i) {
    const bool padding = i >= sequence.block_table.size();
    const int32_t block_id = padding ? 0 : sequence.block_table[i].block_id();
    if (table[i] == block_id) continue;
    return Broken("block ", i, " of entry ", entry_idx, " of the step is ", table[i], ", not ",
                  block_id);
  }
  for (int32_t i = 0; i < entry.num_tokens; ++i) {
    const int32_t position = entry.first_position + i;
    const int32_t block_id = sequence.block_table[position / kKvBlockTokens].block_id();
    const int64_t slot = int64_t{block_id} * kKvBlockTokens + position % kKvBlockTokens;
    const auto row = static_cast<size_t>(begin + i);
    if (batch.positions[row] != position || batch.token_ids[row] != sequence.token_ids[position] ||
        batch.slot_mapping[row] != slot || table[position / kKvBlockTokens] != block_id) {
      return Broken("token ", row, " of the step is not token ", position, " of sequence ",
                    sequence.request.id, " in slot ", slot);
    }
  }
  return absl::OkStatus();
}

}  // namespace jevons
