// What a template does with a conversation, found by rendering one.
#pragma once

#include <string>

#include "model/chat_messages.h"
#include "model/jinja.h"

namespace jevons {

// How the template takes the tool calls of the assistant.
ToolCallStyle ProbeToolCalls(const jinja::Template& chat_template,
                             const jinja::Variables& special_tokens);

// What the template writes after the content of a last message by the assistant; empty if that
// cannot be told.
std::string ProbeTurnEnd(const jinja::Template& chat_template,
                         const jinja::Variables& special_tokens);

}  // namespace jevons
