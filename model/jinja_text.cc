#include "model/jinja_text.h"

#include <algorithm>
#include <utility>

namespace jevons::jinja {

Text::Text(std::string bytes, Origin origin) : bytes_(std::move(bytes)) {
  AddSpan(0, bytes_.size(), origin);
}

void Text::AddSpan(size_t begin, size_t end, Origin origin) {
  if (begin == end || origin == Origin::kTemplate) return;
  if (!spans_.empty() && spans_.back().end == begin && spans_.back().origin == origin) {
    spans_.back().end = end;
    return;
  }
  spans_.push_back({begin, end, origin});
}

Origin Text::OriginAt(size_t offset) const {
  auto it = std::upper_bound(spans_.begin(), spans_.end(), offset,
                             [](size_t o, const OriginSpan& span) { return o < span.end; });
  return it != spans_.end() && it->begin <= offset ? it->origin : Origin::kTemplate;
}

void Text::Append(std::string_view bytes, Origin origin) {
  size_t begin = bytes_.size();
  bytes_.append(bytes);
  AddSpan(begin, bytes_.size(), origin);
}

void Text::AppendPart(const Text& other, size_t begin, size_t end) {
  size_t base = bytes_.size();
  bytes_.append(other.bytes_, begin, end - begin);
  auto it = std::upper_bound(other.spans_.begin(), other.spans_.end(), begin,
                             [](size_t o, const OriginSpan& span) { return o < span.end; });
  for (; it != other.spans_.end() && it->begin < end; ++it) {
    AddSpan(base + std::max(it->begin, begin) - begin, base + std::min(it->end, end) - begin,
            it->origin);
  }
}

Text Text::Part(size_t begin, size_t end) const {
  Text part;
  part.AppendPart(*this, begin, end);
  part.is_markup_ = is_markup_;
  return part;
}

char32_t NextChar(std::string_view text, size_t* offset) {
  auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  size_t at = *offset;
  unsigned char lead = byte(at);
  size_t length = lead < 0xC0 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  if (length == 1 || at + length > text.size()) {
    *offset = at + 1;
    return lead;
  }
  char32_t c = lead & (0xFF >> (length + 1));
  for (size_t i = 1; i < length; ++i) c = (c << 6) | (byte(at + i) & 0x3F);
  *offset = at + length;
  return c;
}

void AppendChar(char32_t c, std::string* out) {
  auto put = [&](char32_t bits) { out->push_back(static_cast<char>(bits)); };
  if (c < 0x80) return put(c);
  if (c < 0x800) {
    put(0xC0 | (c >> 6));
  } else if (c < 0x10000) {
    put(0xE0 | (c >> 12));
    put(0x80 | ((c >> 6) & 0x3F));
  } else {
    put(0xF0 | (c >> 18));
    put(0x80 | ((c >> 12) & 0x3F));
    put(0x80 | ((c >> 6) & 0x3F));
  }
  put(0x80 | (c & 0x3F));
}

size_t CountChars(std::string_view text) {
  size_t count = 0;
  for (size_t offset = 0; offset < text.size(); ++count) NextChar(text, &offset);
  return count;
}

std::vector<size_t> CharOffsets(std::string_view text) {
  std::vector<size_t> offsets;
  for (size_t offset = 0; offset < text.size();) {
    offsets.push_back(offset);
    NextChar(text, &offset);
  }
  offsets.push_back(text.size());
  return offsets;
}

bool IsAscii(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

bool IsSpace(char32_t c) {
  if (c < 0x80) return c == ' ' || (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x1F);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool IsLineEnd(char32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
         c == 0x2029;
}

ByteRange StripRange(std::string_view text, const std::optional<std::string_view>& chars, bool left,
                     bool right) {
  auto drops = [&](size_t begin, size_t end) {
    if (chars) return chars->find(text.substr(begin, end - begin)) != std::string_view::npos;
    size_t offset = begin;
    return IsSpace(NextChar(text, &offset));
  };
  ByteRange range{0, text.size()};
  while (left && range.begin < range.end) {
    size_t next = range.begin;
    NextChar(text, &next);
    if (!drops(range.begin, next)) break;
    range.begin = next;
  }
  while (right && range.begin < range.end) {
    size_t last = range.end - 1;
    while (last > range.begin && (static_cast<unsigned char>(text[last]) & 0xC0) == 0x80) --last;
    if (!drops(last, range.end)) break;
    range.end = last;
  }
  return range;
}

}  // namespace jevons::jinja
