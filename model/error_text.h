// Names and lists from files, as error texts show them.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/strings.h"

namespace jevons {

// `text` with control and non-ASCII bytes escaped, at most 200 bytes of it.
inline std::string Printable(std::string_view text) {
  constexpr size_t kMaxShown = 200;
  return absl::StrCat(absl::CHexEscape(ToAbsl(text.substr(0, kMaxShown))),
                      text.size() > kMaxShown ? "..." : "");
}

// "a, b and 3 more"
inline std::string FirstOf(const std::vector<std::string>& items, size_t max_shown,
                           const char* separator = ", ") {
  const size_t shown = std::min(items.size(), max_shown);
  const auto end = items.begin() + static_cast<std::ptrdiff_t>(shown);
  std::string text = absl::StrJoin(items.begin(), end, separator);
  if (shown < items.size()) absl::StrAppend(&text, " and ", items.size() - shown, " more");
  return text;
}

}  // namespace jevons
