#include "model/chat_format.h"

#include <algorithm>
#include <ctime>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/strings.h"
#include "model/chat_barriers.h"
#include "model/chat_messages.h"
#include "model/chat_probe.h"
#include "model/error_text.h"
#include "model/file.h"
#include "model/jinja.h"

namespace jevons {
namespace {

using Json = nlohmann::ordered_json;
using jinja::Origin;
using jinja::OriginSpan;
using jinja::Text;
using jinja::Value;
using jinja::Variables;

constexpr int64_t kMaxConfigBytes = int64_t{64} << 20;
constexpr std::string_view kThinkStart = "<think>", kThinkEnd = "</think>";
constexpr const char* kConfigName = "tokenizer_config.json";
constexpr const char* kTemplateName = "chat_template.jinja";
// The named special tokens that transformers hands to templates.
constexpr const char* kSpecialTokens[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                          "pad_token", "cls_token", "mask_token"};

std::tm LocalNow() {
  std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  return local;
}

absl::Status ConfigError(std::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(kConfigName, ": ", ToAbsl(what)));
}

// A special token is given as a string or as an object with its content; null and absent are the
// same.
absl::StatusOr<std::optional<std::string>> SpecialToken(const Json& config, const char* name) {
  auto it = config.find(name);
  if (it == config.end() || it->is_null()) return std::optional<std::string>();
  if (it->is_string()) return std::optional<std::string>(it->get<std::string>());
  if (it->is_object() && it->contains("content") && (*it)["content"].is_string()) {
    return std::optional<std::string>((*it)["content"].get<std::string>());
  }
  return ConfigError(absl::StrCat(name, " is neither a string nor an object with content"));
}

// The template's text; nothing if the checkpoint has none.
absl::StatusOr<std::optional<std::string>> TemplateText(const std::string& folder,
                                                        const Json& config) {
  std::string path = absl::StrCat(folder, "/", kTemplateName);
  if (PathExists(path)) {
    ASSIGN_OR_RETURN(std::string text, ReadTextFile(path, kMaxConfigBytes));
    return std::optional<std::string>(std::move(text));
  }
  auto it = config.find("chat_template");
  if (it == config.end() || it->is_null()) return std::optional<std::string>();
  if (it->is_string()) return std::optional<std::string>(it->get<std::string>());
  if (!it->is_array()) return ConfigError("chat_template is neither a string nor a list");
  for (const Json& named : *it) {
    bool is_named = named.is_object() && named.contains("name") && named.contains("template") &&
                    named["template"].is_string();
    if (is_named && named["name"] == "default")
      return std::optional<std::string>(named["template"].get<std::string>());
  }
  return ConfigError("chat_template has no template of the name \"default\"");
}

bool EndsWith(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

class TemplateChatFormat : public ChatFormat {
 public:
  absl::Status LoadFrom(const std::string& folder, const Tokenizer& tokenizer) {
    std::vector<std::string> spellings;
    for (const AddedToken& token : tokenizer.added_tokens()) spellings.push_back(token.content);
    spellings_ = TokenSpellings(spellings);
    think_start_id_ = tokenizer.FindToken(kThinkStart).value_or(-1);
    think_end_id_ = tokenizer.FindToken(kThinkEnd).value_or(-1);
    Json config = Json::object();
    std::string path = absl::StrCat(folder, "/", kConfigName);
    if (PathExists(path)) {
      ASSIGN_OR_RETURN(std::string text, ReadTextFile(path, kMaxConfigBytes));
      auto parsed = ParseJson(text);
      if (!parsed.ok()) return ConfigError(ToStd(parsed.status().message()));
      if (!parsed->is_object()) return ConfigError("expected an object");
      config = *std::move(parsed);
    }
    for (const char* name : kSpecialTokens) {
      ASSIGN_OR_RETURN(std::optional<std::string> token, SpecialToken(config, name));
      if (!token) continue;
      if (std::string_view(name) == "eos_token") AddTurnEnd(tokenizer, *token);
      special_tokens_.emplace_back(name, Value::OfString(*std::move(token)));
    }
    ASSIGN_OR_RETURN(std::optional<std::string> text, TemplateText(folder, config));
    return text ? UseTemplate(*text, tokenizer) : absl::OkStatus();
  }

  absl::StatusOr<RenderedPrompt> Render(const Json& conversation,
                                        const ChatOptions& options) const override {
    if (!template_) return absl::FailedPreconditionError("this checkpoint has no chat template");
    ASSIGN_OR_RETURN(Conversation read, ReadConversation(conversation, tool_call_style_));
    Text text;
    if (read.continuation) {
      ASSIGN_OR_RETURN(text, RenderContinuation(std::move(read)));
    } else {
      bool prompts = read.add_generation_prompt.value_or(options.add_generation_prompt);
      ASSIGN_OR_RETURN(text, RenderText(std::move(read), prompts));
    }
    RenderedPrompt prompt;
    if (!options.trust_content) prompt.barriers = spellings_.Barriers(text);
    prompt.text = text.bytes();
    return prompt;
  }

 private:
  absl::Status UseTemplate(const std::string& text, const Tokenizer& tokenizer) {
    ASSIGN_OR_RETURN(template_, jinja::Template::Parse(text));
    has_template_ = true;
    tool_call_style_ = ProbeToolCalls(*template_, special_tokens_);
    std::string turn_end = ProbeTurnEnd(*template_, special_tokens_);
    AddTurnEnd(tokenizer, std::string(spellings_.FindFirst(turn_end, 0)));
    return absl::OkStatus();
  }

  void AddTurnEnd(const Tokenizer& tokenizer, const std::string& token) {
    std::optional<int32_t> id = tokenizer.FindToken(token);
    bool is_new =
        id && std::find(turn_end_ids_.begin(), turn_end_ids_.end(), *id) == turn_end_ids_.end();
    if (is_new) turn_end_ids_.push_back(*id);
  }

  absl::StatusOr<Text> RenderText(Conversation read, bool add_generation_prompt) const {
    Variables variables = std::move(read.variables);
    auto add_default = [&](const std::string& name, Value value) {
      bool is_given = std::any_of(variables.begin(), variables.end(),
                                  [&](const auto& v) { return v.first == name; });
      if (!is_given) variables.emplace_back(name, std::move(value));
    };
    for (const auto& [name, value] : special_tokens_) add_default(name, value);
    add_default("tools", Value());
    add_default("documents", Value());
    ASSIGN_OR_RETURN(Value messages, Value::OfList(std::move(read.messages)));
    variables.emplace_back("messages", std::move(messages));
    variables.emplace_back("add_generation_prompt", Value(add_generation_prompt));
    return template_->Render(std::move(variables), LocalNow);
  }

  absl::StatusOr<Text> RenderContinuation(Conversation read) const {
    Continuation continuation = *std::move(read.continuation);
    if (continuation.reasoning) return RenderAfterReasoning(std::move(read), continuation);
    std::string path = absl::StrCat("messages[", continuation.message_idx, "]");
    if (continuation.answer.empty()) {
      RETURN_IF_ERROR(DropLastMessage(&read, path));
      return RenderText(std::move(read), true);
    }
    ASSIGN_OR_RETURN(Text text, RenderText(std::move(read), false));
    auto it = std::find_if(text.spans().rbegin(), text.spans().rend(), [](const OriginSpan& span) {
      return span.origin == Origin::kContinued;
    });
    if (it == text.spans().rend()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ".prefix: the template leaves this content out"));
    }
    return text.Part(0, it->end);
  }

