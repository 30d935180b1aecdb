// ParseJson of chat_format.h.
#include <cmath>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/charconv.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "model/chat_format.h"
#include "model/error_text.h"
#include "model/jinja_text.h"

namespace jevons {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kMaxDepth = 64;

// Recursive descent. nlohmann's own parser has no limit of depth, keeps the last of two equal
// names, and looks each name up in a list.
class JsonParser {
 public:
  explicit JsonParser(std::string_view text) : text_(text) {}

  absl::StatusOr<Json> Run() {
    if (auto offset = FindInvalidUtf8(text_)) {
      pos_ = *offset;
      return Fail("ill-formed UTF-8");
    }
    Json value;
    RETURN_IF_ERROR(ParseValue(1, &value));
    SkipSpace();
    if (pos_ < text_.size()) return Fail("more text after the end of the value");
    return value;
  }

 private:
  absl::Status Fail(std::string_view what) const {
    return absl::InvalidArgumentError(
        absl::StrFormat("JSON: %s at offset %d", std::string(what), pos_));
  }

  void SkipSpace() {
    while (pos_ < text_.size() && (text_[pos_] == ' ' || text_[pos_] == '\t' ||
                                   text_[pos_] == '\n' || text_[pos_] == '\r')) {
      ++pos_;
    }
  }

  char Peek() const { return pos_ < text_.size() ? text_[pos_] : '\0'; }
  bool Take(char c) {
    bool found = pos_ < text_.size() && text_[pos_] == c;
    if (found) ++pos_;
    return found;
  }

  absl::Status ParseValue(int depth, Json* out) {
    SkipSpace();
    char c = Peek();
    if (c == '{' || c == '[') {
      if (depth > kMaxDepth)
        return Fail(absl::StrCat("nesting deeper than ", kMaxDepth, " levels"));
      return c == '{' ? ParseObject(depth, out) : ParseArray(depth, out);
    }
    if (c == '"') {
      std::string text;
      RETURN_IF_ERROR(ParseString(&text));
      *out = std::move(text);
      return absl::OkStatus();
    }
    if (c == '-' || (c >= '0' && c <= '9')) return ParseNumber(out);
    return ParseWord(out);
  }

  absl::Status ParseWord(Json* out) {
    static const std::pair<std::string_view, Json> kWords[] = {
        {"true", true}, {"false", false}, {"null", nullptr}};
    for (const auto& [word, value] : kWords) {
      if (text_.substr(pos_, word.size()) != word) continue;
      pos_ += word.size();
      *out = value;
      return absl::OkStatus();
    }
    return Fail(pos_ < text_.size() ? "unexpected character" : "unexpected end");
  }

  absl::Status ParseObject(int depth, Json* out) {
    ++pos_;
    *out = Json::object();
    auto& members = out->get_ref<Json::object_t&>();
    absl::flat_hash_set<std::string> names;
    SkipSpace();
    if (Take('}')) return absl::OkStatus();
    while (true) {
      SkipSpace();
      size_t begin = pos_;
      if (Peek() != '"') return Fail("expected a name");
      std::string name;
      RETURN_IF_ERROR(ParseString(&name));
      if (!names.insert(name).second) {
        pos_ = begin;
        return Fail(absl::StrCat("the name \"", Printable(name), "\" a second time"));
      }
      SkipSpace();
      if (!Take(':')) return Fail("expected ':'");
      Json value;
      RETURN_IF_ERROR(ParseValue(depth + 1, &value));
      members.emplace_back(std::move(name), std::move(value));
      SkipSpace();
      if (Take('}')) return absl::OkStatus();
      if (!Take(',')) return Fail("expected ',' or '}'");
    }
  }

  absl::Status ParseArray(int depth, Json* out) {
    ++pos_;
    *out = Json::array();
    SkipSpace();
    if (Take(']')) return absl::OkStatus();
    while (true) {
      Json value;
      RETURN_IF_ERROR(ParseValue(depth + 1, &value));
      out->push_back(std::move(value));
      SkipSpace();
      if (Take(']')) return absl::OkStatus();
      if (!Take(',')) return Fail("expected ',' or ']'");
    }
  }

