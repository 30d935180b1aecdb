// Filters that make text or a scalar.
#include <algorithm>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "model/jinja_filters.h"

namespace jevons::jinja {
namespace {

constexpr Int kMaxIndent = 1000;

using R = absl::StatusOr<Value>;
using A = const FilterArgs&;
using V = const Value&;

absl::StatusOr<std::string> IndentOf(const Value& width) {
  if (width.text()) return width.text()->bytes();
  if (!width.is_integral()) return absl::InvalidArgumentError("indent: expected int or str");
  if (width.AsInt() > kMaxIndent) {
    return absl::InvalidArgumentError(
        absl::StrFormat("indent: %s, at most %s", FormatInt(width.AsInt()), FormatInt(kMaxIndent)));
  }
  return std::string(static_cast<size_t>(std::max<Int>(width.AsInt(), 0)), ' ');
}

R ToJson(Evaluator&, V input, A args) {
  JsonStyle style;
  style.ensure_ascii = Truth(args[0]);
  if (args[1] && !args[1]->is_none()) {
    ASSIGN_OR_RETURN(style.indent, IndentOf(*args[1]));
    style.item_separator = std::string(1, ',');
  }
  if (args[2] && !args[2]->is_none()) {
    ASSIGN_OR_RETURN(std::vector<Value> separators, Iterate(*args[2]));
    if (separators.size() != 2 || !separators[0].text() || !separators[1].text()) {
      return absl::InvalidArgumentError("tojson: separators must be two strings");
    }
    style.item_separator = separators[0].text()->bytes();
    style.key_separator = separators[1].text()->bytes();
  }
  style.sort_keys = Truth(args[3]);
  Text out;
  RETURN_IF_ERROR(AppendJson(input, style, &out));
  return Value(std::move(out));
}

R Trim(Evaluator&, V input, A args) {
  ASSIGN_OR_RETURN(Text text, TextInput(input));
  std::optional<std::string_view> chars;
  if (args[0] && !args[0]->is_none()) {
    if (!args[0]->text()) return absl::InvalidArgumentError("strip arg must be None or str");
    chars = args[0]->text()->bytes();
  }
  ByteRange range = StripRange(text.bytes(), chars, true, true);
  return Value(text.Part(range.begin, range.end));
}

R Case(V input, LetterCase letter_case) {
  ASSIGN_OR_RETURN(Text text, TextInput(input));
  ASSIGN_OR_RETURN(Text changed, ChangeCase(text, letter_case));
  return Value(std::move(changed));
}

// Jinja2's own notion of words, which differs from str.title().
R Title(Evaluator&, V input, A) {
  ASSIGN_OR_RETURN(Text text, TextInput(input));
  if (!IsAscii(text.bytes()))
    return absl::UnimplementedError("title beyond ASCII is not supported");
  Text out;
  bool begins_word = true;
  for (size_t i = 0; i < text.size(); ++i) {
    unsigned char c = static_cast<unsigned char>(text.bytes()[i]);
    char mapped = begins_word ? absl::ascii_toupper(c) : absl::ascii_tolower(c);
    out.Append(std::string_view(&mapped, 1), text.OriginAt(i));
    begins_word = absl::ascii_isspace(c) ||
                  std::string_view("-({[<").find(static_cast<char>(c)) != std::string_view::npos;
  }
  out.set_markup(text.is_markup());
  return Value(std::move(out));
}

R Replace(Evaluator&, V input, A args) {
  ASSIGN_OR_RETURN(Text text, TextInput(input));
  ASSIGN_OR_RETURN(Text from, TextInput(*args[0]));
  ASSIGN_OR_RETURN(Text to, TextInput(*args[1]));
  ASSIGN_OR_RETURN(Int count, IntOr(args[2], -1));
  return Value(ReplaceText(text, from.bytes(), to, count));
}

R Indent(Evaluator& eval, V input, A args) {
  if (input.is_undefined()) return absl::InvalidArgumentError(input.undefined_message());
  if (!input.text()) {
    return absl::InvalidArgumentError(absl::StrCat("indent: expected str, got ", input.TypeName()));
  }
  const Text& text = *input.text();
  ASSIGN_OR_RETURN(std::string indent, IndentOf(args[0] ? *args[0] : Value(Int{4})));
  bool first = Truth(args[1]), blank = Truth(args[2]);
  Text with_end = text;
  with_end.Append("\n");
  std::vector<Text> lines = SplitLines(with_end, false);
  eval.Charge(lines.size() * (sizeof(Text) + indent.size()));
  Text out;
  if (first) out.Append(indent);
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out.Append("\n");
    if (i > 0 && (blank || !lines[i].empty())) out.Append(indent);
    out.Append(lines[i]);
  }
  return Value(std::move(out));
}

R ToString(Evaluator&, V input, A) {
  ASSIGN_OR_RETURN(Text text, TextInput(input));
  return Value(std::move(text));
}

R Safe(Evaluator&, V input, A) {
  ASSIGN_OR_RETURN(Text text, TextInput(input));
  text.set_markup(true);
  return Value(std::move(text));
}

R Escape(Evaluator&, V input, A) {
  ASSIGN_OR_RETURN(Text text, TextInput(input));
  return Value(text.is_markup() ? text : EscapeHtml(text));
}

// int(text, base) of Python; nothing where it raises.
std::optional<Int> ParseInt(std::string_view text, int base) {
  ByteRange range = StripRange(text, std::nullopt, true, true);
  std::string_view digits = text.substr(range.begin, range.end - range.begin);
  bool is_negative = !digits.empty() && digits[0] == '-';
  if (is_negative || (!digits.empty() && digits[0] == '+')) digits.remove_prefix(1);
  char letter = base == 16 ? 'x' : base == 8 ? 'o' : base == 2 ? 'b' : '\0';
  if (letter && digits.size() > 2 && digits[0] == '0' && (digits[1] | 0x20) == letter) {
    digits.remove_prefix(2);
  }
  if (digits.empty() || digits.size() > 30) return std::nullopt;
  Int value = 0;
  for (char c : digits) {
    unsigned char u = static_cast<unsigned char>(c);
    int digit = absl::ascii_isdigit(u)   ? c - '0'
                : absl::ascii_isalpha(u) ? absl::ascii_tolower(u) - 'a' + 10
                                         : base;
    if (digit >= base || __builtin_mul_overflow(value, static_cast<Int>(base), &value) ||
        __builtin_add_overflow(value, static_cast<Int>(digit), &value)) {
      return std::nullopt;
    }
  }
  return is_negative ? -value : value;
}

std::optional<double> ParseFloat(std::string_view text) {
  ByteRange range = StripRange(text, std::nullopt, true, true);
  double value = 0;
  std::string_view inner = text.substr(range.begin, range.end - range.begin);
  if (!absl::SimpleAtod(absl::string_view(inner.data(), inner.size()), &value)) return std::nullopt;
  return value;
}

std::optional<Int> TruncateFloat(double value) {
  if (!(std::abs(value) < 1e36)) return std::nullopt;
  return static_cast<Int>(value);
}

R ToInt(Evaluator&, V input, A args) {
  if (input.is_undefined()) return absl::InvalidArgumentError(input.undefined_message());
  ASSIGN_OR_RETURN(Int base, IntOr(args[1], 10));
  if (base < 2 || base > 36) return absl::UnimplementedError("int with a base that is not 2 to 36");
  std::optional<Int> value;
  if (input.is_integral()) value = input.AsInt();
  if (input.is_float()) value = TruncateFloat(input.AsDouble());
  if (input.text()) {
    value = ParseInt(input.text()->bytes(), static_cast<int>(base));
    auto real = value ? std::nullopt : ParseFloat(input.text()->bytes());
    if (real) value = TruncateFloat(*real);
  }
  if (value) return Value(*value);
  return args[0] ? *args[0] : Value(Int{0});
}

R ToFloat(Evaluator&, V input, A args) {
  if (input.is_undefined()) return absl::InvalidArgumentError(input.undefined_message());
  if (input.is_number()) return Value(input.AsDouble());
  auto value = input.text() ? ParseFloat(input.text()->bytes()) : std::nullopt;
  if (value) return Value(*value);
  return args[0] ? *args[0] : Value(0.0);
}

R Abs(Evaluator&, V input, A) {
  if (!input.is_number()) {
    return absl::InvalidArgumentError(
        absl::StrCat("bad operand type for abs(): '", input.TypeName(), "'"));
  }
  if (input.is_float()) return Value(std::abs(input.AsDouble()));
  return Value(input.AsInt() < 0 ? -input.AsInt() : input.AsInt());
}

R Round(Evaluator&, V input, A args) {
  ASSIGN_OR_RETURN(Int precision, IntOr(args[0], 0));
  if (!input.is_number()) return absl::InvalidArgumentError("round: expected a number");
  std::string_view method =
      args[1] && args[1]->text() ? std::string_view(args[1]->text()->bytes()) : "common";
  if (precision < 0 || precision > 15)
    return absl::UnimplementedError("round with a precision that is not 0 to 15");
  if (method == "common" && input.is_integral()) return Value(input.AsInt());
  double scale = std::pow(10.0, static_cast<double>(precision));
  if (method == "ceil") return Value(std::ceil(input.AsDouble() * scale) / scale);
  if (method == "floor") return Value(std::floor(input.AsDouble() * scale) / scale);
  if (method != "common") return absl::InvalidArgumentError("method must be common, ceil or floor");
  // The decimal digits decide, as in Python: 2.675 is a little less than that and becomes 2.67.
  double rounded = 0;
  if (!absl::SimpleAtod(absl::StrFormat("%.*f", static_cast<int>(precision), input.AsDouble()),
                        &rounded)) {
    return absl::InvalidArgumentError("round: not a number");
  }
  return Value(rounded);
}

R WordCount(Evaluator&, V input, A) {
  ASSIGN_OR_RETURN(Text text, TextInput(input));
  if (!IsAscii(text.bytes()))
    return absl::UnimplementedError("wordcount beyond ASCII is not supported");
  size_t count = 0;
  bool in_word = false;
  for (char c : text.bytes()) {
    bool is_word = absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '_';
    if (is_word && !in_word) ++count;
    in_word = is_word;
  }
  return Value::OfSize(count);
}

R Default(Evaluator&, V input, A args) {
  bool replaces = input.is_undefined() || (Truth(args[1]) && !input.Truth());
  if (!replaces) return input;
  return args[0] ? *args[0] : Value(Text());
}

R Length(Evaluator&, V input, A) {
  ASSIGN_OR_RETURN(size_t length, LengthOf(input));
  return Value::OfSize(length);
}

}  // namespace