  static absl::Status DropLastMessage(Conversation* read, const std::string& path) {
    read->messages.pop_back();
    if (!read->messages.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(path, ".prefix: there is no message before this one"));
  }

  // The thinking goes on right behind the tag that the template opens for it.
  absl::StatusOr<Text> RenderAfterReasoning(Conversation read,
                                            const Continuation& continuation) const {
    std::string path = absl::StrCat("messages[", continuation.message_idx, "]");
    RETURN_IF_ERROR(DropLastMessage(&read, path));
    ASSIGN_OR_RETURN(Text text, RenderText(std::move(read), true));
    jinja::ByteRange visible = jinja::StripRange(text.bytes(), std::nullopt, false, true);
    std::string_view tail = std::string_view(text.bytes()).substr(0, visible.end);
    if (EndsWith(tail, kThinkStart)) {
      text.Append(*continuation.reasoning);
      if (continuation.closes_reasoning) text.Append(kThinkEnd);
    } else if (!EndsWith(tail, kThinkEnd) || !continuation.closes_reasoning) {
      return absl::InvalidArgumentError(absl::StrCat(
          path,
          ".prefix: thinking cannot be continued, because this prompt does not end by opening it"));
    }
    text.Append(continuation.answer);
    return text;
  }

  std::optional<jinja::Template> template_;
  Variables special_tokens_;
  TokenSpellings spellings_;
  ToolCallStyle tool_call_style_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ChatFormat>> ChatFormat::Load(const std::string& folder,
                                                             const Tokenizer& tokenizer) {
  auto format = std::make_unique<TemplateChatFormat>();
  RETURN_IF_ERROR(format->LoadFrom(folder, tokenizer));
  return std::unique_ptr<ChatFormat>(std::move(format));
}

bool ChatFormat::StartsInThinking(std::span<const int32_t> prompt_ids) const {
  for (auto it = prompt_ids.rbegin(); it != prompt_ids.rend(); ++it) {
    if (*it == think_start_id_) return think_start_id_ >= 0;
    if (*it == think_end_id_) return false;
  }
  return false;
}

}  // namespace jevons
