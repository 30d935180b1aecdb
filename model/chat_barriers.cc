#include "model/chat_barriers.h"

#include <algorithm>

namespace jevons {

using jinja::NextChar;
using jinja::Origin;
using jinja::OriginSpan;

TokenSpellings::TokenSpellings(std::span<const std::string> spellings) : nodes_(1) {
  for (const std::string& spelling : spellings) {
    jinja::ByteRange visible = jinja::StripRange(spelling, std::nullopt, true, true);
    if (visible.begin == visible.end || jinja::CountChars(spelling) < 2) continue;
    Add(spelling);
  }
}

void TokenSpellings::Add(std::string_view spelling) {
  size_t at = 0;
  for (char c : spelling) {
    auto& children = nodes_[at].children;
    auto it = std::find_if(children.begin(), children.end(),
                           [&](const auto& child) { return child.first == c; });
    if (it != children.end()) {
      at = static_cast<size_t>(it->second);
      continue;
    }
    children.emplace_back(c, static_cast<int32_t>(nodes_.size()));
    at = nodes_.size();
    nodes_.emplace_back();
  }
  nodes_[at].is_end = true;
  max_size_ = std::max(max_size_, spelling.size());
}

const TokenSpellings::Node* TokenSpellings::Child(const Node& node, char c) const {
  for (const auto& [byte, idx] : node.children) {
    if (byte == c) return &nodes_[static_cast<size_t>(idx)];
  }
  return nullptr;
}

std::vector<size_t> TokenSpellings::Barriers(const jinja::Text& text) const {
  std::vector<size_t> barriers;
  const std::string& bytes = text.bytes();
  for (const OriginSpan& span : text.spans()) {
    if (span.origin != Origin::kForeign || max_size_ == 0) continue;
    for (size_t p = span.begin - std::min(span.begin, max_size_ - 1); p < span.end; ++p) {
      // A spelling from p on that reaches into the span has its first foreign byte here, or an
      // earlier span sees to it.
      size_t foreign = std::max(p, span.begin);
      size_t after_char = foreign;
      NextChar(bytes, &after_char);
      size_t barrier = foreign > p ? foreign : after_char;
      const Node* node = &nodes_[0];
      for (size_t i = p; i < bytes.size() && (node = Child(*node, bytes[i])); ++i) {
        if (!node->is_end || i + 1 <= barrier) continue;
        barriers.push_back(barrier);
        break;
      }
    }
  }
  std::sort(barriers.begin(), barriers.end());
  barriers.erase(std::unique(barriers.begin(), barriers.end()), barriers.end());
  return barriers;
}

std::string_view TokenSpellings::FindFirst(std::string_view text, size_t from) const {
  for (size_t p = from; p < text.size(); ++p) {
    size_t length = 0;
    const Node* node = &nodes_[0];
    for (size_t i = p; i < text.size() && (node = Child(*node, text[i])); ++i) {
      if (node->is_end) length = i + 1 - p;
    }
    if (length > 0) return text.substr(p, length);
  }
  return {};
}

}  // namespace jevons
