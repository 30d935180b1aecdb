// Who owns which block of the KV cache.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "base/status.h"

namespace jevons {

inline constexpr int32_t kKvBlockTokens = 64;

class BlockManager;

// A reference to a KvBlock; the last one that is dropped returns the block. Move-only. Engine thread
// only.
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

// The blocks of one sequence, in the order of its tokens. Returns the last one first: of what is kept,
// a block is idle for longer than the one before it.
class BlockTable {
 public:
  BlockTable() = default;
  BlockTable(BlockTable&&) = default;
  BlockTable& operator=(BlockTable&&) = delete;
  ~BlockTable() { clear(); }

  void push_back(BlockRef block) { blocks_.push_back(std::move(block)); }
  void pop_back() { blocks_.pop_back(); }
  void clear() {
    while (!blocks_.empty()) blocks_.pop_back();
  }
  void reserve(size_t num_blocks) { blocks_.reserve(num_blocks); }

  BlockRef& operator[](size_t block_idx) { return blocks_[block_idx]; }
  const BlockRef& operator[](size_t block_idx) const { return blocks_[block_idx]; }
  size_t size() const { return blocks_.size(); }
  bool empty() const { return blocks_.empty(); }
  std::vector<BlockRef>::const_iterator begin() const { return blocks_.begin(); }
  std::vector<BlockRef>::const_iterator end() const { return blocks_.end(); }

 private:
  std::vector<BlockRef> blocks_;
};

// Engine thread only. Outlives every BlockRef it gave out.
//
// A block that is kept is not lost with its last reference: it is idle, and can be shared again until
// nothing else is free. Idle blocks count as free.
class BlockManager {
 public:
  explicit BlockManager(int32_t num_blocks);

  // The free block that was returned last, else the one that has been idle longest, which is not kept
  // any more; or nothing.
  std::optional<BlockRef> Allocate();

  // One more reference to a block that has some, or is idle.
  BlockRef Share(int32_t block_id);

  // Of a block with a reference, that is not kept.
  void Keep(int32_t block_id);
  void Forget(int32_t block_id);
  bool is_kept(int32_t block_id) const { return blocks_[block_id].is_kept; }
  // Called with each block that Allocate takes from what is kept.
  void OnEvict(std::function<void(int32_t block_id)> evicted) { evicted_ = std::move(evicted); }

  int32_t num_blocks() const { return static_cast<int32_t>(blocks_.size()); }
  int32_t num_free() const { return static_cast<int32_t>(free_.size()) + num_idle_; }
  int32_t num_refs(int32_t block_id) const { return blocks_[block_id].num_refs; }
  // Of the idle blocks, longest idle first.
  std::vector<int32_t> IdleBlocks() const;

  // free + referenced == total, no block twice. INTERNAL with the block at fault.
  absl::Status CheckIntegrity() const;

 private:
  friend class BlockRef;
  struct Block {
    int32_t num_refs = 0;
    bool is_kept = false;
    // Among the idle ones; -1: none.
    int32_t older = -1;
    int32_t newer = -1;
  };

  bool is_idle(const Block& block) const { return block.num_refs == 0 && block.is_kept; }
  void Release(int32_t block_id);
  void AddIdle(int32_t block_id);
  void RemoveIdle(int32_t block_id);

  std::vector<Block> blocks_;
  std::vector<int32_t> free_;
  int32_t oldest_idle_ = -1;
  int32_t newest_idle_ = -1;
  int32_t num_idle_ = 0;
  std::function<void(int32_t)> evicted_;
};

// Blocks that hold `num_tokens` tokens.
inline int64_t BlocksFor(int64_t num_tokens) {
  return (num_tokens + kKvBlockTokens - 1) / kKvBlockTokens;
}

}  // namespace jevons
