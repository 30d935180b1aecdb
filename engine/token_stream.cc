#include "engine/token_stream.h"

#include <iterator>
#include <utility>

#include "base/check.h"

namespace jevons {
namespace {

size_t LogprobBytes(const std::vector<Logprobs>& logprobs) {
  size_t bytes = 0;
  for (const Logprobs& entry : logprobs) bytes += (1 + entry.top.size()) * sizeof(TokenLogprob);
  return bytes;
}

size_t DeltaBytes(const StreamDelta& delta) {
  return delta.text.size() + delta.token_ids.size() * sizeof(int32_t) +
         LogprobBytes(delta.logprobs) + LogprobBytes(delta.prompt_logprobs);
}

template <typename T>
void Append(std::vector<T>& to, std::vector<T>& from) {
  to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
}

void Merge(StreamDelta& to, StreamDelta& from) {
  to.text += from.text;
  Append(to.token_ids, from.token_ids);
  Append(to.logprobs, from.logprobs);
  Append(to.prompt_logprobs, from.prompt_logprobs);
}

}  // namespace

TokenStream::TokenStream(std::function<void()> ready, std::function<void()> cancel)
    : ready_(std::move(ready)), cancel_(std::move(cancel)) {}

void TokenStream::SetCancel(std::function<void()> cancel) {
  MutexLock lock(&mutex_);
  cancel_ = std::move(cancel);
}

void TokenStream::Push(StreamDelta delta) {
  if (DeltaBytes(delta) == 0) return;
  bool was_ready = false;
  {
    MutexLock lock(&mutex_);
    CHECK(!end_.has_value());
    was_ready = ReadyLocked();
    AppendLocked(std::move(delta));
  }
  if (!was_ready) Wake();
}

void TokenStream::End(StreamEnd end, StreamDelta rest) {
  bool was_ready = false;
  {
    MutexLock lock(&mutex_);
    CHECK(!end_.has_value());
    was_ready = ReadyLocked();
    if (DeltaBytes(rest) > 0) AppendLocked(std::move(rest));
    end_ = std::move(end);
  }
  if (!was_ready) Wake();
}

void TokenStream::AppendLocked(StreamDelta delta) {
  const size_t bytes = DeltaBytes(delta);
  if (!deltas_.empty() && deltas_.back().channel == delta.channel &&
      last_delta_bytes_ + bytes <= kMaxChunkBytes) {
    Merge(deltas_.back(), delta);
    last_delta_bytes_ += bytes;
  } else {
    deltas_.push_back(std::move(delta));
    last_delta_bytes_ = bytes;
  }
}

bool TokenStream::cancelled() const { return cancelled_.load(std::memory_order_relaxed); }

std::optional<StreamChunk> TokenStream::TakeChunk() {
  MutexLock lock(&mutex_);
  return TakeLocked();
}

std::optional<StreamChunk> TokenStream::WaitChunk(absl::Duration timeout) {
  const SteadyTime deadline = SteadyDeadline(timeout);
  MutexLock lock(&mutex_);
  while (!ReadyLocked() && !end_taken_) {
    if (!arrived_.WaitUntil(&mutex_, deadline)) break;
  }
  return TakeLocked();
}

void TokenStream::Cancel() {
  if (cancelled_.exchange(true, std::memory_order_relaxed)) return;
  std::function<void()> cancel;
  {
    MutexLock lock(&mutex_);
    cancel = cancel_;
  }
  if (cancel) cancel();
}

std::optional<StreamChunk> TokenStream::TakeLocked() {
  if (!ReadyLocked()) return std::nullopt;
  StreamChunk chunk;
  if (!deltas_.empty()) {
    chunk.delta = std::move(deltas_.front());
    deltas_.pop_front();
  }
  if (deltas_.empty() && end_.has_value()) {
    chunk.end = *end_;
    end_taken_ = true;
  }
  return chunk;
}

bool TokenStream::ReadyLocked() const {
  return !deltas_.empty() || (end_.has_value() && !end_taken_);
}

// Outside the lock, so that a reader that wakes need not wait for the one who woke it.
void TokenStream::Wake() {
  arrived_.NotifyAll();
  if (ready_) ready_();
}

}  // namespace jevons
