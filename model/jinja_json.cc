// json.dumps.
#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "model/jinja_builtins.h"

namespace jevons::jinja {
namespace {

std::string EscapeCodeUnit(unsigned unit) { return absl::StrFormat("\\u%04x", unit); }

// Empty where the character is written as it is.
std::string EscapeForJson(char32_t c, bool ensure_ascii) {
  switch (c) {
    case '"':
      return "\\\"";
    case '\\':
      return "\\\\";
    case '\n':
      return "\\n";
    case '\r':
      return "\\r";
    case '\t':
      return "\\t";
    case '\f':
      return "\\f";
    case '\b':
      return "\\b";
    default:
      break;
  }
  if (c < 0x20) return EscapeCodeUnit(c);
  if (!ensure_ascii || c < 0x7F) return "";
  if (c < 0x10000) return EscapeCodeUnit(c);
  return EscapeCodeUnit(0xD800 + ((c - 0x10000) >> 10)) +
         EscapeCodeUnit(0xDC00 + ((c - 0x10000) & 0x3FF));
}

void AppendJsonString(const Text& text, bool ensure_ascii, Text* out) {
  const std::string& bytes = text.bytes();
  out->Append("\"");
  size_t plain = 0;
  for (size_t offset = 0; offset < bytes.size();) {
    size_t begin = offset;
    std::string escaped = EscapeForJson(NextChar(bytes, &offset), ensure_ascii);
    if (escaped.empty()) continue;
    out->AppendPart(text, plain, begin);
    out->Append(escaped, text.OriginAt(begin));
    plain = offset;
  }
  out->AppendPart(text, plain, bytes.size());
  out->Append("\"");
}

std::string JsonNumber(const Value& value) {
  if (value.is_int()) return FormatInt(value.AsInt());
  double number = value.AsDouble();
  if (std::isnan(number)) return "NaN";
  if (std::isinf(number)) return number < 0 ? "-Infinity" : "Infinity";
  return FormatFloat(number);
}

absl::Status NotSerializable(const Value& value) {
  return absl::InvalidArgumentError(
      absl::StrFormat("Object of type %s is not JSON serializable", value.TypeName()));
}

class Writer {
 public:
  Writer(const JsonStyle& style, Text* out) : style_(style), out_(out) {}

  absl::Status Write(const Value& value, int level) {
    if (value.is_none()) {
      out_->Append("null");
    } else if (value.is_bool()) {
      out_->Append(value.AsBool() ? "true" : "false");
    } else if (value.is_number()) {
      out_->Append(JsonNumber(value));
    } else if (value.text()) {
      AppendJsonString(*value.text(), style_.ensure_ascii, out_);
    } else if (value.dict()) {
      return WriteDict(*value.dict(), level);
    } else if (value.list() &&
               (value.list()->kind == ListKind::kList || value.list()->kind == ListKind::kTuple)) {
      return WriteList(*value.list(), level);
    } else {
      return NotSerializable(value);
    }
    return absl::OkStatus();
  }

 private:
  void NewLine(int level) {
    if (!style_.indent) return;
    out_->Append("\n");
    for (int i = 0; i < level; ++i) out_->Append(*style_.indent);
  }

  void Separate(bool is_first, int level) {
    if (!is_first) out_->Append(style_.item_separator);
    NewLine(level);
  }

  absl::Status WriteList(const List& list, int level) {
    if (list.items.empty()) {
      out_->Append("[]");
      return absl::OkStatus();
    }
    out_->Append("[");
    for (size_t i = 0; i < list.items.size(); ++i) {
      Separate(i == 0, level + 1);
      RETURN_IF_ERROR(Write(list.items[i], level + 1));
    }
    NewLine(level);
    out_->Append("]");
    return absl::OkStatus();
  }

  absl::Status WriteDict(const Dict& dict, int level) {
    std::vector<const Entry*> entries;
    for (const Entry& entry : dict.entries()) entries.push_back(&entry);
    if (style_.sort_keys) RETURN_IF_ERROR(Sort(&entries));
    if (entries.empty()) {
      out_->Append("{}");
      return absl::OkStatus();
    }
    out_->Append("{");
    for (size_t i = 0; i < entries.size(); ++i) {
      Separate(i == 0, level + 1);
      RETURN_IF_ERROR(WriteKey(entries[i]->first));
      out_->Append(style_.key_separator);
      RETURN_IF_ERROR(Write(entries[i]->second, level + 1));
    }
    NewLine(level);
    out_->Append("}");
    return absl::OkStatus();
  }

  static absl::Status Sort(std::vector<const Entry*>* entries) {
    for (const Entry* entry : *entries) {
      if (!entry->first.text())
        return absl::UnimplementedError("sort_keys with keys that are not strings");
    }
    std::stable_sort(entries->begin(), entries->end(), [](const Entry* a, const Entry* b) {
      return a->first.text()->bytes() < b->first.text()->bytes();
    });
    return absl::OkStatus();
  }

  absl::Status WriteKey(const Value& key) {
    if (key.text()) {
      AppendJsonString(*key.text(), style_.ensure_ascii, out_);
      return absl::OkStatus();
    }
    if (!key.is_number() && !key.is_none()) {
      return absl::InvalidArgumentError(
          absl::StrFormat("keys must be str, int, float, bool or None, not %s", key.TypeName()));
    }
    out_->Append("\"");
    RETURN_IF_ERROR(Write(key, 0));
    out_->Append("\"");
    return absl::OkStatus();
  }

  const JsonStyle& style_;
  Text* out_;
};

}  // namespace

absl::Status AppendJson(const Value& value, const JsonStyle& style, Text* out) {
  return Writer(style, out).Write(value, 0);
}

}  // namespace jevons::jinja
