#include "server/request_mapping.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/random.h"
#include "base/strings.h"
#include "server/error_text.h"

namespace jevons {
namespace {

using nlohmann::ordered_json;

constexpr std::array<std::string_view, 5> kRoles = {"system", "developer", "user", "assistant",
                                                    "tool"};
constexpr std::array<std::string_view, 5> kEfforts = {"none", "low", "medium", "high", "max"};
constexpr std::array<std::string_view, 5> kReservedArgs = {"messages", "tools", "reasoning_effort",
                                                           "thinking", "add_generation_prompt"};

constexpr int32_t kMaxTokens = 1'000'000'000;
constexpr size_t kMaxSaltBytes = 256;

template <size_t N>
bool Contains(const std::array<std::string_view, N>& list, std::string_view value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

template <size_t N>
absl::Status CheckOneOf(std::string_view field, const std::array<std::string_view, N>& list,
                        std::string_view value) {
  if (Contains(list, value)) return absl::OkStatus();
  const auto append = [](std::string* out, std::string_view s) { out->append(s); };
  return absl::InvalidArgumentError(absl::StrCat(ToAbsl(field), " must be one of ",
                                                 absl::StrJoin(list, ", ", append), ", given ",
                                                 QuoteValue(value)));
}

absl::StatusOr<ordered_json> ParseObject(std::string_view field, std::string_view text) {
  absl::StatusOr<ordered_json> value = ParseJson(text);
  if (!value.ok()) return Prefixed(absl::StrCat(ToAbsl(field), ": "), value.status());
  if (value->is_object()) return value;
  return absl::InvalidArgumentError(
      absl::StrCat(ToAbsl(field), " must be a JSON object, given ", QuoteValue(text)));
}

ordered_json MapMessage(const v1::ChatMessage& message) {
  ordered_json out = {{"role", message.role()}};
  if (message.has_content()) out["content"] = message.content();
  if (message.has_reasoning_content()) out["reasoning_content"] = message.reasoning_content();
  for (const v1::ToolCall& call : message.tool_calls()) {
    out["tool_calls"].push_back(
        {{"type", "function"},
         {"id", call.id()},
         {"function", {{"name", call.name()}, {"arguments", call.arguments()}}}});
  }
  if (message.has_tool_call_id()) out["tool_call_id"] = message.tool_call_id();
  if (message.has_name()) out["name"] = message.name();
  return out;
}

absl::Status MapThinking(const v1::Chat& chat, ordered_json& out) {
  if (!chat.has_reasoning_effort()) {
    if (chat.has_thinking()) out["thinking"] = chat.thinking();
    return absl::OkStatus();
  }
  const std::string& effort = chat.reasoning_effort();
  RETURN_IF_ERROR(CheckOneOf("chat.reasoning_effort", kEfforts, effort));
  const bool thinks = effort != "none";
  if (chat.has_thinking() && chat.thinking() != thinks) {
    return absl::InvalidArgumentError(absl::StrCat(
        "chat.thinking contradicts chat.reasoning_effort: thinking is ",
        chat.thinking() ? "true" : "false", ", reasoning_effort is ", QuoteValue(effort)));
  }
  out["reasoning_effort"] = effort;
  out["thinking"] = thinks;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> MapInput(const v1::GenerateRequest& request,
                                              const PromptBuilder& prompts) {
  switch (request.input_case()) {
    case v1::GenerateRequest::kText:
      if (request.text().empty()) {
        return absl::InvalidArgumentError("text must have at least 1 byte, given 0");
      }
      return prompts.FromText(request.text(), PromptBuilder::Bos::kAsTrained);
    case v1::GenerateRequest::kTokenIds: {
      const auto& ids = request.token_ids().ids();
      if (ids.empty()) {
        return absl::InvalidArgumentError("token_ids.ids must have at least 1 id, given 0");
      }
      std::vector<int32_t> out(ids.begin(), ids.end());
      RETURN_IF_ERROR(prompts.CheckIds("token_ids.ids", out));
      return out;
    }
    case v1::GenerateRequest::kChat: {
      ASSIGN_OR_RETURN(const ordered_json conversation, MapChat(request.chat()));
      ASSIGN_OR_RETURN(PromptBuilder::Rendered rendered,
                       prompts.FromConversation(conversation,
                                                {.trust_content = request.chat().trust_content()}));
      return std::move(rendered.ids);
    }
    case v1::GenerateRequest::INPUT_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("input is missing: set one of text, token_ids, chat");
}

SamplingParams MapSampling(const v1::Sampling& sampling, SamplingParams defaults, uint64_t seed) {
  SamplingParams out = std::move(defaults);
  if (sampling.has_temperature()) out.temperature = sampling.temperature();
  if (sampling.has_top_k()) out.top_k = sampling.top_k();
  if (sampling.has_top_p()) out.top_p = sampling.top_p();
  if (sampling.has_min_p()) out.min_p = sampling.min_p();
  out.seed = sampling.has_seed() ? sampling.seed() : seed;
  out.logit_bias.assign(sampling.logit_bias().begin(), sampling.logit_bias().end());
  std::sort(out.logit_bias.begin(), out.logit_bias.end());
  return out;
}

absl::StatusOr<uint64_t> MapCacheSalt(std::string_view salt) {
  if (salt.size() > kMaxSaltBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("cache_salt may have at most ", kMaxSaltBytes, " bytes, given ", salt.size()));
  }
  uint64_t out = 0;
  for (const char c : salt) out = RandomBits(out, static_cast<unsigned char>(c));
  return out;
}

// -1 is the engine's "none" and never the client's.
absl::StatusOr<int32_t> MapNumLogprobs(std::string_view field, bool present, int32_t value,
                                       int32_t limit) {
  if (!present) return -1;
  if (value >= 0 && value <= limit) return value;
  return absl::InvalidArgumentError(
      absl::StrCat(ToAbsl(field), " must be in [0, ", limit, "], given ", value));
}

}  // namespace

absl::Status CheckModel(std::string_view model, std::string_view served) {
  if (model.empty() || model == served) return absl::OkStatus();
  return absl::NotFoundError(
      absl::StrCat("model must be ", QuoteValue(served), " or empty, given ", QuoteValue(model)));
}

absl::StatusOr<ordered_json> MapChat(const v1::Chat& chat) {
  if (chat.messages().empty()) {
    return absl::InvalidArgumentError("chat.messages must have at least 1 message, given 0");
  }
  ordered_json out;
  out["messages"] = ordered_json::array();
  for (int i = 0; i < chat.messages_size(); ++i) {
    RETURN_IF_ERROR(
        CheckOneOf(absl::StrCat("chat.messages[", i, "].role"), kRoles, chat.messages(i).role()));
    out["messages"].push_back(MapMessage(chat.messages(i)));
  }
  for (int i = 0; i < chat.tools_size(); ++i) {
    ASSIGN_OR_RETURN(ordered_json tool,
                     ParseObject(absl::StrCat("chat.tools[", i, "]"), chat.tools(i)));
    out["tools"].push_back(std::move(tool));
  }
  RETURN_IF_ERROR(MapThinking(chat, out));
  if (chat.template_args().empty()) return out;
  ASSIGN_OR_RETURN(const ordered_json args,
                   ParseObject("chat.template_args", chat.template_args()));
  for (const auto& [key, value] : args.items()) {
    if (Contains(kReservedArgs, key)) {
      return absl::InvalidArgumentError(
          absl::StrCat("chat.template_args must not name ", key, ", which has a field of its own"));
    }
    out[key] = value;
  }
  return out;
}

absl::StatusOr<GenerationRequest> MapGenerateRequest(const v1::GenerateRequest& request,
                                                     const PromptBuilder& prompts,
                                                     const CallDefaults& defaults) {
  const GenerationLimits& limits = prompts.engine().limits();
  RETURN_IF_ERROR(CheckModel(request.model(), prompts.engine().options().model_name));
  GenerationRequest out;
  if (request.has_max_tokens()) {
    if (request.max_tokens() < 1 || request.max_tokens() > kMaxTokens) {
      return absl::InvalidArgumentError(absl::StrCat("max_tokens must be in [1, ", kMaxTokens,
                                                     "], given ", request.max_tokens()));
    }
    out.max_new_tokens = request.max_tokens();
  }
  ASSIGN_OR_RETURN(out.num_logprobs, MapNumLogprobs("logprobs", request.has_logprobs(),
                                                    request.logprobs(), limits.max_logprobs));
  ASSIGN_OR_RETURN(out.num_prompt_logprobs,
                   MapNumLogprobs("prompt_logprobs", request.has_prompt_logprobs(),
                                  request.prompt_logprobs(), limits.max_logprobs));
  out.sampling = MapSampling(request.sampling(), prompts.DefaultSampling(), defaults.seed);
  out.stop.assign(request.stop().begin(), request.stop().end());
  out.ignore_eos = request.ignore_eos();
  ASSIGN_OR_RETURN(out.cache_salt, MapCacheSalt(request.cache_salt()));
  out.deadline = defaults.deadline;
  // Last, because it may be the most work.
  ASSIGN_OR_RETURN(out.prompt_ids, MapInput(request, prompts));
  return out;
}

}  // namespace jevons
