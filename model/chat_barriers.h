// Where a rendered prompt spells control tokens that nobody but a stranger wrote.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/jinja_text.h"

namespace jevons {

// The spellings of a tokenizer's added tokens, as a tree of bytes. Immutable, thread-safe.
class TokenSpellings {
 public:
  TokenSpellings() : nodes_(1) {}
  // Spellings of one character or of white space alone are text to everybody and are left out.
  explicit TokenSpellings(std::span<const std::string> spellings);

  // Offsets, rising and unique, such that every spelling of `text` with at least one foreign byte
  // spans one of them, and no spelling without a foreign byte spans any.
  std::vector<size_t> Barriers(const jinja::Text& text) const;

  // The first spelling in `text` at or after `from`, the longest of those; empty if there is none.
  std::string_view FindFirst(std::string_view text, size_t from) const;

 private:
  struct Node {
    std::vector<std::pair<char, int32_t>> children;
    bool is_end = false;
  };

  void Add(std::string_view spelling);
  const Node* Child(const Node& node, char c) const;

  std::vector<Node> nodes_;
  size_t max_size_ = 0;
};

}  // namespace jevons
