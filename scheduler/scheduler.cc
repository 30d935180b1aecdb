#include "scheduler/scheduler.h"

#include <algorithm>

#include "base/check.h"

namespace jevons {
namespace {

// Blocks that the sequence still needs for the tokens that it has, plus the next one.
int64_t MissingBlocks(const Sequence& sequence) {
  return BlocksFor(int64_t{sequence.num_tokens()} + 1) -
         static_cast<int64_t>(sequence.block_table.size());
}

}  // namespace

Scheduler::Scheduler(const SchedulerConfig& config, BlockManager* blocks, PrefixCache* prefixes)
    : config_(config), blocks_(blocks), prefixes_(prefixes) {
  CHECK(config.max_num_seqs >= 1);
  CHECK(config.max_num_batched_tokens >= config.max_num_seqs);
  CHECK(config.max_prefill_chunk_tokens >= 0);
  const auto num_seqs = static_cast<size_t>(config.max_num_seqs);
  const auto num_tokens = static_cast<size_t>(config.max_num_batched_tokens);
  running_.reserve(num_seqs);
  for (Batch& batch : batches_) {
    batch.entries.reserve(num_seqs);
    batch.cu_seqlens_q.reserve(num_seqs + 1);
    batch.context_lens.reserve(num_seqs);
    batch.token_ids.reserve(num_tokens);
    batch.positions.reserve(num_tokens);
    batch.slot_mapping.reserve(num_tokens);
  }
}

void Scheduler::Add(Sequence* sequence) {
  CHECK(sequence->state == Sequence::State::kWaiting);
  CHECK(sequence->num_computed == 0 && sequence->block_table.empty());
  CHECK(sequence->num_prompt_tokens() >= 1 && sequence->request.max_new_tokens >= 1);
  CHECK(BlocksFor(int64_t{sequence->num_prompt_tokens()} + sequence->request.max_new_tokens) <=
        blocks_->num_blocks());
  waiting_.push_back(sequence);
}

const Batch& Scheduler::Schedule() {
  CHECK(!is_planned_ && num_under_way_ < 2);
  Batch& batch = planned();
  batch.entries.clear();
  batch.token_ids.clear();
  batch.positions.clear();
  batch.slot_mapping.clear();
  batch.context_lens.clear();
  batch.cu_seqlens_q.assign(1, 0);
  has_preempted_ = false;
  Budget budget = {.tokens = config_.max_num_batched_tokens};
  PlanRunning(budget);
  PlanWaiting(budget);
  FillBlockTables();
  is_planned_ = !batch.empty();
  return batch;
}

void Scheduler::PlanRunning(Budget& budget) {
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence* sequence = running_[i];
    const auto num_younger = static_cast<int32_t>(running_.size() - i - 1);
    const int32_t num_tokens = ChunkTokens(*sequence, budget.tokens - num_younger);
    if (num_tokens == 0) continue;
    // Only younger sequences are preempted, and they have no entry yet: no planned entry is ever
    // taken back.
    if (!GrowTable(i, sequence->num_computed + num_tokens)) return;
    AppendEntry(sequence, num_tokens, budget);
  }
}

// A sequence that this step has preempted is not admitted again in it: a step under way may still have
// it as it was, and the blocks that an older one wanted are gone.
void Scheduler::PlanWaiting(Budget& budget) {
  while (!has_preempted_ && !waiting_.empty() && num_running() < config_.max_num_seqs &&
         budget.tokens > 0) {
    Sequence* sequence = waiting_.front();
    TakePrefix(sequence);
    if (MissingBlocks(*sequence) > blocks_->num_free() - budget.promised_blocks) {
      return ReturnAllBlocks(sequence);
    }
    waiting_.pop_front();
    running_.push_back(sequence);
    sequence->state = Sequence::State::kRunning;
    const int64_t max_tokens =
        int64_t{sequence->num_prompt_tokens()} + sequence->request.max_new_tokens;
    sequence->token_ids.reserve(static_cast<size_t>(max_tokens));
    sequence->block_table.reserve(static_cast<size_t>(BlocksFor(max_tokens)));
    if (sequence->num_cached_tokens < 0) {
      sequence->num_cached_tokens = std::min(sequence->num_computed, sequence->num_prompt_tokens());
    }
    const int32_t num_tokens = ChunkTokens(*sequence, budget.tokens);
    CHECK(GrowTable(running_.size() - 1, sequence->num_computed + num_tokens));
    AppendEntry(sequence, num_tokens, budget);
  }
}

