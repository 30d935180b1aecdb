#include "model/jinja_lexer.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "model/jinja_text.h"

namespace jevons::jinja {
namespace {

std::string NormalizeNewlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
      out.push_back('\n');
    } else {
      out.push_back(source[i]);
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

bool IsNameStart(char c) { return absl::ascii_isalpha(static_cast<unsigned char>(c)) || c == '_'; }
bool IsDigit(char c) { return absl::ascii_isdigit(static_cast<unsigned char>(c)); }
bool IsNameChar(char c) { return IsNameStart(c) || IsDigit(c); }

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (pos_ < source_.size()) RETURN_IF_ERROR(ReadData());
    Add(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  absl::Status Fail(std::string_view what) {
    return absl::InvalidArgumentError(
        absl::StrFormat("chat template line %d: %s", LineAt(pos_), std::string(what)));
  }

  int LineAt(size_t pos) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(line_pos_),
                                         source_.begin() + static_cast<std::ptrdiff_t>(pos), '\n'));
    line_pos_ = pos;
    return line_;
  }

  void Add(TokenKind kind, std::string text) {
    tokens_.push_back({kind, std::move(text), LineAt(std::min(pos_, source_.size()))});
  }

  bool At(size_t pos, std::string_view text) const {
    return source_.compare(pos, text.size(), text) == 0;
  }

  size_t SkipSpace(size_t pos) const {
    while (pos < source_.size()) {
      size_t next = pos;
      if (!IsSpace(NextChar(source_, &next))) break;
      pos = next;
    }
    return pos;
  }

  // The text before a tag that starts at `tag`, after the tag's sign has had its way with it.
  std::string DataBefore(size_t tag, char sign, bool may_lstrip) const {
    std::string_view data = std::string_view(source_).substr(pos_, tag - pos_);
    if (sign == '-') {
      return std::string(data.substr(0, StripRange(data, std::nullopt, false, true).end));
    }
    if (sign == '+' || !may_lstrip) return std::string(data);
    size_t newline = data.rfind('\n');
    size_t line_begin = newline == std::string_view::npos ? 0 : newline + 1;
    if (line_begin == 0 && !line_starting_) return std::string(data);
    std::string_view line = data.substr(line_begin);
    ByteRange rest = StripRange(line, std::nullopt, true, true);
    return std::string(rest.begin == rest.end ? data.substr(0, line_begin) : data);
  }

  // Moves over a closing tag whose first character (sign or bracket) is at `pos`.
  size_t AfterClosing(size_t pos, std::string_view close, bool trims_newline) const {
    if (source_[pos] == '-') return SkipSpace(pos + 1 + close.size());
    if (source_[pos] == '+') return pos + 1 + close.size();
    size_t end = pos + close.size();
    return trims_newline && end < source_.size() && source_[end] == '\n' ? end + 1 : end;
  }

  void MoveTo(size_t end) {
    line_starting_ = end > 0 && source_[end - 1] == '\n';
    pos_ = end;
  }

  size_t FindTag(size_t from) const {
    for (size_t i = source_.find('{', from); i != std::string::npos; i = source_.find('{', i + 1)) {
      if (i + 1 < source_.size() &&
          std::string_view("%{#").find(source_[i + 1]) != std::string::npos) {
        return i;
      }
    }
    return std::string::npos;
  }

  char SignAt(size_t pos) const {
    return pos < source_.size() && (source_[pos] == '-' || source_[pos] == '+') ? source_[pos]
                                                                                : ' ';
  }

  absl::Status ReadData() {
    size_t tag = FindTag(pos_);
    if (tag == std::string::npos) {
      Add(TokenKind::kData, source_.substr(pos_));
      pos_ = source_.size();
      return absl::OkStatus();
    }
    char kind = source_[tag + 1];
    char sign = SignAt(tag + 2);
    size_t inner = tag + 2 + (sign == ' ' ? 0 : 1);
    std::string data = DataBefore(tag, sign, kind != '{');
    if (!data.empty()) Add(TokenKind::kData, std::move(data));
    pos_ = tag;
    if (kind == '#') return ReadComment(inner);
    if (kind == '%') {
      if (auto raw = AfterRawTag(inner, "raw")) return ReadRaw(*raw);
    }
    Add(kind == '%' ? TokenKind::kBlockBegin : TokenKind::kPrintBegin, "");
    MoveTo(inner);
    return ReadTag(kind == '%' ? "%}" : "}}", kind == '%');
  }

  absl::Status ReadComment(size_t inner) {
    size_t close = source_.find("#}", inner);
    if (close == std::string::npos) return Fail("missing end of comment tag");
    bool has_sign = close > inner && SignAt(close - 1) != ' ';
    MoveTo(AfterClosing(has_sign ? close - 1 : close, "#}", true));
    return absl::OkStatus();
  }

  // Where `{% word %}` ends whose inside begins at `inner`; nothing if that is not what stands
  // there.
  std::optional<size_t> AfterRawTag(size_t inner, std::string_view word) const {
    size_t pos = SkipSpace(inner);
    if (!At(pos, word)) return std::nullopt;
    pos = SkipSpace(pos + word.size());
    bool is_end = word == "endraw";
    char sign = SignAt(pos);
    if (sign == '+' && !is_end) return std::nullopt;
    if (!At(sign == ' ' ? pos : pos + 1, "%}")) return std::nullopt;
    return AfterClosing(pos, "%}", is_end);
  }

  absl::Status ReadRaw(size_t begin) {
    MoveTo(begin);
    for (size_t tag = source_.find("{%", begin); tag != std::string::npos;
         tag = source_.find("{%", tag + 2)) {
      char sign = SignAt(tag + 2);
      auto end = AfterRawTag(tag + 2 + (sign == ' ' ? 0 : 1), "endraw");
      if (!end) continue;
      Add(TokenKind::kData, DataBefore(tag, sign, true));
      MoveTo(*end);
      return absl::OkStatus();
    }
    return Fail("missing end of raw block");
  }

  // The inside of a tag, up to and with its end. Inside of brackets the end is not looked for.
  absl::Status ReadTag(std::string_view close, bool is_block) {
    std::string open_brackets;
    while (true) {
      pos_ = SkipSpace(pos_);
      if (pos_ >= source_.size()) return Fail("a tag is not closed");
      char sign = SignAt(pos_);
      bool may_close = open_brackets.empty() && (is_block || sign != '+');
      if (may_close && At(sign == ' ' ? pos_ : pos_ + 1, close)) {
        Add(is_block ? TokenKind::kBlockEnd : TokenKind::kPrintEnd, "");
        MoveTo(AfterClosing(pos_, close, is_block));
        return absl::OkStatus();
      }
      RETURN_IF_ERROR(ReadToken(&open_brackets));
    }
  }

  absl::Status ReadToken(std::string* open_brackets) {
    char c = source_[pos_];
    if (IsNameStart(c)) {
      size_t end = pos_;
      while (end < source_.size() && IsNameChar(source_[end])) ++end;
      Add(TokenKind::kName, source_.substr(pos_, end - pos_));
      pos_ = end;
      return absl::OkStatus();
    }
    if (IsDigit(c)) return ReadNumber();
    if (c == '\'' || c == '"') return ReadString();
    return ReadOperator(open_brackets);
  }

  size_t SkipDigits(size_t pos) const {
    while (pos < source_.size() &&
           (IsDigit(source_[pos]) ||
            (source_[pos] == '_' && pos + 1 < source_.size() && IsDigit(source_[pos + 1])))) {
      ++pos;
    }
    return pos;
  }

  absl::Status ReadNumber() {
    size_t end = SkipDigits(pos_);
    bool is_float = false;
    bool after_dot = pos_ > 0 && source_[pos_ - 1] == '.';
    if (!after_dot && end + 1 < source_.size() && source_[end] == '.' &&
        IsDigit(source_[end + 1])) {
      is_float = true;
      end = SkipDigits(end + 1);
    }
    if (!after_dot && end < source_.size() && (source_[end] | 0x20) == 'e') {
      size_t digits = end + 1 + (SignAt(end + 1) == ' ' ? 0 : 1);
      if (digits < source_.size() && IsDigit(source_[digits])) {
        is_float = true;
        end = SkipDigits(digits);
      }
    }
    if (end < source_.size() && IsNameChar(source_[end])) {
      return absl::UnimplementedError(absl::StrFormat(
          "chat template line %d: a number that goes on with '%c'", LineAt(pos_), source_[end]));
    }
    std::string digits = source_.substr(pos_, end - pos_);
    digits.erase(std::remove(digits.begin(), digits.end(), '_'), digits.end());
    Add(is_float ? TokenKind::kFloat : TokenKind::kInteger, std::move(digits));
    pos_ = end;
    return absl::OkStatus();
  }

  absl::Status ReadString() {
    char quote = source_[pos_];
    std::string out;
    size_t i = pos_ + 1;
    while (i < source_.size() && source_[i] != quote) {
      if (source_[i] != '\\') {
        out.push_back(source_[i++]);
        continue;
      }
      if (i + 1 >= source_.size()) break;
      RETURN_IF_ERROR(ReadEscape(&i, &out));
    }
    if (i >= source_.size()) return Fail("a string is not closed");
    Add(TokenKind::kString, std::move(out));
    pos_ = i + 1;
    return absl::OkStatus();
  }

  // Python's escapes; `*i` is at the backslash.
  absl::Status ReadEscape(size_t* i, std::string* out) {
    static constexpr std::string_view kFrom = "\\'\"abfnrtv", kTo = "\\'\"\a\b\f\n\r\t\v";
    char c = source_[*i + 1];
    size_t simple = kFrom.find(c);
    if (simple != std::string_view::npos) {
      out->push_back(kTo[simple]);
      *i += 2;
    } else if (c == '\n') {
      *i += 2;
    } else if (c == 'x' || c == 'u' || c == 'U') {
      return ReadCodePoint(*i + 2, c == 'x' ? 2 : c == 'u' ? 4 : 8, 16, i, out);
    } else if (c >= '0' && c <= '7') {
      size_t digits = 1;
      while (digits < 3 && source_[*i + 1 + digits] >= '0' && source_[*i + 1 + digits] <= '7')
        ++digits;
      return ReadCodePoint(*i + 1, digits, 8, i, out);
    } else if (c == 'N') {
      return absl::UnimplementedError(
          absl::StrFormat("chat template line %d: the string escape \\N", LineAt(pos_)));
    } else {
      out->push_back('\\');
      ++*i;
    }
    return absl::OkStatus();
  }

  absl::Status ReadCodePoint(size_t begin, size_t num_digits, int base, size_t* i,
                             std::string* out) {
    uint32_t c = 0;
    for (size_t k = begin; k < begin + num_digits; ++k) {
      if (k >= source_.size() || !absl::ascii_isxdigit(static_cast<unsigned char>(source_[k]))) {
        return Fail("a truncated escape in a string");
      }
      char digit = absl::ascii_tolower(static_cast<unsigned char>(source_[k]));
      c = c * static_cast<uint32_t>(base) +
          static_cast<uint32_t>(IsDigit(digit) ? digit - '0' : digit - 'a' + 10);
    }
    if (c > 0x10FFFF || (c >= 0xD800 && c <= 0xDFFF))
      return Fail("a string escape is no character");
    AppendChar(c, out);
    *i = begin + num_digits;
    return absl::OkStatus();
  }

  absl::Status ReadOperator(std::string* open_brackets) {
    static constexpr std::string_view kLong[] = {"//", "**", "==", "!=", ">=", "<="};
    for (std::string_view op : kLong) {
      if (!At(pos_, op)) continue;
      Add(TokenKind::kOperator, std::string(op));
      pos_ += op.size();
      return absl::OkStatus();
    }
    char c = source_[pos_];
    if (std::string_view("+-/*%~[](){}<>=.:|,;").find(c) == std::string_view::npos) {
      size_t end = pos_;
      NextChar(source_, &end);
      return Fail(absl::StrCat("unexpected character '", source_.substr(pos_, end - pos_), "'"));
    }
    if (c == '(' || c == '[' || c == '{') open_brackets->push_back(c);
    if (c == ')' || c == ']' || c == '}') {
      char open = c == ')' ? '(' : c == ']' ? '[' : '{';
      if (open_brackets->empty() || open_brackets->back() != open) {
        return Fail(absl::StrCat("unexpected '", std::string(1, c), "'"));
      }
      open_brackets->pop_back();
    }
    Add(TokenKind::kOperator, std::string(1, c));
    ++pos_;
    return absl::OkStatus();
  }

  std::string source_;
  size_t pos_ = 0;
  bool line_starting_ = true;  // whether pos_ is the first character of a line
  int line_ = 1;
  size_t line_pos_ = 0;
  std::vector<Token> tokens_;
};

}  // namespace

absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source) {
  return Lexer(NormalizeNewlines(source)).Run();
}

}  // namespace jevons::jinja
