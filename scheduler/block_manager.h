// Who owns which block of the KV cache.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "base/status.h"

namespace jevons {

inline constexpr int32_t kKvBlockTokens = 64;

class BlockManager;

// Owns one KvBlock; dropping it returns the block. Move-only. Engine thread only.
class BlockRef {
 public:
  BlockRef() = default;
  BlockRef(BlockRef&& other) noexcept;
  BlockRef& operator=(BlockRef&& other) noexcept;
  ~BlockRef() { Reset(); }

  int32_t block_id() const { return block_id_; }
  void Reset();

 private:
  friend class BlockManager;
  BlockRef(BlockManager* manager, int32_t block_id) : manager_(manager), block_id_(block_id) {}

  BlockManager* manager_ = nullptr;
  int32_t block_id_ = -1;
};

// The blocks of one sequence, in the order of its tokens.
using BlockTable = std::vector<BlockRef>;

// Engine thread only. Outlives every BlockRef it gave out.
class BlockManager {
 public:
  explicit BlockManager(int32_t num_blocks);

  // The free block that was returned last, or nothing.
  std::optional<BlockRef> Allocate();

  int32_t num_blocks() const { return static_cast<int32_t>(owned_.size()); }
  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }

  // free + owned == total, no block twice. INTERNAL with the block at fault.
  absl::Status CheckIntegrity() const;

 private:
  friend class BlockRef;
  void Release(int32_t block_id);

  std::vector<int32_t> free_;
  std::vector<bool> owned_;
};

// Blocks that hold `num_tokens` tokens.
inline int64_t BlocksFor(int64_t num_tokens) {
  return (num_tokens + kKvBlockTokens - 1) / kKvBlockTokens;
}

}  // namespace jevons
