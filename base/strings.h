// Debian's Abseil has a string_view of its own; ours is the standard one.
#pragma once

#include <string_view>

#include "absl/strings/string_view.h"

namespace jevons {

inline absl::string_view ToAbsl(std::string_view s) {
  return absl::string_view(s.data(), s.size());
}
inline std::string_view ToStd(absl::string_view s) { return std::string_view(s.data(), s.size()); }

}  // namespace jevons
