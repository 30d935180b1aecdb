#include "server/response_mapping.h"

#include <utility>

#include "base/check.h"

namespace jevons {
namespace {

// Upper bounds of what one entry takes on the wire.
constexpr size_t kTokenIdBytes = 10;
constexpr size_t kTokenLogprobBytes = 20;

size_t LogprobsBytes(const Logprobs& logprobs) {
  return kTokenLogprobBytes * (2 + logprobs.top.size());
}

void SetTokenLogprob(const TokenLogprob& in, v1::TokenLogprob* out) {
  out->set_token_id(in.id);
  out->set_logprob(in.logprob);
}

void SetLogprobs(const Logprobs& in, v1::Logprobs* out) {
  SetTokenLogprob(in.chosen, out->mutable_chosen());
  for (const TokenLogprob& token : in.top) SetTokenLogprob(token, out->add_top());
}

// Fills messages one after the other.
class MessageList {
 public:
  explicit MessageList(Channel channel) : channel_(channel) {}

  // The message that the next `bytes` go to. `with_piece`: it says which channel its tokens are of.
  enum class Piece { kNone, kChannel };
  v1::GenerateResponse& Room(size_t bytes, Piece piece) {
    if (messages_.empty() || used_ + bytes > kMaxResponseBytes) {
      messages_.emplace_back();
      used_ = 0;
    }
    used_ += bytes;
    v1::GenerateResponse& message = messages_.back();
    if (piece == Piece::kChannel && message.piece_case() == v1::GenerateResponse::PIECE_NOT_SET) {
      *MutablePiece(message) = "";
    }
    return message;
  }
  std::string* MutablePiece(v1::GenerateResponse& message) const {
    return channel_ == Channel::kThinking ? message.mutable_thinking() : message.mutable_answer();
  }
  std::vector<v1::GenerateResponse> Take() { return std::move(messages_); }

 private:
  const Channel channel_;
  std::vector<v1::GenerateResponse> messages_;
  size_t used_ = 0;
};

v1::FinishReason MapReason(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case FinishReason::kToolCalls:
      return v1::FINISH_REASON_TOOL_CALLS;
    case FinishReason::kNone:
    case FinishReason::kCancelled:
    case FinishReason::kDeadline:
    case FinishReason::kError:
      break;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

}  // namespace

std::vector<v1::GenerateResponse> MapChunk(StreamChunk chunk, TokenIdMode mode) {
  using Piece = MessageList::Piece;
  StreamDelta& delta = chunk.delta;
  MessageList messages(delta.channel);
  for (const Logprobs& logprobs : delta.prompt_logprobs) {
    SetLogprobs(logprobs,
                messages.Room(LogprobsBytes(logprobs), Piece::kNone).add_prompt_logprobs());
  }
  // One chunk's text is bounded by TokenStream::kMaxChunkBytes and one token's.
  if (!delta.text.empty()) {
    v1::GenerateResponse& message = messages.Room(delta.text.size(), Piece::kChannel);
    *messages.MutablePiece(message) = std::move(delta.text);
  }
  const bool has_logprobs = delta.logprobs.size() == delta.token_ids.size();
  for (size_t i = 0; i < delta.token_ids.size(); ++i) {
    const size_t bytes = kTokenIdBytes + (has_logprobs ? LogprobsBytes(delta.logprobs[i]) : 0);
    v1::GenerateResponse& message = messages.Room(bytes, Piece::kChannel);
    if (mode == TokenIdMode::kReturn) message.add_token_ids(delta.token_ids[i]);
    if (has_logprobs) SetLogprobs(delta.logprobs[i], message.add_logprobs());
  }
  if (chunk.end && EndStatus(*chunk.end).ok()) {
    v1::GenerateResponse& message = messages.Room(0, Piece::kNone);
    message.set_finish_reason(MapReason(chunk.end->reason));
    message.mutable_usage()->set_prompt_tokens(chunk.end->usage.prompt_tokens);
    message.mutable_usage()->set_completion_tokens(chunk.end->usage.completion_tokens);
    message.mutable_usage()->set_reasoning_tokens(chunk.end->usage.reasoning_tokens);
    message.mutable_usage()->set_cached_tokens(chunk.end->usage.cached_tokens);
  }
  return messages.Take();
}

absl::Status EndStatus(const StreamEnd& end) {
  switch (end.reason) {
    case FinishReason::kStop:
    case FinishReason::kLength:
    case FinishReason::kToolCalls:
      return absl::OkStatus();
    case FinishReason::kCancelled:
      return end.error.ok() ? absl::CancelledError("the request was cancelled") : end.error;
    case FinishReason::kDeadline:
      return end.error.ok() ? absl::DeadlineExceededError("the deadline has passed") : end.error;
    case FinishReason::kNone:
    case FinishReason::kError:
      break;
  }
  return end.error.ok() ? absl::InternalError("the engine ended the request without a reason")
                        : end.error;
}

v1::GetStatusResponse MapHealth(const Health& health) {
  v1::GetStatusResponse out;
  out.set_ready(health.ready);
  out.set_progresses(health.progresses);
  out.set_reason(health.reason);
  for (const Health::Rank& rank : health.ranks) {
    const EngineStats& stats = rank.known.stats;
    v1::RankStatus& status = *out.add_ranks();
    status.set_rank(rank.known.rank);
    status.set_lost(std::string(rank.known.failure.message()));
    status.set_progresses(rank.progresses);
    status.set_step_age_ms(absl::ToInt64Milliseconds(stats.step_age));
    if (stats.place.waits_for >= 0) status.set_waits_for(stats.place.waits_for);
    status.set_num_running(stats.num_running);
    status.set_num_queued(stats.num_queued);
    status.set_num_blocks(stats.num_blocks);
    status.set_num_free_blocks(stats.num_free_blocks);
    status.set_num_steps(stats.num_steps);
    status.set_num_prompt_tokens(stats.num_prompt_tokens);
    status.set_num_new_tokens(stats.num_new_tokens);
    status.set_largest_token_gap_ms(absl::ToInt64Milliseconds(stats.largest_token_gap));
  }
  return out;
}

}  // namespace jevons
