#include "engine/step_loop.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "engine/scheduler_request.h"

namespace jevons {

static_assert(UnknownTokenId(0) == DrawnId(0) && UnknownTokenId(7) == DrawnId(7));

bool BreaksGroup(const absl::Status& status) {
  return absl::IsAborted(status) || absl::IsDeadlineExceeded(status) || absl::IsUnavailable(status);
}

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

FinishReason StepLoop::Active::TakeGiven() {
  bool stopped = false;
  for (int32_t id : request.given.token_ids) {
    sequence.token_ids.push_back(id);
    stopped = output.Push(id).stopped;
  }
  num_prompt_scored = request.given.num_prompt_logprobs;
  if (stopped) return FinishReason::kStop;
  const bool full = sequence.num_new_tokens() >= sequence.request.max_new_tokens;
  return full ? FinishReason::kLength : FinishReason::kNone;
}

StepLoop::StepLoop(LoadedModel* model, const Clock* clock)
    : model_(model),
      clock_(clock),
      blocks_(model->num_blocks),
      prefixes_(&blocks_),
      scheduler_(MakeSchedulerConfig(model->options), &blocks_,
                 model->options.prefix_cache == PrefixCaching::kOn ? &prefixes_ : nullptr),
      overlaps_(model->options.overlap == StepOverlap::kAuto && model->runner->samples()) {}

void StepLoop::Admit(QueuedRequest queued) {
  Request scheduled = MakeSchedulerRequest(queued.id, queued.request, model_->limits);
  auto active = std::make_unique<Active>(std::move(queued), std::move(scheduled), *model_);
  Sequence* sequence = &active->sequence;
  const FinishReason reason = active->TakeGiven();
  active_.emplace(sequence, std::move(active));
  scheduler_.Add(sequence);
  if (reason != FinishReason::kNone) End(*active_.at(sequence), reason, absl::OkStatus());
}

void StepLoop::Break(const absl::Status& status) {
  broken_ = absl::UnavailableError(status.message());
  under_way_ = nullptr;
  scheduler_.StartOver();
}

void StepLoop::Step() {
  DropCancelledAndExpired();
  const Batch& batch = scheduler_.Schedule();
  StepWork& work = works_[num_steps_ % 2];
  if (!batch.empty()) {
    BeginStep(batch, work);
  } else if (model_->in_group()) {
    const absl::Status status = RunBatch(batch);
    if (!status.ok()) NoteFailure(status, 0);
  }
  // The device is busy meanwhile.
  if (under_way_ != nullptr) EndStep(*std::exchange(under_way_, nullptr));
  if (batch.empty() || !broken_.ok()) return;
  if (overlaps_ && work.is_queued) {
    under_way_ = &work;
  } else {
    EndStep(work);
  }
}

void StepLoop::BeginStep(const Batch& batch, StepWork& work) {
  ++num_steps_;
  work.batch = &batch;
  work.is_queued = false;
  work.status = Queue(work);
  scheduler_.Start();
}

absl::Status StepLoop::RunBatch(const Batch& batch) {
  return model_->runner->Run({.token_ids = batch.token_ids,
                              .positions = batch.positions,
                              .slot_mapping = batch.slot_mapping,
                              .cu_seqlens_q = batch.cu_seqlens_q,
                              .context_lens = batch.context_lens,
                              .block_tables = batch.block_tables,
                              .max_blocks = batch.max_blocks});
}

absl::Status StepLoop::Queue(StepWork& work) {
  const Batch& batch = *work.batch;
  RETURN_IF_ERROR(RunBatch(batch));
  if (!model_->runner->samples()) return absl::OkStatus();
  CollectRows(work);
  // Prompts that are scored may want more rows: those are waited for in slices, when the step ends.
  const auto max_rows = static_cast<size_t>(model_->runner->max_logits_rows());
  if (work.rows.size() > max_rows) return absl::OkStatus();
  if (!work.rows.empty()) {
    MakeSampleRequests(work, 0, work.rows.size());
    RETURN_IF_ERROR(model_->runner->QueueSamples(work.rows, sample_requests_));
  }
  work.is_queued = true;
  return absl::OkStatus();
}

void StepLoop::CollectRows(StepWork& work) {
  const Batch& batch = *work.batch;
  work.wanted.clear();
  work.rows.clear();
  int32_t num_sampled = 0;
  for (size_t i = 0; i < batch.entries.size(); ++i) {
    const BatchEntry& entry = batch.entries[i];
    if (!entry.samples) continue;
    const int32_t sampled_idx = num_sampled++;
    if (entry.sequence == nullptr) continue;
    work.wanted.push_back({.row = batch.cu_seqlens_q[i + 1] - 1,
                           .entry_idx = static_cast<int32_t>(i),
                           .position = entry.first_position + entry.num_tokens - 1,
                           .sampled_idx = sampled_idx});
  }
  for (size_t i = 0; i < batch.entries.size(); ++i) {
    const BatchEntry& entry = batch.entries[i];
    if (entry.sequence == nullptr) continue;
    const Active& active = ActiveOf(entry);
    if (active.request.num_prompt_logprobs < 0) continue;
    const int32_t end =
        std::min(entry.first_position + entry.num_tokens, active.sequence.num_prompt_tokens() - 1);
    for (int32_t position = std::max(entry.first_position, active.num_prompt_scored);
         position < end; ++position) {
      work.wanted.push_back({.row = batch.cu_seqlens_q[i] + position - entry.first_position,
                             .entry_idx = static_cast<int32_t>(i),
                             .position = position});
    }
  }
  for (const WantedRow& wanted : work.wanted) work.rows.push_back(wanted.row);
}

void StepLoop::NoteFailure(const absl::Status& status, int32_t num_tokens) {
  LogError("step_failed", {{"error", status.ToString()}, {"tokens", num_tokens}});
  if (model_->in_group() && BreaksGroup(status)) return Break(status);
  // What a device that failed still holds is not known, and other ranks have not got what they wait
  // for: nothing goes on.
  if (status.code() == absl::StatusCode::kInternal) {
    failure_ = absl::UnavailableError(absl::StrCat("the device failed: ", status.message()));
  } else if (model_->in_group()) {
    failure_ = absl::UnavailableError(status.message());
  }
}

void StepLoop::EndStep(StepWork& work) {
  const Batch& batch = *work.batch;
  const size_t num_entries = batch.entries.size();
  const auto num_sampled = std::count_if(batch.entries.begin(), batch.entries.end(),
                                         [](const BatchEntry& e) { return e.samples; });
  failed_.assign(num_entries, absl::OkStatus());
  logprobs_.resize(std::max(logprobs_.size(), num_entries));
  sampled_.assign(static_cast<size_t>(num_sampled), Scheduler::kSkip);
  const absl::Status status = work.status.ok() ? TakeResults(work) : work.status;
  if (!status.ok()) {
    NoteFailure(status, batch.num_tokens());
    if (!broken_.ok()) return;
    std::fill(failed_.begin(), failed_.end(), failure_.ok() ? status : failure_);
    scheduler_.Fail();
  } else {
    scheduler_.Update(sampled_);
  }
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
            absl::StrCat("the deadline passed after ", active->sequence.num_known_new_tokens(),
                         " of ", active->sequence.request.max_new_tokens, " new tokens")));
  }
}

