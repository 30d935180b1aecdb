// Finds added tokens in raw text.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace jevons {

// Immutable, thread-safe. Holds views of the contents, which must outlive it.
class AddedTokenMatcher {
 public:
  struct Entry {
    std::string_view content;  // not empty
    int32_t id = 0;
  };
  struct Match {
    size_t begin = 0;
    size_t end = 0;
    int32_t id = 0;
  };

  AddedTokenMatcher() = default;
  explicit AddedTokenMatcher(std::vector<Entry> entries);

  // The leftmost match in `text` that begins at `from` or later, the longest of those; a match with
  // one of `barriers` (rising) strictly inside does not count.
  std::optional<Match> Find(std::string_view text, size_t from,
                            std::span<const size_t> barriers) const;

  // The id of the token with exactly this content.
  std::optional<int32_t> FindContent(std::string_view content) const;

 private:
  struct Range {
    size_t begin = 0;
    size_t end = 0;
  };

  // The longest token that `text` begins with.
  const Entry* LongestPrefix(std::string_view text) const;

  std::vector<Entry> entries_;  // by content
  std::array<Range, 256> by_first_byte_{};
};

}  // namespace jevons
