// Printing of values as Python prints them.
#include <charconv>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "model/jinja_value.h"

namespace jevons::jinja {
namespace {

// Whether repr() of Python writes the character itself. Beyond ASCII it knows the unassigned ones
// too; we write those.
bool IsPrintable(char32_t c) {
  if (c < 0x7F) return c >= 0x20;
  if (c < 0xA1 || c == 0xAD) return false;
  return !IsSpace(c) && !(c >= 0x200B && c <= 0x200F) && !(c >= 0x202A && c <= 0x202E) &&
         !(c >= 0x2060 && c <= 0x206F) && c != 0xFEFF && !(c >= 0xE000 && c <= 0xF8FF) &&
         !(c >= 0xFDD0 && c <= 0xFDEF) && (c & 0xFFFE) != 0xFFFE && !(c >= 0xFFF9 && c <= 0xFFFB) &&
         c < 0xE0000;
}

std::string EscapeForRepr(char32_t c, char quote) {
  switch (c) {
    case '\n':
      return "\\n";
    case '\r':
      return "\\r";
    case '\t':
      return "\\t";
    case '\\':
      return "\\\\";
    default:
      break;
  }
  if (c == static_cast<char32_t>(quote)) return std::string("\\") + quote;
  if (c < 0x100) return absl::StrFormat("\\x%02x", static_cast<unsigned>(c));
  if (c < 0x10000) return absl::StrFormat("\\u%04x", static_cast<unsigned>(c));
  return absl::StrFormat("\\U%08x", static_cast<unsigned>(c));
}

void AppendStringRepr(const Text& text, Text* out) {
  const std::string& bytes = text.bytes();
  bool has_single = bytes.find('\'') != std::string::npos;
  char quote = has_single && bytes.find('"') == std::string::npos ? '"' : '\'';
  if (text.is_markup()) out->Append("Markup(");
  out->Append(std::string(1, quote));
  size_t plain = 0;
  for (size_t offset = 0; offset < bytes.size();) {
    size_t begin = offset;
    char32_t c = NextChar(bytes, &offset);
    if (IsPrintable(c) && c != '\\' && c != static_cast<char32_t>(quote)) continue;
    out->AppendPart(text, plain, begin);
    out->Append(EscapeForRepr(c, quote), text.OriginAt(begin));
    plain = offset;
  }
  out->AppendPart(text, plain, bytes.size());
  out->Append(std::string(1, quote));
  if (text.is_markup()) out->Append(")");
}

absl::Status AppendListRepr(const List& list, Text* out) {
  const char* open = "[";
  const char* close = "]";
  switch (list.kind) {
    case ListKind::kTuple:
      open = "(";
      close = list.items.size() == 1 ? ",)" : ")";
      break;
    case ListKind::kKeys:
      open = "dict_keys([";
      close = "])";
      break;
    case ListKind::kValues:
      open = "dict_values([";
      close = "])";
      break;
    case ListKind::kItems:
      open = "dict_items([";
      close = "])";
      break;
    case ListKind::kRange:
      return absl::UnimplementedError("printing a range");
    case ListKind::kGenerator:
      return absl::InvalidArgumentError("a generator has no text; pipe it through list or join");
    case ListKind::kList:
      break;
  }
  out->Append(open);
  for (size_t i = 0; i < list.items.size(); ++i) {
    if (i > 0) out->Append(", ");
    RETURN_IF_ERROR(AppendRepr(list.items[i], out));
  }
  out->Append(close);
  return absl::OkStatus();
}

absl::Status AppendDictRepr(const Dict& dict, Text* out) {
  out->Append("{");
  bool is_first = true;
  for (const auto& [key, value] : dict.entries()) {
    if (!is_first) out->Append(", ");
    is_first = false;
    RETURN_IF_ERROR(AppendRepr(key, out));
    out->Append(": ");
    RETURN_IF_ERROR(AppendRepr(value, out));
  }
  out->Append("}");
  return absl::OkStatus();
}

}  // namespace

std::string FormatInt(Int value) {
  if (value == 0) return "0";
  bool is_negative = value < 0;
  std::string digits;
  for (; value != 0; value /= 10) {
    int digit = static_cast<int>(value % 10);
    digits.push_back(static_cast<char>('0' + (digit < 0 ? -digit : digit)));
  }
  if (is_negative) digits.push_back('-');
  return std::string(digits.rbegin(), digits.rend());
}

std::string FormatFloat(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[64];
  auto result =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific);
  std::string_view shortest(buffer, static_cast<size_t>(result.ptr - buffer));
  size_t e = shortest.find('e');
  int exponent = 0;
  size_t digits_at = e + 1 + (shortest[e + 1] == '+' ? 1 : 0);
  std::from_chars(shortest.data() + digits_at, shortest.data() + shortest.size(), exponent);
  if (exponent < -4 || exponent >= 16) return std::string(shortest);
  result = std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::fixed);
  std::string fixed(buffer, result.ptr);
  if (fixed.find('.') == std::string::npos) fixed += ".0";
  return fixed;
}

absl::Status AppendRepr(const Value& value, Text* out) {
  if (value.is_undefined()) {
    out->Append("Undefined");
  } else if (value.is_none()) {
    out->Append("None");
  } else if (value.is_bool()) {
    out->Append(value.AsBool() ? "True" : "False");
  } else if (value.is_int()) {
    out->Append(FormatInt(value.AsInt()));
  } else if (value.is_float()) {
    out->Append(FormatFloat(value.AsDouble()));
  } else if (const Text* t = value.text()) {
    AppendStringRepr(*t, out);
  } else if (const List* l = value.list()) {
    return AppendListRepr(*l, out);
  } else if (const Dict* d = value.dict()) {
    return AppendDictRepr(*d, out);
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("an object of type '", value.TypeName(), "' has no text"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Text> ToText(const Value& value) {
  if (value.text()) return *value.text();
  Text out;
  if (value.is_undefined()) return out;
  RETURN_IF_ERROR(AppendRepr(value, &out));
  return out;
}

}  // namespace jevons::jinja
