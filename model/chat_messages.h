// A conversation as clients send it, checked and turned into the template's variables.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "model/jinja.h"
#include "nlohmann/json.hpp"

namespace jevons {

// How a template wants the arguments of a tool call that a client sent as JSON text.
enum class ArgumentForm : uint8_t {
  kAsGiven,  // it joins them to other text
  kObject,   // it writes them with tojson or walks them
};

struct ToolCallStyle {
  ArgumentForm arguments = ArgumentForm::kAsGiven;
  // The template fails on a call beside null content, which is how most clients send it, and
  // renders it beside "".
  bool wants_empty_content = false;
};

// The last message, where it is to be continued instead of answered.
struct Continuation {
  size_t message_idx = 0;
  std::optional<std::string> reasoning;
  bool closes_reasoning = false;
  std::string answer;
};

struct Conversation {
  // Content of the message to be continued has Origin::kContinued; everything that the model did
  // not write itself, tools and other arguments too, has Origin::kForeign.
  std::vector<jinja::Value> messages;
  jinja::Variables variables;  // tools, and every other argument
  std::optional<bool> add_generation_prompt;
  std::optional<Continuation> continuation;
};

// INVALID_ARGUMENT names the field by its path, e.g. messages[1].content[0].type.
absl::StatusOr<Conversation> ReadConversation(const nlohmann::ordered_json& conversation,
                                              const ToolCallStyle& style);

}  // namespace jevons