void Scheduler::TakePrefix(Sequence* sequence) {
  const Request& request = sequence->request;
  if (prefixes_ == nullptr || request.reuse == Request::Reuse::kNone) return;
  // The last token is computed, for what comes after it.
  const int32_t num_known = sequence->num_tokens() - std::max(sequence->num_unknown, 1);
  prefixes_->Match(std::span(sequence->token_ids).first(static_cast<size_t>(num_known)),
                   request.cache_salt, sequence->block_table);
  sequence->num_known_blocks = static_cast<int32_t>(sequence->block_table.size());
  sequence->num_computed = sequence->num_known_blocks * kKvBlockTokens;
}

void Scheduler::Publish(Sequence* sequence, int32_t num_computed) {
  if (prefixes_ == nullptr || sequence->state != Sequence::State::kRunning) return;
  for (int32_t& i = sequence->num_known_blocks; (i + 1) * kKvBlockTokens <= num_computed; ++i) {
    const auto begin = static_cast<size_t>(i) * kKvBlockTokens;
    prefixes_->Insert(std::span(sequence->token_ids).subspan(begin, kKvBlockTokens),
                      sequence->request.cache_salt, static_cast<size_t>(i), sequence->block_table);
  }
}

void Scheduler::ForgetPrefixes() {
  if (prefixes_ == nullptr) return;
  prefixes_->Clear();
  for (Sequence* sequence : running_) sequence->num_known_blocks = 0;
}

void Scheduler::ReturnAllBlocks(Sequence* sequence) {
  sequence->block_table.clear();
  sequence->num_known_blocks = 0;
  sequence->num_computed = 0;
}

int32_t Scheduler::ChunkTokens(const Sequence& sequence, int32_t max_tokens) const {
  // The last new token is never computed: what it is may still be unknown.
  if (sequence.num_new_tokens() >= sequence.request.max_new_tokens) return 0;
  const int32_t num_left = sequence.num_tokens() - sequence.num_computed;
  const int32_t max_chunk = config_.max_prefill_chunk_tokens;
  return std::min({num_left, max_tokens, max_chunk > 0 ? max_chunk : max_tokens});
}

bool Scheduler::GrowTable(size_t running_idx, int32_t num_tokens) {
  Sequence* sequence = running_[running_idx];
  const auto num_blocks = static_cast<size_t>(BlocksFor(num_tokens));
  while (sequence->block_table.size() < num_blocks) {
    std::optional<BlockRef> block = blocks_->Allocate();
    if (block.has_value()) {
      sequence->block_table.push_back(*std::move(block));
      continue;
    }
    PreemptYoungest();
    if (running_.size() == running_idx) return false;
  }
  return true;
}

void Scheduler::PreemptYoungest() {
  Sequence* victim = running_.back();
  running_.pop_back();
  ReturnAllBlocks(victim);
  victim->state = Sequence::State::kWaiting;
  ++victim->num_preemptions;
  ++num_preemptions_;
  has_preempted_ = true;
  waiting_.push_front(victim);
}

void Scheduler::AppendEntry(Sequence* sequence, int32_t num_tokens, Budget& budget) {
  const int32_t begin = sequence->num_computed;
  const int32_t end = begin + num_tokens;
  Batch& batch = planned();
  batch.entries.push_back({.sequence = sequence,
                           .num_tokens = num_tokens,
                           .first_position = begin,
                           .samples = end == sequence->num_tokens()});
  for (int32_t position = begin; position < end; ++position) {
    const int64_t block_id = sequence->block_table[position / kKvBlockTokens].block_id();
    batch.token_ids.push_back(sequence->token_ids[position]);
    batch.positions.push_back(position);
    batch.slot_mapping.push_back(block_id * kKvBlockTokens + position % kKvBlockTokens);
  }
  batch.cu_seqlens_q.push_back(batch.num_tokens());
  batch.context_lens.push_back(end);
  budget.tokens -= num_tokens;
  budget.promised_blocks += MissingBlocks(*sequence);
}

