#include "engine/generation.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "model/tokenizer.h"

namespace jevons {
namespace {

constexpr int32_t kMaxNewTokens = 1'000'000'000;
constexpr size_t kMaxShownBytes = 200;  // of a value in an error text
constexpr float kMaxLogitBias = 100;

template <typename... Args>
absl::Status Invalid(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

// Enough digits to tell a float from its neighbours, so that no value looks like the limit that it
// breaks.
std::string Number(float value) { return absl::StrFormat("%.9g", value); }

std::string Shown(const std::string& value) {
  const std::string head = value.substr(0, kMaxShownBytes);
  return absl::StrCat("\"", absl::Utf8SafeCEscape(head), "\"",
                      value.size() > kMaxShownBytes ? "..." : "", " (", value.size(), " bytes)");
}

absl::Status CheckTokenId(const std::string& field, int32_t id, const GenerationLimits& limits) {
  if (id < 0 || id >= limits.vocab_size) {
    return Invalid(field, " is ", id, ", outside the vocabulary [0, ", limits.vocab_size, ")");
  }
  if (id >= limits.num_tokens) {
    return Invalid(field, " is ", id, ", an id without a token; the tokenizer's are [0, ",
                   limits.num_tokens, ")");
  }
  return absl::OkStatus();
}

absl::Status CheckPrompt(const std::vector<int32_t>& prompt_ids, const GenerationLimits& limits) {
  const auto num_prompt = static_cast<int64_t>(prompt_ids.size());
  if (num_prompt == 0) return Invalid("prompt_ids must hold at least 1 token, but is empty");
  if (num_prompt > int64_t{limits.max_model_len} - 1) {
    return Invalid("prompt_ids has ", num_prompt, " tokens; with at least 1 new token it must fit ",
                   "max_model_len ", limits.max_model_len, ", so the limit is ",
                   limits.max_model_len - 1);
  }
  if (num_prompt + 1 > limits.kv_cache_tokens) {
    return Invalid("prompt_ids and 1 new token need ", num_prompt + 1,
                   " tokens of KV cache, but the whole pool has ", limits.kv_cache_tokens);
  }
  for (size_t i = 0; i < prompt_ids.size(); ++i) {
    const int32_t id = prompt_ids[i];
    if (id >= 0 && id < std::min(limits.vocab_size, limits.num_tokens)) continue;
    return CheckTokenId(absl::StrCat("prompt_ids[", i, "]"), id, limits);
  }
  return absl::OkStatus();
}

// Written so that NaN is out of range.
absl::Status CheckSampling(const SamplingParams& sampling) {
  if (!(sampling.temperature >= 0) || std::isinf(sampling.temperature)) {
    return Invalid("temperature must be finite and at least 0, but is ",
                   Number(sampling.temperature));
  }
  if (sampling.top_k < 0) {
    return Invalid("top_k must be at least 0 (0: all), but is ", sampling.top_k);
  }
  if (!(sampling.top_p > 0 && sampling.top_p <= 1)) {
    return Invalid("top_p must be in (0, 1], but is ", Number(sampling.top_p));
  }
  if (!(sampling.min_p >= 0 && sampling.min_p <= 1)) {
    return Invalid("min_p must be in [0, 1], but is ", Number(sampling.min_p));
  }
  return absl::OkStatus();
}

absl::Status CheckLogitBias(const std::vector<std::pair<int32_t, float>>& logit_bias,
                            const GenerationLimits& limits) {
  if (logit_bias.size() > static_cast<size_t>(limits.max_logit_bias)) {
    return Invalid("logit_bias may have at most ", limits.max_logit_bias, " entries, but has ",
                   logit_bias.size());
  }
  std::vector<int32_t> ids;
  ids.reserve(logit_bias.size());
  for (size_t i = 0; i < logit_bias.size(); ++i) {
    const auto [id, bias] = logit_bias[i];
    RETURN_IF_ERROR(CheckTokenId(absl::StrCat("the token id of logit_bias[", i, "]"), id, limits));
    if (!(std::abs(bias) <= kMaxLogitBias)) {
      return Invalid("logit_bias of token ", id, " must be in [", -kMaxLogitBias, ", ",
                     kMaxLogitBias, "], but is ", Number(bias));
    }
    ids.push_back(id);
  }
  std::sort(ids.begin(), ids.end());
  const auto twice = std::adjacent_find(ids.begin(), ids.end());
  if (twice == ids.end()) return absl::OkStatus();
  return Invalid("logit_bias may name a token once, but has token ", *twice, " more than once");
}

absl::Status CheckStop(const std::vector<std::string>& stop, const GenerationLimits& limits) {
  if (stop.size() > static_cast<size_t>(limits.max_stop_strings)) {
    return Invalid("stop may have at most ", limits.max_stop_strings, " strings, but has ",
                   stop.size());
  }
  for (size_t i = 0; i < stop.size(); ++i) {
    if (stop[i].empty()) return Invalid("stop[", i, "] must have at least 1 byte, but is empty");
    if (stop[i].size() > static_cast<size_t>(limits.max_stop_bytes)) {
      return Invalid("stop[", i, "] may have at most ", limits.max_stop_bytes, " bytes, but is ",
                     Shown(stop[i]));
    }
    const std::optional<size_t> bad = FindInvalidUtf8(stop[i]);
    if (!bad.has_value()) continue;
    return Invalid("stop[", i, "] must be well-formed UTF-8, but is not at byte ", *bad, ": ", "\"",
                   absl::CHexEscape(stop[i].substr(0, kMaxShownBytes)), "\" (", stop[i].size(),
                   " bytes)");
  }
  return absl::OkStatus();
}

absl::Status CheckNumLogprobs(const char* field, int32_t value, const GenerationLimits& limits) {
  if (value >= -1 && value <= limits.max_logprobs) return absl::OkStatus();
  return Invalid(field, " must be in [-1, ", limits.max_logprobs, "] (-1: none), but is ", value);
}

}  // namespace

absl::Status ValidateGeneration(const GenerationRequest& request, const GenerationLimits& limits) {
  RETURN_IF_ERROR(CheckPrompt(request.prompt_ids, limits));
  if (request.max_new_tokens < 0 || request.max_new_tokens > kMaxNewTokens) {
    return Invalid("max_new_tokens must be in [0, ", kMaxNewTokens,
                   "] (0: as many as fit), but is ", request.max_new_tokens);
  }
  RETURN_IF_ERROR(CheckSampling(request.sampling));
  RETURN_IF_ERROR(CheckLogitBias(request.sampling.logit_bias, limits));
  RETURN_IF_ERROR(CheckStop(request.stop, limits));
  RETURN_IF_ERROR(CheckNumLogprobs("num_logprobs", request.num_logprobs, limits));
  return CheckNumLogprobs("num_prompt_logprobs", request.num_prompt_logprobs, limits);
}

}  // namespace jevons
