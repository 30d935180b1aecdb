#include "model/chat_probe.h"

#include <ctime>
#include <optional>
#include <utility>

namespace jevons {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kArguments = R"({"city": "Oslo"})";

std::optional<std::string> RenderProbe(const jinja::Template& chat_template,
                                       const jinja::Variables& special_tokens,
                                       const Json& messages) {
  auto value = jinja::FromJson(messages, jinja::Origin::kTemplate);
  if (!value.ok()) return std::nullopt;
  jinja::Variables variables = special_tokens;
  variables.emplace_back("messages", *std::move(value));
  variables.emplace_back("tools", jinja::Value());
  variables.emplace_back("documents", jinja::Value());
  variables.emplace_back("add_generation_prompt", jinja::Value(false));
  auto text = chat_template.Render(std::move(variables), [] { return std::tm{}; });
  if (!text.ok()) return std::nullopt;
  return text->bytes();
}

Json CallConversation(Json arguments, Json content) {
  constexpr const char* kCallId =
      "call00001";  // nine letters and digits, which Mistral's templates insist on
  Json call = {{"id", kCallId},
               {"type", "function"},
               {"function", {{"name", "weather"}, {"arguments", std::move(arguments)}}}};
  return Json::array(
      {Json{{"role", "user"}, {"content", "?"}},
       Json{{"role", "assistant"},
            {"content", std::move(content)},
            {"tool_calls", Json::array({call})}},
       Json{{"role", "tool"}, {"tool_call_id", kCallId}, {"name", "weather"}, {"content", "7 C"}},
       Json{{"role", "assistant"}, {"content", "7 C."}}, Json{{"role", "user"}, {"content", "?"}}});
}

}  // namespace

ToolCallStyle ProbeToolCalls(const jinja::Template& chat_template,
                             const jinja::Variables& special_tokens) {
  // Some templates show a call only beside null content, some fail there.
  bool null_fails = false;
  for (const Json& content : {Json(), Json("")}) {
    bool wants_empty = null_fails && !content.is_null();
    auto as_text =
        RenderProbe(chat_template, special_tokens, CallConversation(kArguments, content));
    if (as_text && as_text->find(kArguments) != std::string::npos) {
      return {ArgumentForm::kAsGiven, wants_empty};
    }
    auto as_object =
        RenderProbe(chat_template, special_tokens, CallConversation({{"city", "Oslo"}}, content));
    if (as_object && as_object->find("Oslo") != std::string::npos) {
      return {ArgumentForm::kObject, wants_empty};
    }
    null_fails = !as_text && !as_object;
  }
  return {};
}

std::string ProbeTurnEnd(const jinja::Template& chat_template,
                         const jinja::Variables& special_tokens) {
  constexpr std::string_view kContent = "Oslo is fine";
  Json messages = Json::array({Json{{"role", "user"}, {"content", "?"}},
                               Json{{"role", "assistant"}, {"content", kContent}}});
  auto text = RenderProbe(chat_template, special_tokens, messages);
  size_t at = text ? text->rfind(kContent) : std::string::npos;
  return at == std::string::npos ? "" : text->substr(at + kContent.size());
}

}  // namespace jevons