void Scheduler::FillBlockTables() {
  Batch& batch = planned();
  size_t max_blocks = 0;
  for (const BatchEntry& entry : batch.entries) {
    max_blocks = std::max(max_blocks, entry.sequence->block_table.size());
  }
  batch.max_blocks = static_cast<int32_t>(max_blocks);
  batch.block_tables.resize(batch.entries.size() * max_blocks);
  auto row = batch.block_tables.begin();
  for (const BatchEntry& entry : batch.entries) {
    const BlockTable& table = entry.sequence->block_table;
    const auto padding = std::transform(table.begin(), table.end(), row,
                                        [](const BlockRef& block) { return block.block_id(); });
    row += static_cast<int64_t>(max_blocks);
    std::fill(padding, row, 0);
  }
}

void Scheduler::Start() {
  CHECK(is_planned_);
  int32_t num_sampled = 0;
  for (const BatchEntry& entry : planned().entries) {
    entry.sequence->num_computed += entry.num_tokens;
    if (!entry.samples) continue;
    entry.sequence->token_ids.push_back(UnknownTokenId(num_sampled++));
    ++entry.sequence->num_unknown;
  }
  is_planned_ = false;
  ++num_under_way_;
}

void Scheduler::Update(std::span<const int32_t> sampled) {
  if (is_planned_) {
    CHECK(num_under_way_ == 0);
    Start();
  }
  CHECK(num_under_way_ > 0 || sampled.empty());
  if (num_under_way_ == 0) return;
  size_t num_taken = 0;
  for (const BatchEntry& entry : EndOldest().entries) {
    int32_t token_id = kSkip;
    if (entry.samples) {
      CHECK(num_taken < sampled.size());
      token_id = sampled[num_taken++];
    }
    Sequence* const sequence = entry.sequence;
    if (sequence == nullptr) continue;
    if (entry.samples && token_id == kSkip) {
      Finish(sequence);
      ForgetPrefixes();
      continue;
    }
    if (entry.samples) {
      sequence->token_ids[sequence->num_tokens() - sequence->num_unknown] = token_id;
      --sequence->num_unknown;
    }
    Publish(sequence, entry.first_position + entry.num_tokens);
  }
  CHECK(num_taken == sampled.size());
}

void Scheduler::Fail() {
  if (is_planned_) Start();
  CHECK(num_under_way_ > 0);
  for (const BatchEntry& entry : EndOldest().entries) {
    if (entry.sequence != nullptr) Finish(entry.sequence);
  }
}

const Batch& Scheduler::EndOldest() {
  const Batch& ended = batch(0);
  oldest_ = (oldest_ + 1) % 2;
  --num_under_way_;
  return ended;
}

void Scheduler::ForgetUnknown(Sequence* sequence) {
  sequence->token_ids.resize(static_cast<size_t>(sequence->num_tokens() - sequence->num_unknown));
  sequence->num_unknown = 0;
}

void Scheduler::StartOver() {
  CHECK(!is_planned_);
  num_under_way_ = 0;
  while (!running_.empty()) PreemptYoungest();
  for (Sequence* sequence : waiting_) ForgetUnknown(sequence);
  ForgetPrefixes();
}

void Scheduler::Finish(Sequence* sequence) {
  CHECK(!is_planned_);
  if (sequence->state == Sequence::State::kRunning) {
    const auto it = std::find(running_.begin(), running_.end(), sequence);
    CHECK(it != running_.end());
    running_.erase(it);
  } else if (sequence->state == Sequence::State::kWaiting) {
    const auto it = std::find(waiting_.begin(), waiting_.end(), sequence);
    CHECK(it != waiting_.end());
    waiting_.erase(it);
  }
  for (int i = 0; i < num_under_way_; ++i) {
    for (BatchEntry& entry : batch(i).entries) {
      if (entry.sequence == sequence) entry.sequence = nullptr;
    }
  }
  ForgetUnknown(sequence);
  sequence->block_table.clear();
  sequence->state = Sequence::State::kFinished;
}

}  // namespace jevons
