#include "server/prompt.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/strings.h"

namespace jevons {

PromptBuilder::PromptBuilder(const Engine* engine) : engine_(engine) {
  const Tokenizer& tokenizer = engine->tokenizer();
  for (int32_t id = 0; id < tokenizer.num_tokens(); ++id) {
    max_token_bytes_ = std::max(max_token_bytes_, tokenizer.TokenBytes(id).size());
  }
}

absl::StatusOr<std::vector<int32_t>> PromptBuilder::FromText(std::string_view text, Bos bos) const {
  RETURN_IF_ERROR(CheckLength("text", text.size()));
  ASSIGN_OR_RETURN(std::vector<int32_t> ids, engine_->tokenizer().Encode(text));
  const int32_t bos_id = engine_->config().bos_token_id;
  const bool wanted = bos == Bos::kAsTrained && bos_id >= 0;
  if (wanted && (ids.empty() || ids.front() != bos_id)) ids.insert(ids.begin(), bos_id);
  return ids;
}

absl::StatusOr<PromptBuilder::Rendered> PromptBuilder::FromConversation(
    const nlohmann::ordered_json& conversation, const ChatOptions& options) const {
  ASSIGN_OR_RETURN(RenderedPrompt prompt, engine_->chat_format().Render(conversation, options));
  RETURN_IF_ERROR(CheckLength("the rendered conversation", prompt.text.size()));
  Rendered out;
  ASSIGN_OR_RETURN(out.ids, engine_->tokenizer().Encode(prompt.text, prompt.barriers));
  out.text = std::move(prompt.text);
  return out;
}

absl::Status PromptBuilder::CheckIds(std::string_view field, std::span<const int32_t> ids) const {
  const int32_t limit = engine_->limits().num_tokens;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < limit) continue;
    return absl::InvalidArgumentError(absl::StrCat(ToAbsl(field), "[", i, "] must be in [0, ",
                                                   limit, "), the vocabulary, given ", ids[i]));
  }
  return absl::OkStatus();
}

SamplingParams PromptBuilder::DefaultSampling() const {
  const ModelConfig& config = engine_->config();
  SamplingParams out;
  if (config.default_temperature >= 0) {
    out.temperature = static_cast<float>(config.default_temperature);
  }
  if (config.default_top_p >= 0) out.top_p = static_cast<float>(config.default_top_p);
  if (config.default_top_k >= 0) out.top_k = config.default_top_k;
  return out;
}

absl::Status PromptBuilder::CheckLength(std::string_view what, size_t num_bytes) const {
  if (max_token_bytes_ == 0) return absl::OkStatus();
  const int32_t max_tokens = engine_->limits().max_model_len;
  const size_t min_tokens = num_bytes / max_token_bytes_;
  if (min_tokens < static_cast<size_t>(max_tokens)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(ToAbsl(what), " must have fewer than ", max_tokens,
                                                 " tokens (max_model_len), given ", num_bytes,
                                                 " bytes, at least ", min_tokens, " tokens"));
}

}  // namespace jevons
