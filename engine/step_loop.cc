#include "engine/step_loop.h"

#include <algorithm>
#include <span>

#include "absl/strings/str_cat.h"
#include "base/log.h"

namespace jevons {
namespace {

SchedulerConfig MakeSchedulerConfig(const EngineOptions& options) {
  return {.max_num_seqs = options.max_num_seqs,
          .max_num_batched_tokens = options.max_num_batched_tokens,
          .max_prefill_chunk_tokens = options.max_prefill_chunk_tokens};
}

Request MakeSchedulerRequest(const QueuedRequest& queued, const GenerationLimits& limits) {
  const int32_t num_prompt = static_cast<int32_t>(queued.request.prompt_ids.size());
  // The last new token is never put into the cache.
  const int64_t room = std::min<int64_t>(limits.max_model_len, limits.kv_cache_tokens) - num_prompt;
  const int64_t wanted = queued.request.max_new_tokens;
  return {.id = queued.id,
          .prompt_ids = queued.request.prompt_ids,
          .max_new_tokens = static_cast<int32_t>(wanted > 0 ? std::min(wanted, room) : room),
          .deadline = queued.request.deadline};
}

}  // namespace

StepLoop::Active::Active(QueuedRequest queued, Request scheduled, const LoadedModel& model)
    : sequence(std::move(scheduled)),
      request(std::move(queued.request)),
      stream(std::move(queued.stream)),
      output(
          *model.tokenizer,
          {.think_start_id = model.chat_format->think_start_id(),
           .think_end_id = model.chat_format->think_end_id(),
           .starts_in_thinking = model.chat_format->StartsInThinking(sequence.request.prompt_ids),
           .end_ids = model.end_ids,
           .ignore_eos = request.ignore_eos,
           .stop = request.stop}) {}

StepLoop::StepLoop(LoadedModel* model, const Clock* clock)
    : model_(model),
      clock_(clock),
      blocks_(model->num_blocks),
      scheduler_(MakeSchedulerConfig(model->options), &blocks_) {}

void StepLoop::Admit(QueuedRequest queued) {
  Request scheduled = MakeSchedulerRequest(queued, model_->limits);
  auto active = std::make_unique<Active>(std::move(queued), std::move(scheduled), *model_);
  Sequence* sequence = &active->sequence;
  active_.emplace(sequence, std::move(active));
  scheduler_.Add(sequence);
}

void StepLoop::Step() {
  DropCancelledAndExpired();
  const Batch& batch = scheduler_.Schedule();
  if (batch.empty() && !model_->in_group()) return;
  ++num_steps_;
  const size_t num_entries = batch.entries.size();
  failed_.assign(num_entries, absl::OkStatus());
  logprobs_.resize(std::max(logprobs_.size(), num_entries));
  sampled_.clear();
  const absl::Status run = Run(batch);
  if (!run.ok()) {
    LogError("step_failed", {{"error", run.ToString()}, {"tokens", batch.num_tokens()}});
    // What a device that failed still holds is not known, and other ranks have not got what they
    // wait for: nothing goes on.
    if (run.code() == absl::StatusCode::kInternal) {
      failure_ = absl::UnavailableError(absl::StrCat("the device failed: ", run.message()));
    } else if (model_->in_group()) {
      failure_ = absl::UnavailableError(run.message());
    }
    std::fill(failed_.begin(), failed_.end(), failure_.ok() ? run : failure_);
    sampled_.assign(std::count_if(batch.entries.begin(), batch.entries.end(),
                                  [](const BatchEntry& e) { return e.samples; }),
                    Scheduler::kSkip);
  }
  if (batch.empty()) return;
  scheduler_.Update(sampled_);
  Emit(batch);
}

void StepLoop::DropCancelledAndExpired() {
  const absl::Time now = clock_->Now();
  ending_.clear();
  for (auto& [sequence, active] : active_) {
    if (active->stream->cancelled() || active->sequence.request.deadline <= now) {
      ending_.push_back(active.get());
    }
  }
  for (Active* active : ending_) {
    if (active->stream->cancelled()) {
      End(*active, FinishReason::kCancelled, absl::CancelledError("cancelled by the client"));
      continue;
    }
    End(*active, FinishReason::kDeadline,
        absl::DeadlineExceededError(
            absl::StrCat("the deadline passed after ", active->sequence.num_new_tokens(), " of ",
                         active->sequence.request.max_new_tokens, " new tokens")));
  }
}

absl::Status StepLoop::Run(const Batch& batch) {
  RETURN_IF_ERROR(model_->runner->Run({.token_ids = batch.token_ids,
                                       .positions = batch.positions,
                                       .slot_mapping = batch.slot_mapping,
                                       .cu_seqlens_q = batch.cu_seqlens_q,
                                       .context_lens = batch.context_lens,
                                       .block_tables = batch.block_tables,
                                       .max_blocks = batch.max_blocks}));
  CollectRows(batch);
  for (size_t begin = 0; begin < rows_.size(); begin += kMaxLogitsRows) {
    const size_t end = std::min<size_t>(begin + kMaxLogitsRows, rows_.size());
    RETURN_IF_ERROR(model_->runner->samples() ? UseDeviceLogits(batch, begin, end)
                                              : UseHostLogits(batch, begin, end));
  }
  return absl::OkStatus();
}

void StepLoop::CollectRows(const Batch& batch) {
  wanted_.clear();
  rows_.clear();
  for (size_t i = 0; i < batch.entries.size(); ++i) {
    const BatchEntry& entry = batch.entries[i];
    const Active& active = ActiveOf(entry);
    const int32_t num_prompt = active.sequence.num_prompt_tokens();
    const bool scores = active.request.num_prompt_logprobs >= 0;
    for (int32_t j = 0; j < entry.num_tokens; ++j) {
      const int32_t position = entry.first_position + j;
      const bool scored =
          scores && position + 1 < num_prompt && position >= active.num_prompt_scored;
      const bool sampled = entry.samples && j + 1 == entry.num_tokens;
      if (!scored && !sampled) continue;
      wanted_.push_back({.row = batch.cu_seqlens_q[i] + j,
                         .entry_idx = static_cast<int32_t>(i),
                         .position = position});
      rows_.push_back(wanted_.back().row);
    }
  }
}

absl::Status StepLoop::UseHostLogits(const Batch& batch, size_t begin, size_t end) {
  ASSIGN_OR_RETURN(const TensorView logits,
                   model_->runner->Logits(std::span(rows_).subspan(begin, end - begin)));
  for (size_t i = begin; i < end; ++i) {
    const WantedRow& wanted = wanted_[i];
    Active& active = ActiveOf(batch.entries[wanted.entry_idx]);
    const std::span<const float> row(logits.row<float>(static_cast<int64_t>(i - begin)),
                                     static_cast<size_t>(logits.dim(1)));
    if (!IsSampled(active, wanted)) {
      const int32_t next_id = active.sequence.token_ids[wanted.position + 1];
      PushPromptLogprobs(active, wanted.position,
                         ComputeLogprobs(row, next_id, active.request.num_prompt_logprobs));
      continue;
    }
    const auto token = SampleToken(row, model_->limits.num_tokens, active.request.sampling,
                                   active.sequence.num_new_tokens());
    TakeToken(active, token, wanted.entry_idx);
    if (token.ok() && active.request.num_logprobs >= 0) {
      logprobs_[wanted.entry_idx].push_back(
          ComputeLogprobs(row, *token, active.request.num_logprobs));
    }
  }
  return absl::OkStatus();
}

absl::Status StepLoop::UseDeviceLogits(const Batch& batch, size_t begin, size_t end) {
  sample_requests_.clear();
  for (size_t i = begin; i < end; ++i) {
    const WantedRow& wanted = wanted_[i];
    const Active& active = ActiveOf(batch.entries[wanted.entry_idx]);
    SampleRequest& request = sample_requests_.emplace_back();
    request.params = &active.request.sampling;
    if (IsSampled(active, wanted)) {
      request.token_idx = active.sequence.num_new_tokens();
      request.num_top = active.request.num_logprobs;
    } else {
      request.score_id = active.sequence.token_ids[wanted.position + 1];
      request.num_top = active.request.num_prompt_logprobs;
    }
  }
  ASSIGN_OR_RETURN(
      const std::span<const SampleResult> results,
      model_->runner->Sample(std::span(rows_).subspan(begin, end - begin), sample_requests_));
  for (size_t i = begin; i < end; ++i) {
    const WantedRow& wanted = wanted_[i];
    Active& active = ActiveOf(batch.entries[wanted.entry_idx]);
    const SampleResult& result = results[i - begin];
    if (!IsSampled(active, wanted)) {
      PushPromptLogprobs(active, wanted.position, result);
    } else if (result.chosen.id < 0) {
      TakeToken(active, NotFinite(active.sequence.num_new_tokens()), wanted.entry_idx);
    } else {
      TakeToken(active, result.chosen.id, wanted.entry_idx);
      if (active.request.num_logprobs >= 0) logprobs_[wanted.entry_idx].push_back(result);
    }
  }
  return absl::OkStatus();
}

void StepLoop::TakeToken(Active& active, absl::StatusOr<int32_t> token, int32_t entry_idx) {
  logprobs_[entry_idx].clear();
  sampled_.push_back(token.ok() ? *token : Scheduler::kSkip);
  if (!token.ok()) failed_[entry_idx] = token.status();
}

void StepLoop::PushPromptLogprobs(Active& active, int32_t position, Logprobs logprobs) {
  StreamDelta delta;
  delta.channel = active.output.channel();
  delta.prompt_logprobs.push_back(std::move(logprobs));
  active.stream->Push(std::move(delta));
  active.num_prompt_scored = position + 1;
}

void StepLoop::Emit(const Batch& batch) {
  for (size_t i = 0; i < batch.entries.size(); ++i) {
    const BatchEntry& entry = batch.entries[i];
    Active& active = ActiveOf(entry);
    if (!failed_[i].ok()) {
      End(active, FinishReason::kError, failed_[i]);
      continue;
    }
    if (!entry.samples) {
      num_prompt_tokens_ += entry.num_tokens;
      continue;
    }
    num_prompt_tokens_ += entry.num_tokens - 1;
    ++num_new_tokens_;
    OutputProcessor::Result result = active.output.Push(active.sequence.token_ids.back());
    result.delta.logprobs = std::move(logprobs_[i]);
    active.stream->Push(std::move(result.delta));
    if (result.stopped) {
      End(active, FinishReason::kStop, absl::OkStatus());
    } else if (active.sequence.num_new_tokens() >= active.sequence.request.max_new_tokens) {
      End(active, FinishReason::kLength, absl::OkStatus());
    }
  }
}

void StepLoop::End(Active& active, FinishReason reason, absl::Status error) {
  StreamDelta rest = active.output.Flush();
  if (!rest.text.empty()) active.stream->Push(std::move(rest));
  scheduler_.Finish(&active.sequence);
  active.stream->End({.reason = reason,
                      .error = std::move(error),
                      .usage = {.prompt_tokens = active.sequence.num_prompt_tokens(),
                                .completion_tokens = active.sequence.num_new_tokens(),
                                .reasoning_tokens = active.output.reasoning_tokens()}});
  active_.erase(&active.sequence);
}

void StepLoop::EndAll(const absl::Status& status) {
  while (!active_.empty()) End(*active_.begin()->second, FinishReason::kError, status);
}

void StepLoop::FillStats(EngineStats& stats) const {
  stats.num_queued += scheduler_.num_waiting();
  stats.num_running = scheduler_.num_running();
  stats.num_blocks = blocks_.num_blocks();
  stats.num_free_blocks = blocks_.num_free();
  stats.num_steps = num_steps_;
  stats.num_preemptions = scheduler_.num_preemptions();
  stats.num_prompt_tokens = num_prompt_tokens_;
  stats.num_new_tokens = num_new_tokens_;
}

absl::Status StepLoop::CheckIntegrity() const {
  RETURN_IF_ERROR(blocks_.CheckIntegrity());
  RETURN_IF_ERROR(scheduler_.CheckIntegrity());
  const int64_t known = scheduler_.num_waiting() + scheduler_.num_running();
  if (known != static_cast<int64_t>(active_.size())) {
    return absl::InternalError(
        absl::StrCat("the scheduler knows ", known, " sequences, the engine ", active_.size()));
  }
  return absl::OkStatus();
}

}  // namespace jevons
