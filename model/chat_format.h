// From a conversation to the prompt that the model was trained on.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "model/tokenizer.h"
#include "nlohmann/json.hpp"

namespace jevons {

struct RenderedPrompt {
  std::string text;  // exactly what transformers renders
  // Byte offsets of `text` at which no control token may begin or go on, because a user, tool or system message spelled
  // one: for Tokenizer::Encode.
  std::vector<size_t> barriers;
};

struct ChatOptions {
  bool add_generation_prompt = true;
  // Control tokens spelled in other people's text become control tokens, as in transformers.
  bool trust_content = false;
};

// Chat template and special ids of one checkpoint. Immutable, thread-safe.
class ChatFormat {
 public:
  virtual ~ChatFormat() = default;

  // Reads chat_template (or chat_template.jinja), bos_token and eos_token of FOLDER. A folder without a template loads;
  // Render then answers FAILED_PRECONDITION. A template that uses what we do not know: UNIMPLEMENTED, with line and what.
  static absl::StatusOr<std::unique_ptr<ChatFormat>> Load(const std::string& folder,
                                                          const Tokenizer& tokenizer);

  // `conversation` is an object: "messages" (required list), and optional "tools", "reasoning_effort", "thinking" and
  // any other template argument. A plain list is taken as the messages. Content parts of type text are joined by one
  // newline; null fields are absent; role "developer" is "system". INVALID_ARGUMENT names the field, e.g.
  // messages[1].tool_calls[0].function.arguments, and what the template itself raised. A last assistant message with
  // "prefix": true is continued: the text ends in its content, or in its reasoning_content if it has no content.
  virtual absl::StatusOr<RenderedPrompt> Render(const nlohmann::ordered_json& conversation,
                                                const ChatOptions& options) const = 0;

  bool has_template() const { return has_template_; }
  // Ids that open and close thinking; -1 where the model has none.
  int32_t think_start_id() const { return think_start_id_; }
  int32_t think_end_id() const { return think_end_id_; }
  // End ids that the tokenizer's own configuration names (eos_token) and the one that ends a turn in the template.
  std::span<const int32_t> turn_end_ids() const { return turn_end_ids_; }

  // Whether generation after these ids starts inside thinking: the last of the two tags in the prompt decides.
  bool StartsInThinking(std::span<const int32_t> prompt_ids) const;

 protected:
  bool has_template_ = false;
  int32_t think_start_id_ = -1;
  int32_t think_end_id_ = -1;
  std::vector<int32_t> turn_end_ids_;
};

// JSON text to a value: INVALID_ARGUMENT with the offset for ill-formed JSON or UTF-8, unpaired surrogates, a name
// twice, or nesting deeper than 64.
absl::StatusOr<nlohmann::ordered_json> ParseJson(std::string_view text);

}  // namespace jevons
