// One request's way out of the engine.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "base/mutex.h"
#include "engine/generation.h"
#include "scheduler/request.h"

namespace jevons {

// Where a piece of output belongs.
enum class Channel { kThinking, kAnswer };

// One token's contribution. Text may be empty (half a character, a control token, a possible stop
// string held back).
struct StreamDelta {
  Channel channel = Channel::kAnswer;
  std::string text = {};
  std::vector<int32_t> token_ids = {};
  std::vector<Logprobs> logprobs = {};         // one per token id where asked
  std::vector<Logprobs> prompt_logprobs = {};  // entries for prompt tokens 1, 2, ... in order
};

struct StreamEnd {
  FinishReason reason = FinishReason::kNone;
  absl::Status error = {};  // set for kError, kCancelled, kDeadline
  Usage usage = {};
};

// What a reader takes: one or more deltas of one channel merged, and the end where it has come.
struct StreamChunk {
  StreamDelta delta;
  std::optional<StreamEnd> end;
};

// Thread-safe. The engine pushes and ends; one reader takes. Holds at most what the request's
// max_new_tokens allow, so the engine never waits for a reader.
class TokenStream {
 public:
  // `ready` is called, on the engine thread, each time something can be taken after nothing could;
  // it must not block and must not call back into the stream. `cancel` is called by the first Cancel,
  // for an engine that does not look by itself. Both may be empty.
  explicit TokenStream(std::function<void()> ready = {}, std::function<void()> cancel = {});

  // Engine side. Exactly one End; nothing after it. An empty delta is dropped. `rest` is taken with the
  // end, never without.
  void Push(StreamDelta delta);
  void End(StreamEnd end, StreamDelta rest = {});
  bool cancelled() const;
  // For a request that another engine takes over. It looks at cancelled() afterwards: a Cancel in
  // between may have called the one before.
  void SetCancel(std::function<void()> cancel);

  // Reader side. What is there, merged while the channel stays and the chunk is below
  // kMaxChunkBytes; nothing if nothing is. The chunk that carries `end` is the last one.
  std::optional<StreamChunk> TakeChunk();
  // As TakeChunk, waiting up to `timeout` for something to be there. Nothing, at once, after the
  // last chunk.
  std::optional<StreamChunk> WaitChunk(absl::Duration timeout);
  // Asks the engine to end the request at its next step. The stream still gets its End.
  void Cancel();

  static constexpr size_t kMaxChunkBytes = 1 << 20;

 private:
  void AppendLocked(StreamDelta delta) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::optional<StreamChunk> TakeLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool ReadyLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Wake();

  const std::function<void()> ready_;
  std::atomic<bool> cancelled_ = false;
  mutable Mutex mutex_;
  CondVar arrived_;
  std::function<void()> cancel_ ABSL_GUARDED_BY(mutex_);
  // Merged as they come: one for each chunk that is still to be taken.
  std::deque<StreamDelta> deltas_ ABSL_GUARDED_BY(mutex_);
  size_t last_delta_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::optional<StreamEnd> end_ ABSL_GUARDED_BY(mutex_);
  bool end_taken_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace jevons