absl::Status StepLoop::TakeResults(StepWork& work) {
  if (work.is_queued) {
    if (work.rows.empty()) return absl::OkStatus();
    ASSIGN_OR_RETURN(const std::span<const SampleResult> results, model_->runner->TakeSamples());
    UseSamples(work, 0, results);
    return absl::OkStatus();
  }
  // Sequences may have ended since.
  CollectRows(work);
  const auto max_rows = static_cast<size_t>(model_->runner->max_logits_rows());
  for (size_t begin = 0; begin < work.rows.size(); begin += max_rows) {
    const size_t end = std::min(begin + max_rows, work.rows.size());
    RETURN_IF_ERROR(model_->runner->samples() ? UseDeviceLogits(work, begin, end)
                                              : UseHostLogits(work, begin, end));
  }
  return absl::OkStatus();
}

absl::Status StepLoop::UseHostLogits(const StepWork& work, size_t begin, size_t end) {
  ASSIGN_OR_RETURN(const TensorView logits,
                   model_->runner->Logits(std::span(work.rows).subspan(begin, end - begin)));
  for (size_t i = begin; i < end; ++i) {
    const WantedRow& wanted = work.wanted[i];
    Active& active = ActiveOf(work.batch->entries[wanted.entry_idx]);
    const std::span<const float> row(logits.row<float>(static_cast<int64_t>(i - begin)),
                                     static_cast<size_t>(logits.dim(1)));
    if (wanted.sampled_idx < 0) {
      const int32_t next_id = active.sequence.token_ids[wanted.position + 1];
      PushPromptLogprobs(active, wanted.position,
                         ComputeLogprobs(row, next_id, active.request.num_prompt_logprobs));
      continue;
    }
    const auto token = SampleToken(row, model_->limits.num_tokens, active.request.sampling,
                                   NewTokenIdx(active, wanted));
    TakeToken(wanted, token);
    if (token.ok() && active.request.num_logprobs >= 0) {
      logprobs_[wanted.entry_idx].push_back(
          ComputeLogprobs(row, *token, active.request.num_logprobs));
    }
  }
  return absl::OkStatus();
}

