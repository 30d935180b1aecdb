#include "server/generate_output.h"

#include <cmath>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "server/cmd_input.h"

namespace jevons {
namespace {

// JSON has no infinity: a token that cannot be drawn has the probability null.
std::string FloatJson(float value) {
  return std::isfinite(value) ? absl::StrFormat("%.9g", value) : "null";
}

std::string LogprobJson(const Logprobs& entry) {
  const auto append = [](std::string* out, const TokenLogprob& token) {
    absl::StrAppend(out, "{\"id\": ", token.id, ", \"logprob\": ", FloatJson(token.logprob), "}");
  };
  return absl::StrCat("{\"id\": ", entry.chosen.id,
                      ", \"logprob\": ", FloatJson(entry.chosen.logprob), ", \"top\": [",
                      absl::StrJoin(entry.top, ", ", append), "]}");
}

std::string IdsJson(const std::vector<int32_t>& ids) {
  return absl::StrCat("[", absl::StrJoin(ids, ", "), "]");
}

template <typename T>
void Append(std::vector<T>& to, std::vector<T>& from) {
  to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
}

}  // namespace

void GenerationResult::Add(StreamChunk chunk) {
  (chunk.delta.channel == Channel::kThinking ? reasoning : text) += chunk.delta.text;
  Append(output_ids, chunk.delta.token_ids);
  Append(logprobs, chunk.delta.logprobs);
  Append(prompt_logprobs, chunk.delta.prompt_logprobs);
  if (chunk.end) end = *std::move(chunk.end);
}

std::string FinishReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kToolCalls:
      return "tool_calls";
    case FinishReason::kNone:
    case FinishReason::kCancelled:
    case FinishReason::kDeadline:
    case FinishReason::kError:
      break;
  }
  return "error";
}

std::string ResultJson(const GenerationResult& result, LogprobMode mode) {
  const Usage& usage = result.end.usage;
  std::string out = absl::StrCat(
      "{\"prompt_ids\": ", IdsJson(result.prompt_ids),
      ", \"output_ids\": ", IdsJson(result.output_ids), ", \"text\": ", JsonString(result.text),
      ", \"reasoning\": ", JsonString(result.reasoning), ", \"finish_reason\": \"",
      FinishReasonName(result.end.reason),
      "\", \"usage\": {\"prompt_tokens\": ", usage.prompt_tokens,
      ", \"completion_tokens\": ", usage.completion_tokens,
      ", \"reasoning_tokens\": ", usage.reasoning_tokens, "}, \"seed\": ", result.seed);
  if (mode == LogprobMode::kPrint) {
    const auto append = [](std::string* text, const Logprobs& entry) {
      *text += LogprobJson(entry);
    };
    absl::StrAppend(&out, ", \"logprobs\": [", absl::StrJoin(result.logprobs, ", ", append), "]");
  }
  return out + "}";
}

std::string ScoreJson(const GenerationResult& result) {
  const auto append = [](std::string* text, const Logprobs& entry) {
    *text += FloatJson(entry.chosen.logprob);
  };
  return absl::StrCat("{\"ids\": ", IdsJson(result.prompt_ids), ", \"logprobs\": [",
                      absl::StrJoin(result.prompt_logprobs, ", ", append), "]}");
}

}  // namespace jevons
