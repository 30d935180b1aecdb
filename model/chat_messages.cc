#include "model/chat_messages.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/strings.h"
#include "model/chat_format.h"
#include "model/error_text.h"

namespace jevons {
namespace {

using Json = nlohmann::ordered_json;
using jinja::Entry;
using jinja::FromJson;
using jinja::Origin;
using jinja::Text;
using jinja::Value;

constexpr std::string_view kThinkStart = "<think>", kThinkEnd = "</think>";

absl::Status Invalid(const std::string& path, std::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", ToAbsl(what)));
}

std::string Shown(const Json& value) {
  return value.is_string()
             ? absl::StrCat("\"", Printable(value.get_ref<const std::string&>()), "\"")
             : std::string(value.type_name());
}

absl::StatusOr<Value> Convert(const Json& json, Origin origin, const std::string& path) {
  auto value = FromJson(json, origin);
  if (!value.ok()) return Invalid(path, ToStd(value.status().message()));
  return value;
}

const Json* FindPresent(const Json& object, const char* name) {
  auto it = object.find(name);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

void Append(std::string name, Json value, Json* object) {
  object->get_ref<Json::object_t&>().emplace_back(std::move(name), std::move(value));
}

absl::StatusOr<std::string> StringMember(const Json& object, const char* name,
                                         const std::string& path) {
  const Json* member = FindPresent(object, name);
  std::string full = absl::StrCat(path, ".", name);
  if (member == nullptr) return Invalid(full, "required");
  if (!member->is_string())
    return Invalid(full, absl::StrCat("expected a string, got ", Shown(*member)));
  return member->get<std::string>();
}

absl::StatusOr<std::string> JoinParts(const Json& parts, const std::string& path) {
  std::string joined;
  for (size_t i = 0; i < parts.size(); ++i) {
    const Json& part = parts[i];
    std::string part_path = absl::StrCat(path, "[", i, "]");
    if (!part.is_object()) {
      return Invalid(part_path, absl::StrCat("expected an object, got ", Shown(part)));
    }
    ASSIGN_OR_RETURN(std::string type, StringMember(part, "type", part_path));
    if (type != "text") {
      return Invalid(absl::StrCat(part_path, ".type"),
                     absl::StrCat("\"", Printable(type), "\" is not supported, only \"text\""));
    }
    ASSIGN_OR_RETURN(std::string text, StringMember(part, "text", part_path));
    if (i > 0) joined += '\n';
    joined += text;
  }
  return joined;
}

// Content as a string; nothing where it is null or absent.
absl::StatusOr<std::optional<std::string>> ReadContent(const Json& message,
                                                       const std::string& path) {
  const Json* content = FindPresent(message, "content");
  if (content == nullptr) return std::optional<std::string>();
  if (content->is_string()) return std::optional<std::string>(content->get<std::string>());
  std::string full = absl::StrCat(path, ".content");
  if (!content->is_array()) {
    return Invalid(full,
                   absl::StrCat("expected a string or a list of parts, got ", Shown(*content)));
  }
  ASSIGN_OR_RETURN(std::string joined, JoinParts(*content, full));
  return std::optional<std::string>(std::move(joined));
}

absl::StatusOr<Json> ReadArguments(const Json& function, ArgumentForm form,
                                   const std::string& path) {
  const Json* arguments = FindPresent(function, "arguments");
  std::string full = absl::StrCat(path, ".arguments");
  if (arguments == nullptr) return Invalid(full, "required");
  if (!arguments->is_string() && !arguments->is_object()) {
    return Invalid(full, absl::StrCat("expected JSON text or an object, got ", Shown(*arguments)));
  }
  if (arguments->is_object() || form == ArgumentForm::kAsGiven) return *arguments;
  auto parsed = ParseJson(arguments->get_ref<const std::string&>());
  if (!parsed.ok()) return Invalid(full, ToStd(parsed.status().message()));
  if (!parsed->is_object()) {
    return Invalid(full, absl::StrCat("this template needs the text of a JSON object, got ",
                                      Shown(*arguments)));
  }
  return parsed;
}

absl::StatusOr<Json> ReadToolCall(const Json& call, ArgumentForm form, const std::string& path) {
  if (!call.is_object())
    return Invalid(path, absl::StrCat("expected an object, got ", Shown(call)));
  const Json* function = FindPresent(call, "function");
  std::string function_path = absl::StrCat(path, ".function");
  if (function == nullptr || !function->is_object())
    return Invalid(function_path, "expected an object");
  RETURN_IF_ERROR(StringMember(*function, "name", function_path).status());
  ASSIGN_OR_RETURN(Json arguments, ReadArguments(*function, form, function_path));
  // Appended, not assigned: an ordered object looks every name up in a list.
  Json read_function = Json::object();
  for (const auto& member : function->items()) {
    if (member.value().is_null()) continue;
    bool is_arguments = member.key() == "arguments";
    Append(member.key(), is_arguments ? std::move(arguments) : member.value(), &read_function);
  }
  Json read = Json::object();
  for (const auto& member : call.items()) {
    if (member.value().is_null()) continue;
    bool is_function = member.key() == "function";
    Append(member.key(), is_function ? std::move(read_function) : member.value(), &read);
  }
  if (FindPresent(call, "type") == nullptr) Append("type", "function", &read);
  return read;
}

absl::StatusOr<Json> ReadToolCalls(const Json& calls, ArgumentForm form, const std::string& path) {
  if (!calls.is_array()) return Invalid(path, absl::StrCat("expected a list, got ", Shown(calls)));
  Json read = Json::array();
  for (size_t i = 0; i < calls.size(); ++i) {
    ASSIGN_OR_RETURN(Json call, ReadToolCall(calls[i], form, absl::StrCat(path, "[", i, "]")));
    read.push_back(std::move(call));
  }
  return read;
}

absl::StatusOr<std::string> ReadRole(const Json& message, const std::string& path) {
  static constexpr std::string_view kRoles[] = {"system", "user", "assistant", "tool"};
  ASSIGN_OR_RETURN(std::string role, StringMember(message, "role", path));
  if (role == "developer") return std::string("system");
  if (std::find(std::begin(kRoles), std::end(kRoles), role) != std::end(kRoles)) return role;
  return Invalid(absl::StrCat(path, ".role"),
                 absl::StrCat("\"", Printable(role),
                              "\" is none of system, developer, user, assistant, tool"));
}

// Splits the text that the model is to go on from. The model's own tags in the content count.
absl::StatusOr<Continuation> ReadContinuation(const Json& message, std::string content,
                                              const std::string& path) {
  Continuation continuation;
  if (FindPresent(message, "tool_calls"))
    return Invalid(path, "a message with tool calls cannot be continued");
  const Json* reasoning = FindPresent(message, "reasoning_content");
  if (reasoning && !reasoning->is_string()) {
    return Invalid(absl::StrCat(path, ".reasoning_content"),
                   absl::StrCat("expected a string, got ", Shown(*reasoning)));
  }
  if (reasoning && !reasoning->get_ref<const std::string&>().empty()) {
    continuation.reasoning = reasoning->get<std::string>();
    continuation.closes_reasoning = !content.empty();
    continuation.answer = std::move(content);
    return continuation;
  }
  size_t end = content.find(kThinkEnd);
  size_t start = content.find_first_not_of(" \t\r\n");
  bool opens =
      start != std::string::npos && content.compare(start, kThinkStart.size(), kThinkStart) == 0;
  if (!opens && end == std::string::npos) {
    continuation.answer = std::move(content);
    return continuation;
  }
  size_t begin = opens ? start + kThinkStart.size() : 0;
  continuation.closes_reasoning = end != std::string::npos;
  continuation.reasoning = content.substr(begin, continuation.closes_reasoning ? end - begin : end);
  if (continuation.closes_reasoning) continuation.answer = content.substr(end + kThinkEnd.size());
  return continuation;
}

class Reader {
 public:
  Reader(const ToolCallStyle& style, Conversation* out) : style_(style), out_(out) {}

  absl::Status ReadMessages(const Json& messages) {
    if (!messages.is_array())
      return Invalid("messages", absl::StrCat("expected a list, got ", Shown(messages)));
    if (messages.empty()) return Invalid("messages", "at least one message is needed");
    for (size_t i = 0; i < messages.size(); ++i) {
      RETURN_IF_ERROR(ReadMessage(messages[i], i, i + 1 == messages.size()));
    }
    return absl::OkStatus();
  }

  absl::Status ReadArgument(const std::string& name, const Json& value) {
    if (name == "messages" || value.is_null()) return absl::OkStatus();
    if (name == "add_generation_prompt") {
      if (!value.is_boolean())
        return Invalid(name, absl::StrCat("expected a boolean, got ", Shown(value)));
      out_->add_generation_prompt = value.get<bool>();
      return absl::OkStatus();
    }
    if (name == "tools") {
      RETURN_IF_ERROR(CheckTools(value));
      if (value.empty()) return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(Value converted, Convert(value, Origin::kForeign, name));
    out_->variables.emplace_back(name, std::move(converted));
    return absl::OkStatus();
  }

 private:
  static absl::Status CheckTools(const Json& tools) {
    if (!tools.is_array())
      return Invalid("tools", absl::StrCat("expected a list, got ", Shown(tools)));
    for (size_t i = 0; i < tools.size(); ++i) {
      if (!tools[i].is_object())
        return Invalid(absl::StrCat("tools[", i, "]"), "expected an object");
    }
    return absl::OkStatus();
  }

  absl::Status ReadPrefix(const Json& message, size_t idx, bool is_last, const std::string& role,
                          const std::optional<std::string>& content, const std::string& path) {
    const Json* prefix = FindPresent(message, "prefix");
    std::string full = absl::StrCat(path, ".prefix");
    if (prefix == nullptr) return absl::OkStatus();
    if (!prefix->is_boolean())
      return Invalid(full, absl::StrCat("expected a boolean, got ", Shown(*prefix)));
    if (!prefix->get<bool>()) return absl::OkStatus();
    if (!is_last || role != "assistant")
      return Invalid(full, "only the last message, by the assistant, can be continued");
    ASSIGN_OR_RETURN(out_->continuation, ReadContinuation(message, content.value_or(""), path));
    out_->continuation->message_idx = idx;
    return absl::OkStatus();
  }

  absl::Status ReadMessage(const Json& message, size_t idx, bool is_last) {
    std::string path = absl::StrCat("messages[", idx, "]");
    if (!message.is_object())
      return Invalid(path, absl::StrCat("expected an object, got ", Shown(message)));
    ASSIGN_OR_RETURN(std::string role, ReadRole(message, path));
    ASSIGN_OR_RETURN(std::optional<std::string> content, ReadContent(message, path));
    bool is_own = role == "assistant";
    if (!content && !is_own) return Invalid(absl::StrCat(path, ".content"), "required");
    if (!content && style_.wants_empty_content && FindPresent(message, "tool_calls")) content = "";
    RETURN_IF_ERROR(ReadPrefix(message, idx, is_last, role, content, path));
    Origin origin = is_own ? Origin::kTemplate : Origin::kForeign;
    std::vector<Entry> entries;
    auto add = [&](const std::string& key, Value value) {
      entries.emplace_back(Value(Text(key, origin)), std::move(value));
    };
    add("role", Value::OfString(role));
    bool continues = is_last && out_->continuation.has_value();
    if (continues) content = out_->continuation->answer;
    ASSIGN_OR_RETURN(Value content_value, Convert(content ? Json(*content) : Json(),
                                                  continues ? Origin::kContinued : origin,
                                                  absl::StrCat(path, ".content")));
    add("content", std::move(content_value));
    for (const auto& member : message.items()) {
      const std::string& key = member.key();
      if (key == "role" || key == "content" || key == "prefix" || member.value().is_null())
        continue;
      std::string member_path = absl::StrCat(path, ".", Printable(key));
      Json value = member.value();
      if (key == "tool_calls") {
        ASSIGN_OR_RETURN(value, ReadToolCalls(member.value(), style_.arguments, member_path));
        if (value.empty()) continue;
      }
      ASSIGN_OR_RETURN(Value converted, Convert(value, origin, member_path));
      add(key, std::move(converted));
    }
    ASSIGN_OR_RETURN(Value::DictPtr dict, jinja::Dict::Make(std::move(entries)));
    out_->messages.emplace_back(std::move(dict));
    return absl::OkStatus();
  }

  ToolCallStyle style_;
  Conversation* out_;
};

}  // namespace

absl::StatusOr<Conversation> ReadConversation(const Json& conversation,
                                              const ToolCallStyle& style) {
  Conversation read;
  Reader reader(style, &read);
  if (conversation.is_array()) {
    RETURN_IF_ERROR(reader.ReadMessages(conversation));
    return read;
  }
  if (!conversation.is_object()) {
    return Invalid("conversation", absl::StrCat("expected an object or a list of messages, got ",
                                                Shown(conversation)));
  }
  const Json* messages = FindPresent(conversation, "messages");
  if (messages == nullptr) return Invalid("messages", "required");
  RETURN_IF_ERROR(reader.ReadMessages(*messages));
  for (const auto& member : conversation.items()) {
    RETURN_IF_ERROR(reader.ReadArgument(member.key(), member.value()));
  }
  return read;
}

}  // namespace jevons
