#include "model/added_tokens.h"

#include <algorithm>

namespace jevons {
namespace {

bool ByContent(const AddedTokenMatcher::Entry& a, const AddedTokenMatcher::Entry& b) {
  return a.content < b.content;
}

uint8_t ByteAt(std::string_view text, size_t i) { return static_cast<uint8_t>(text[i]); }

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<Entry> entries) : entries_(std::move(entries)) {
  std::sort(entries_.begin(), entries_.end(), ByContent);
  for (size_t i = 0; i < entries_.size(); ++i) {
    Range& range = by_first_byte_[ByteAt(entries_[i].content, 0)];
    if (range.end == 0) range.begin = i;
    range.end = i + 1;
  }
}

const AddedTokenMatcher::Entry* AddedTokenMatcher::LongestPrefix(std::string_view text) const {
  Range range = by_first_byte_[ByteAt(text, 0)];
  const Entry* longest = nullptr;
  // The entries of `range` agree with `text` in the first `depth` bytes; the one that ends there
  // comes first.
  for (size_t depth = 1; range.begin < range.end; ++depth) {
    const Entry& first = entries_[range.begin];
    if (first.content.size() == depth) {
      longest = &first;
      ++range.begin;
    }
    if (depth == text.size()) break;
    const uint8_t byte = ByteAt(text, depth);
    const auto begin = entries_.begin() + static_cast<ptrdiff_t>(range.begin);
    const auto end = entries_.begin() + static_cast<ptrdiff_t>(range.end);
    const auto low = std::partition_point(
        begin, end, [&](const Entry& entry) { return ByteAt(entry.content, depth) < byte; });
    const auto high = std::partition_point(
        low, end, [&](const Entry& entry) { return ByteAt(entry.content, depth) == byte; });
    range = {static_cast<size_t>(low - entries_.begin()),
             static_cast<size_t>(high - entries_.begin())};
  }
  return longest;
}

std::optional<AddedTokenMatcher::Match> AddedTokenMatcher::Find(
    std::string_view text, size_t from, std::span<const size_t> barriers) const {
  if (entries_.empty()) return std::nullopt;
  for (size_t i = from; i < text.size(); ++i) {
    if (by_first_byte_[ByteAt(text, i)].end == 0) continue;
    const auto barrier = std::upper_bound(barriers.begin(), barriers.end(), i);
    const size_t limit =
        barrier == barriers.end() ? text.size() : std::min<size_t>(*barrier, text.size());
    const Entry* entry = LongestPrefix(text.substr(i, limit - i));
    if (entry != nullptr) return Match{i, i + entry->content.size(), entry->id};
  }
  return std::nullopt;
}

std::optional<int32_t> AddedTokenMatcher::FindContent(std::string_view content) const {
  const auto it = std::lower_bound(entries_.begin(), entries_.end(), Entry{content, 0}, ByContent);
  if (it == entries_.end() || it->content != content) return std::nullopt;
  return it->id;
}

}  // namespace jevons
