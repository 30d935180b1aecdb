// Error texts as clients see them: the given value shortened and escaped, the whole text bounded.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"

namespace jevons {

// At most 200 bytes of `value`, quoted, control characters and ill-formed UTF-8 escaped; what was
// cut is said with the full length.
std::string QuoteValue(std::string_view value);

// Trailers have a limit: the text cut to 1000 bytes at a character's boundary.
constexpr size_t kMaxErrorBytes = 1000;
std::string BoundText(std::string_view text);

// The same code with `prefix` before the text.
absl::Status Prefixed(std::string_view prefix, const absl::Status& status);

}  // namespace jevons
