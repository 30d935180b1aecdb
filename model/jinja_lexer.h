// From the text of a template to tokens, with the white space control of Jinja2.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace jevons::jinja {

enum class TokenKind : uint8_t {
  kData,        // text outside of tags
  kBlockBegin,  // {%
  kBlockEnd,
  kPrintBegin,  // {{
  kPrintEnd,
  kName,
  kString,  // escapes resolved
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  std::string text;
  int line = 1;
};

// Settings of transformers: trim_blocks and lstrip_blocks are on, one newline at the very end is
// dropped. The last token is kEnd. INVALID_ARGUMENT with the line for what is not a template.
absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source);

}  // namespace jevons::jinja
