// Splitting and replacing, with the origin of every byte kept.
#include <algorithm>

#include "model/jinja_builtins.h"

namespace jevons::jinja {
namespace {

std::vector<ByteRange> SplitBySpace(const std::string& bytes, Int max_splits) {
  std::vector<ByteRange> parts;
  size_t offset = 0;
  while (true) {
    ByteRange rest = StripRange(std::string_view(bytes).substr(offset), std::nullopt, true, false);
    size_t begin = offset + rest.begin;
    if (begin == bytes.size()) return parts;
    if (max_splits >= 0 && static_cast<Int>(parts.size()) == max_splits) {
      parts.push_back({begin, bytes.size()});
      return parts;
    }
    size_t end = begin;
    for (size_t next = begin; next < bytes.size() && !IsSpace(NextChar(bytes, &next));) end = next;
    parts.push_back({begin, end});
    offset = end;
  }
}

std::vector<ByteRange> SplitBySpaceFromRight(const std::string& bytes, Int max_splits) {
  std::vector<ByteRange> all = SplitBySpace(bytes, -1);
  if (max_splits < 0 || static_cast<Int>(all.size()) <= max_splits + 1) return all;
  size_t num_joined = all.size() - static_cast<size_t>(max_splits);
  std::vector<ByteRange> parts{{0, all[num_joined - 1].end}};
  parts.insert(parts.end(), all.begin() + static_cast<std::ptrdiff_t>(num_joined), all.end());
  return parts;
}

std::vector<ByteRange> SplitBy(const std::string& bytes, const std::string& separator,
                               Int max_splits) {
  std::vector<ByteRange> parts;
  size_t begin = 0;
  while (max_splits < 0 || static_cast<Int>(parts.size()) < max_splits) {
    size_t at = bytes.find(separator, begin);
    if (at == std::string::npos) break;
    parts.push_back({begin, at});
    begin = at + separator.size();
  }
  parts.push_back({begin, bytes.size()});
  return parts;
}

std::vector<ByteRange> SplitByFromRight(const std::string& bytes, const std::string& separator,
                                        Int max_splits) {
  std::vector<ByteRange> parts;
  size_t end = bytes.size();
  while (max_splits < 0 || static_cast<Int>(parts.size()) < max_splits) {
    if (end < separator.size()) break;
    size_t at = bytes.rfind(separator, end - separator.size());
    if (at == std::string::npos) break;
    parts.push_back({at + separator.size(), end});
    end = at;
  }
  parts.push_back({0, end});
  std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<Text> Cut(const Text& text, const std::vector<ByteRange>& ranges) {
  std::vector<Text> parts;
  parts.reserve(ranges.size());
  for (const ByteRange& range : ranges) parts.push_back(text.Part(range.begin, range.end));
  return parts;
}

}  // namespace

std::vector<Text> SplitText(const Text& text, const std::optional<std::string>& separator,
                            Int max_splits, bool from_right) {
  const std::string& bytes = text.bytes();
  if (!separator) {
    return Cut(text, from_right ? SplitBySpaceFromRight(bytes, max_splits)
                                : SplitBySpace(bytes, max_splits));
  }
  return Cut(text, from_right ? SplitByFromRight(bytes, *separator, max_splits)
                              : SplitBy(bytes, *separator, max_splits));
}

std::vector<Text> SplitLines(const Text& text, bool keep_ends) {
  const std::string& bytes = text.bytes();
  std::vector<ByteRange> lines;
  size_t begin = 0;
  for (size_t offset = 0; offset < bytes.size();) {
    size_t end = offset;
    char32_t c = NextChar(bytes, &offset);
    if (!IsLineEnd(c)) continue;
    if (c == '\r' && offset < bytes.size() && bytes[offset] == '\n') ++offset;
    lines.push_back({begin, keep_ends ? offset : end});
    begin = offset;
  }
  if (begin < bytes.size()) lines.push_back({begin, bytes.size()});
  return Cut(text, lines);
}

Text ReplaceText(const Text& text, std::string_view from, const Text& to, Int max_count) {
  const std::string& bytes = text.bytes();
  Text out;
  Int count = 0;
  size_t begin = 0;
  auto may_go_on = [&] { return max_count < 0 || count < max_count; };
  if (from.empty()) {
    for (size_t offset = 0; may_go_on() && offset < bytes.size(); ++count) {
      out.Append(to);
      NextChar(bytes, &offset);
      out.AppendPart(text, begin, offset);
      begin = offset;
    }
    if (may_go_on() && begin == bytes.size()) out.Append(to);
    out.AppendPart(text, begin, bytes.size());
    return out;
  }
  for (; may_go_on(); ++count) {
    size_t at = bytes.find(from, begin);
    if (at == std::string::npos) break;
    out.AppendPart(text, begin, at);
    out.Append(to);
    begin = at + from.size();
  }
  out.AppendPart(text, begin, bytes.size());
  return out;
}

}  // namespace jevons::jinja
