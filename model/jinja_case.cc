#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "model/jinja_builtins.h"
#include "model/jinja_case_table.h"

namespace jevons::jinja {
namespace {

constexpr char32_t kCapitalSigma = 0x3A3, kCapitalDottedI = 0x130;

template <size_t N>
char32_t MapChar(const CaseRange (&table)[N], char32_t c) {
  auto it = std::lower_bound(std::begin(table), std::end(table), c,
                             [](const CaseRange& range, char32_t x) { return range.last < x; });
  if (it == std::end(table) || c < it->first || (c - it->first) % static_cast<char32_t>(it->stride))
    return c;
  return static_cast<char32_t>(static_cast<int64_t>(c) + it->delta);
}

void AppendUpper(char32_t c, std::string* out) {
  if (c < 0x80) return out->push_back(absl::ascii_toupper(static_cast<unsigned char>(c)));
  auto it = std::lower_bound(std::begin(kUpperExpansions), std::end(kUpperExpansions), c,
                             [](const CaseExpansion& e, char32_t x) { return e.from < x; });
  if (it == std::end(kUpperExpansions) || it->from != c)
    return AppendChar(MapChar(kToUpper, c), out);
  for (char32_t to : it->to) {
    if (to != 0) AppendChar(to, out);
  }
}

// The lower case of a capital sigma depends on what stands around it.
absl::Status AppendLower(char32_t c, std::string* out) {
  if (c == kCapitalSigma) return absl::UnimplementedError("the lower case of a capital sigma");
  if (c < 0x80) {
    out->push_back(absl::ascii_tolower(static_cast<unsigned char>(c)));
  } else if (c == kCapitalDottedI) {
    absl::StrAppend(out, "i\xCC\x87");
  } else {
    AppendChar(MapChar(kToLower, c), out);
  }
  return absl::OkStatus();
}

bool IsAsciiLetter(char32_t c) {
  return c < 0x80 && absl::ascii_isalpha(static_cast<unsigned char>(c));
}

}  // namespace

absl::StatusOr<Text> ChangeCase(const Text& text, LetterCase letter_case) {
  const std::string& bytes = text.bytes();
  Text out;
  bool begins_word = true;
  for (size_t offset = 0; offset < bytes.size();) {
    size_t begin = offset;
    char32_t c = NextChar(bytes, &offset);
    bool upper =
        letter_case == LetterCase::kUpper || (letter_case != LetterCase::kLower && begins_word);
    bool is_title = letter_case == LetterCase::kTitle || letter_case == LetterCase::kCapitalize;
    if (is_title && c >= 0x80 && (upper || letter_case == LetterCase::kTitle)) {
      return absl::UnimplementedError("title case beyond ASCII letters is not supported");
    }
    std::string mapped;
    if (upper) {
      AppendUpper(c, &mapped);
    } else {
      RETURN_IF_ERROR(AppendLower(c, &mapped));
    }
    out.Append(mapped, text.OriginAt(begin));
    begins_word = letter_case == LetterCase::kTitle && !IsAsciiLetter(c);
  }
  out.set_markup(text.is_markup());
  return out;
}

}  // namespace jevons::jinja
