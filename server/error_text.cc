#include "server/error_text.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/strings.h"
#include "model/tokenizer.h"

namespace jevons {
namespace {

constexpr size_t kMaxValueBytes = 200;

// Length of the longest head of `text` that has at most `max_bytes` and cuts no character.
size_t HeadBytes(std::string_view text, size_t max_bytes) {
  if (text.size() <= max_bytes) return text.size();
  size_t end = max_bytes;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return end;
}

}  // namespace

std::string QuoteValue(std::string_view value) {
  const std::string_view head = value.substr(0, HeadBytes(value, kMaxValueBytes));
  const bool well_formed = !FindInvalidUtf8(head).has_value();
  const std::string escaped =
      well_formed ? absl::Utf8SafeCEscape(ToAbsl(head)) : absl::CHexEscape(ToAbsl(head));
  if (head.size() == value.size()) return absl::StrCat("\"", escaped, "\"");
  return absl::StrCat("\"", escaped, "\"... (", value.size(), " bytes)");
}

std::string BoundText(std::string_view text) {
  if (text.size() <= kMaxErrorBytes) return std::string(text);
  constexpr std::string_view kCut = "...";
  const size_t end = HeadBytes(text, kMaxErrorBytes - kCut.size());
  return absl::StrCat(ToAbsl(text.substr(0, end)), ToAbsl(kCut));
}

absl::Status Prefixed(std::string_view prefix, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(ToAbsl(prefix), status.message()));
}

}  // namespace jevons