absl::Status StepLoop::UseDeviceLogits(const StepWork& work, size_t begin, size_t end) {
  MakeSampleRequests(work, begin, end);
  ASSIGN_OR_RETURN(
      const std::span<const SampleResult> results,
      model_->runner->Sample(std::span(work.rows).subspan(begin, end - begin), sample_requests_));
  UseSamples(work, begin, results);
  return absl::OkStatus();
}

void StepLoop::MakeSampleRequests(const StepWork& work, size_t begin, size_t end) {
  sample_requests_.clear();
  for (size_t i = begin; i < end; ++i) {
    const WantedRow& wanted = work.wanted[i];
    const Active& active = ActiveOf(work.batch->entries[wanted.entry_idx]);
    SampleRequest& request = sample_requests_.emplace_back();
    request.params = &active.request.sampling;
    if (wanted.sampled_idx >= 0) {
      request.token_idx = NewTokenIdx(active, wanted);
      request.num_top = active.request.num_logprobs;
    } else {
      request.score_id = active.sequence.token_ids[wanted.position + 1];
      request.num_top = active.request.num_prompt_logprobs;
    }
  }
}

void StepLoop::UseSamples(const StepWork& work, size_t begin,
                          std::span<const SampleResult> results) {
  for (size_t i = 0; i < results.size(); ++i) {
    const WantedRow& wanted = work.wanted[begin + i];
    const BatchEntry& entry = work.batch->entries[wanted.entry_idx];
    if (entry.sequence == nullptr) continue;
    Active& active = ActiveOf(entry);
    const SampleResult& result = results[i];
    if (wanted.sampled_idx < 0) {
      PushPromptLogprobs(active, wanted.position, result);
    } else if (result.chosen.id < 0) {
      TakeToken(wanted, NotFinite(NewTokenIdx(active, wanted)));
    } else {
      TakeToken(wanted, result.chosen.id);
      if (active.request.num_logprobs >= 0) logprobs_[wanted.entry_idx].push_back(result);
    }
  }
}

void StepLoop::TakeToken(const WantedRow& wanted, absl::StatusOr<int32_t> token) {
  logprobs_[wanted.entry_idx].clear();
  if (token.ok()) {
    sampled_[wanted.sampled_idx] = *token;
  } else {
    failed_[wanted.entry_idx] = token.status();
  }
}

void StepLoop::PushPromptLogprobs(Active& active, int32_t position, Logprobs logprobs) {
  StreamDelta delta;
  delta.channel = active.output.channel();
  delta.prompt_logprobs.push_back(std::move(logprobs));
  active.stream->Push(std::move(delta));
  active.num_prompt_scored = position + 1;
}

void StepLoop::Emit(const Batch& batch) {
  const absl::Time now = clock_->Now();
  size_t num_sampled = 0;
  for (size_t i = 0; i < batch.entries.size(); ++i) {
    const BatchEntry& entry = batch.entries[i];
    const int32_t token_id = entry.samples ? sampled_[num_sampled++] : Scheduler::kSkip;
    if (entry.sequence == nullptr) continue;
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
    largest_token_gap_ = std::max(largest_token_gap_, now - active.last_token);
    active.last_token = now;
    OutputProcessor::Result result = active.output.Push(token_id);
    result.delta.logprobs = std::move(logprobs_[i]);
    active.stream->Push(std::move(result.delta));
    if (result.stopped) {
      End(active, FinishReason::kStop, absl::OkStatus());
    } else if (active.sequence.num_known_new_tokens() >= active.sequence.request.max_new_tokens) {
      End(active, FinishReason::kLength, absl::OkStatus());
    }
  }
}

void StepLoop::End(Active& active, FinishReason reason, absl::Status error) {
  scheduler_.Finish(&active.sequence);
  const int32_t num_cached = std::max(active.sequence.num_cached_tokens, 0);
  num_cached_tokens_ += num_cached;
  StreamEnd end = {.reason = reason,
                   .error = std::move(error),
                   .usage = {.prompt_tokens = active.sequence.num_prompt_tokens(),
                             .cached_tokens = num_cached,
                             .completion_tokens = active.sequence.num_new_tokens(),
                             .reasoning_tokens = active.output.reasoning_tokens()}};
  // After an error another engine may go on from the tokens.
  const bool ends_here = reason != FinishReason::kError;
  active.stream->End(std::move(end), ends_here ? active.output.Flush() : StreamDelta());
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
  stats.num_cached_tokens = num_cached_tokens_;
  stats.num_new_tokens = num_new_tokens_;
  stats.largest_token_gap = largest_token_gap_;
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