absl::StatusOr<Text> TextInput(const Value& value) { return ToText(value); }

absl::StatusOr<Int> IntOr(const std::optional<Value>& value, Int absent) {
  if (!value || value->is_none()) return absent;
  if (value->is_integral()) return value->AsInt();
  return absl::InvalidArgumentError(absl::StrCat("expected int, got ", value->TypeName()));
}

const std::vector<FilterDef>& TextFilters() {
  static const auto* const filters = new std::vector<FilterDef>{
      {"tojson", {{"ensure_ascii", "indent", "separators", "sort_keys"}, 0}, ToJson},
      {"trim", {{"chars"}, 0}, Trim},
      {"upper", {}, [](Evaluator&, V v, A) -> R { return Case(v, LetterCase::kUpper); }},
      {"lower", {}, [](Evaluator&, V v, A) -> R { return Case(v, LetterCase::kLower); }},
      {"capitalize", {}, [](Evaluator&, V v, A) -> R { return Case(v, LetterCase::kCapitalize); }},
      {"title", {}, Title},
      {"replace", {{"old", "new", "count"}, 2}, Replace},
      {"indent", {{"width", "first", "blank"}, 0}, Indent},
      {"string", {}, ToString},
      {"safe", {}, Safe},
      {"escape", {}, Escape},
      {"e", {}, Escape},
      {"int", {{"default", "base"}, 0}, ToInt},
      {"float", {{"default"}, 0}, ToFloat},
      {"abs", {}, Abs},
      {"round", {{"precision", "method"}, 0}, Round},
      {"wordcount", {}, WordCount},
      {"default", {{"default_value", "boolean"}, 0}, Default},
      {"d", {{"default_value", "boolean"}, 0}, Default},
      {"length", {}, Length},
      {"count", {}, Length},
  };
  return *filters;
}

}  // namespace jevons::jinja