  absl::Status ParseString(std::string* out) {
    ++pos_;
    while (true) {
      size_t end = pos_;
      while (end < text_.size() && text_[end] != '"' && text_[end] != '\\' &&
             static_cast<unsigned char>(text_[end]) >= 0x20) {
        ++end;
      }
      out->append(text_.substr(pos_, end - pos_));
      pos_ = end;
      if (pos_ >= text_.size()) return Fail("a string without end");
      if (Take('"')) return absl::OkStatus();
      if (text_[pos_] != '\\') return Fail("a control character in a string");
      RETURN_IF_ERROR(ParseEscape(out));
    }
  }

  absl::Status ParseEscape(std::string* out) {
    static constexpr std::string_view kFrom = "\"\\/bfnrt", kTo = "\"\\/\b\f\n\r\t";
    char c = pos_ + 1 < text_.size() ? text_[pos_ + 1] : '\0';
    size_t simple = kFrom.find(c);
    if (c != '\0' && simple != std::string_view::npos) {
      out->push_back(kTo[simple]);
      pos_ += 2;
      return absl::OkStatus();
    }
    std::optional<char32_t> unit = CodeUnitAt(pos_);
    if (!unit) return Fail("an escape that JSON does not have");
    size_t length = 6;
    if (*unit >= 0xD800 && *unit < 0xDC00) {
      std::optional<char32_t> low = CodeUnitAt(pos_ + 6);
      if (!low || *low < 0xDC00 || *low > 0xDFFF) return Fail("an unpaired surrogate");
      unit = 0x10000 + ((*unit - 0xD800) << 10) + (*low - 0xDC00);
      length = 12;
    } else if (*unit >= 0xDC00 && *unit < 0xE000) {
      return Fail("an unpaired surrogate");
    }
    jinja::AppendChar(*unit, out);
    pos_ += length;
    return absl::OkStatus();
  }

  // The value of \uXXXX at `pos`; nothing if that is not what stands there.
  std::optional<char32_t> CodeUnitAt(size_t pos) const {
    if (pos + 6 > text_.size() || text_[pos] != '\\' || text_[pos + 1] != 'u') return std::nullopt;
    char32_t unit = 0;
    for (size_t i = pos + 2; i < pos + 6; ++i) {
      char c = text_[i];
      char lower = static_cast<char>(c | 0x20);
      bool is_digit = c >= '0' && c <= '9';
      if (!is_digit && (lower < 'a' || lower > 'f')) return std::nullopt;
      unit = unit * 16 + static_cast<char32_t>(is_digit ? c - '0' : lower - 'a' + 10);
    }
    return unit;
  }

  bool TakeDigits() {
    size_t begin = pos_;
    while (pos_ < text_.size() && text_[pos_] >= '0' && text_[pos_] <= '9') ++pos_;
    return pos_ > begin;
  }

  absl::Status ParseNumber(Json* out) {
    size_t begin = pos_;
    bool is_integer = true;
    Take('-');
    if (!Take('0') && !TakeDigits()) return Fail("expected a digit");
    if (Take('.')) {
      is_integer = false;
      if (!TakeDigits()) return Fail("expected a digit");
    }
    if (Peek() == 'e' || Peek() == 'E') {
      is_integer = false;
      ++pos_;
      if (!Take('+')) Take('-');
      if (!TakeDigits()) return Fail("expected a digit");
    }
    absl::string_view number(text_.data() + begin, pos_ - begin);
    int64_t small = 0;
    uint64_t large = 0;
    if (is_integer && absl::SimpleAtoi(number, &small)) {
      *out = small;
    } else if (is_integer && number[0] != '-' && absl::SimpleAtoi(number, &large)) {
      *out = large;
    } else {
      double real = 0;
      auto result = absl::from_chars(number.data(), number.data() + number.size(), real);
      bool overflows = result.ec == std::errc::result_out_of_range && std::abs(real) > 1;
      if (overflows || !std::isfinite(real)) {
        pos_ = begin;
        return Fail("a number that is too large");
      }
      *out = real;
    }
    return absl::OkStatus();
  }

  std::string_view text_;
  size_t pos_ = 0;
};

}  // namespace

absl::StatusOr<nlohmann::ordered_json> ParseJson(std::string_view text) {
  return JsonParser(text).Run();
}

}  // namespace jevons
