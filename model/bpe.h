// Byte-pair encoding of one piece of text.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace jevons {

// Immutable after set-up, thread-safe.
class Bpe {
 public:
  // `left` and `right` side by side become `result`. A merge's rank is its place in the list.
  struct Merge {
    int32_t left = 0;
    int32_t right = 0;
    int32_t result = 0;
  };
  // The token of each byte; -1 for bytes that the pieces never hold.
  using ByteIds = std::array<int32_t, 256>;

  Bpe() = default;
  // Of several merges with the same pair the last one counts.
  Bpe(const ByteIds& byte_ids, std::span<const Merge> merges);

  // A piece that is exactly `bytes` becomes `id` without looking at the merges.
  void AddWholePiece(std::string bytes, int32_t id) { whole_pieces_[std::move(bytes)] = id; }

  // Appends the tokens of `piece`: the merge with the lowest rank first, of equals the leftmost.
  // O(n log n) in the length, which is below 2^31.
  void Encode(std::string_view piece, std::vector<int32_t>& ids) const;

 private:
  struct Ranked {
    uint32_t rank = 0;
    int32_t result = 0;
  };
  static constexpr uint32_t kNoMerge = 0xFFFFFFFF;

  Ranked FindMerge(int32_t left, int32_t right) const;
  void EncodeShort(std::string_view piece, std::vector<int32_t>& ids) const;
  void EncodeLong(std::string_view piece, std::vector<int32_t>& ids) const;

  ByteIds byte_ids_{};
  absl::flat_hash_map<uint64_t, Ranked> merges_;  // by left << 32 | right
  absl::flat_hash_map<std::string, int32_t> whole_pieces_;
};

}  // namespace jevons
