// Which blocks of the KV cache hold which tokens, for sequences that begin as others did.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <unordered_set>
#include <vector>

#include "base/status.h"
#include "scheduler/block_manager.h"

namespace jevons {

// Of each whole block of the tokens, in order: depends on the salt and on all tokens up to the block's
// end, and on nothing else, so that ranks may compare them. Two blocks may have one key.
std::vector<uint64_t> PrefixKeys(std::span<const int32_t> token_ids, uint64_t salt);

// What has become of a cache's keys, in this order.
struct PrefixChanges {
  bool cleared = false;  // none of those before counts
  std::vector<uint64_t> removed = {};
  std::vector<uint64_t> added = {};
};

// A copy of the keys that a cache has. Thread-compatible.
class PrefixDigest {
 public:
  void Apply(const PrefixChanges& changes);
  // How many of the first keys it has.
  int32_t NumLeading(std::span<const uint64_t> keys) const;
  // What makes it equal to `other`.
  PrefixChanges ChangesTo(const PrefixDigest& other) const;
  size_t size() const { return keys_.size(); }
  // Rises with each change; copied with the rest.
  int64_t version() const { return version_; }

 private:
  std::unordered_set<uint64_t> keys_;
  int64_t version_ = 0;
};

// Engine thread only.
//
// Blocks form trees: a block is known by its tokens and the block before it. Both are compared, so
// what is found holds exactly what was asked for. Only whole blocks are known, after they were
// computed, and nobody writes to them any more. Whoever holds a block holds those before it and
// returns them later, as a BlockTable does, so that a block is evicted before the one it follows.
class PrefixCache {
 public:
  explicit PrefixCache(BlockManager* blocks);

  // Fills the empty table with the longest prefix of `token_ids` that is known.
  void Match(std::span<const int32_t> token_ids, uint64_t salt, BlockTable& table);

  // table[block_idx] holds these kKvBlockTokens tokens, behind the blocks before it, which are known.
  // Where another block is known for that, the table gets it instead: each holds the same, to the bit.
  void Insert(std::span<const int32_t> token_ids, uint64_t salt, size_t block_idx,
              BlockTable& table);

  // What is known is not so any more.
  void Clear();

  int32_t num_known() const { return num_known_; }
  // Since the last call.
  PrefixChanges TakeChanges();

  // INTERNAL with the first block at fault.
  absl::Status CheckIntegrity() const;

 private:
  static constexpr int32_t kNone = -1;
  // By block. Those of one bucket are linked.
  struct Node {
    uint64_t key = 0;
    int32_t parent = kNone;  // the block before it
    int32_t next = kNone;
    int32_t num_children = 0;
    std::array<int32_t, kKvBlockTokens> token_ids = {};
  };

  int32_t& BucketOf(uint64_t key) { return buckets_[key & (buckets_.size() - 1)]; }
  int32_t BucketOf(uint64_t key) const { return buckets_[key & (buckets_.size() - 1)]; }
  int32_t Find(uint64_t key, int32_t parent, std::span<const int32_t> token_ids) const;
  uint64_t KeyOf(int32_t parent, uint64_t salt, std::span<const int32_t> token_ids) const;
  void Evict(int32_t block_id);

  BlockManager* const blocks_;
  std::vector<Node> nodes_;
  std::vector<int32_t> buckets_;  // a power of two
  int32_t num_known_ = 0;
  PrefixChanges changes_;
};

}  // namespace jevons
