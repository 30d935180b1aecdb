// Strings of the template engine: UTF-8 bytes that remember who wrote them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace jevons::jinja {

enum class Origin : uint8_t {
  kTemplate,   // the template, the checkpoint's settings, or the model itself
  kForeign,    // written by somebody else: control tokens spelled here are plain text
  kContinued,  // the content of the message that is to be continued
};

struct OriginSpan {
  size_t begin = 0;
  size_t end = 0;
  Origin origin = Origin::kTemplate;
};

// Every operation of the engine builds its result from parts of its inputs with the Append calls
// below, so the spans follow the bytes through slicing, joining, replacing and escaping.
// Thread-compatible.
class Text {
 public:
  Text() = default;
  explicit Text(std::string bytes, Origin origin = Origin::kTemplate);

  const std::string& bytes() const { return bytes_; }
  size_t size() const { return bytes_.size(); }
  bool empty() const { return bytes_.empty(); }
  // Rising, not overlapping, never kTemplate.
  const std::vector<OriginSpan>& spans() const { return spans_; }
  Origin OriginAt(size_t offset) const;

  // True for the result of `safe` and `escape`: adding other text to it escapes that text, as in
  // Jinja2.
  bool is_markup() const { return is_markup_; }
  void set_markup(bool on) { is_markup_ = on; }

  void Append(std::string_view bytes, Origin origin = Origin::kTemplate);
  void Append(const Text& other) { AppendPart(other, 0, other.size()); }
  void AppendPart(const Text& other, size_t begin, size_t end);
  Text Part(size_t begin, size_t end) const;

 private:
  void AddSpan(size_t begin, size_t end, Origin origin);

  std::string bytes_;
  std::vector<OriginSpan> spans_;
  bool is_markup_ = false;
};

// The character at `*offset`, which is moved past it. Ill-formed bytes count as one character each.
char32_t NextChar(std::string_view text, size_t* offset);
void AppendChar(char32_t c, std::string* out);
size_t CountChars(std::string_view text);
// Byte offset of every character, and the size at the end.
std::vector<size_t> CharOffsets(std::string_view text);
bool IsAscii(std::string_view text);

// str.isspace() and str.splitlines() of Python.
bool IsSpace(char32_t c);
bool IsLineEnd(char32_t c);

struct ByteRange {
  size_t begin = 0;
  size_t end = 0;
};
// What str.strip() leaves, without the characters of `chars`, or without white space.
ByteRange StripRange(std::string_view text, const std::optional<std::string_view>& chars, bool left,
                     bool right);

}  // namespace jevons::jinja
