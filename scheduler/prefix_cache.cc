#include "scheduler/prefix_cache.h"

#include <algorithm>
#include <bit>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/random.h"

namespace jevons {
namespace {

// Depends on the order of the tokens.
uint64_t ChainKey(uint64_t parent_key, std::span<const int32_t> token_ids) {
  uint64_t key = parent_key;
  for (size_t i = 0; i + 1 < token_ids.size(); i += 2) {
    const uint64_t pair = (static_cast<uint64_t>(static_cast<uint32_t>(token_ids[i])) << 32) |
                          static_cast<uint32_t>(token_ids[i + 1]);
    key = (key ^ pair) * 0x9e3779b97f4a7c15;
    key ^= key >> 29;
  }
  return RandomBits(key, token_ids.size());
}

// Of the first blocks.
uint64_t RootKey(uint64_t salt) { return RandomBits(salt, 0); }

std::span<const int32_t> TokensOf(std::span<const int32_t> token_ids, size_t block_idx) {
  return token_ids.subspan(block_idx * kKvBlockTokens, kKvBlockTokens);
}

}  // namespace

std::vector<uint64_t> PrefixKeys(std::span<const int32_t> token_ids, uint64_t salt) {
  std::vector<uint64_t> keys;
  uint64_t key = RootKey(salt);
  for (size_t i = 0; i < token_ids.size() / kKvBlockTokens; ++i) {
    key = ChainKey(key, TokensOf(token_ids, i));
    keys.push_back(key);
  }
  return keys;
}

void PrefixDigest::Apply(const PrefixChanges& changes) {
  if (!changes.cleared && changes.removed.empty() && changes.added.empty()) return;
  ++version_;
  if (changes.cleared) keys_.clear();
  for (const uint64_t key : changes.removed) keys_.erase(key);
  keys_.insert(changes.added.begin(), changes.added.end());
}

int32_t PrefixDigest::NumLeading(std::span<const uint64_t> keys) const {
  const auto missing =
      std::find_if(keys.begin(), keys.end(), [&](uint64_t key) { return !keys_.contains(key); });
  return static_cast<int32_t>(missing - keys.begin());
}

PrefixChanges PrefixDigest::ChangesTo(const PrefixDigest& other) const {
  PrefixChanges out;
  for (const uint64_t key : keys_) {
    if (!other.keys_.contains(key)) out.removed.push_back(key);
  }
  for (const uint64_t key : other.keys_) {
    if (!keys_.contains(key)) out.added.push_back(key);
  }
  return out;
}

PrefixCache::PrefixCache(BlockManager* blocks)
    : blocks_(blocks),
      nodes_(static_cast<size_t>(blocks->num_blocks())),
      buckets_(std::bit_ceil(nodes_.size() + 1), kNone) {
  blocks->OnEvict([this](int32_t block_id) { Evict(block_id); });
}

void PrefixCache::Match(std::span<const int32_t> token_ids, uint64_t salt, BlockTable& table) {
  CHECK(table.empty());
  int32_t parent = kNone;
  for (size_t i = 0; i < token_ids.size() / kKvBlockTokens; ++i) {
    const std::span<const int32_t> of_block = TokensOf(token_ids, i);
    parent = Find(KeyOf(parent, salt, of_block), parent, of_block);
    if (parent == kNone) return;
    table.push_back(blocks_->Share(parent));
  }
}

void PrefixCache::Insert(std::span<const int32_t> token_ids, uint64_t salt, size_t block_idx,
                         BlockTable& table) {
  CHECK(token_ids.size() == kKvBlockTokens && block_idx < table.size());
  const int32_t parent = block_idx == 0 ? kNone : table[block_idx - 1].block_id();
  CHECK(parent == kNone || blocks_->is_kept(parent));
  const uint64_t key = KeyOf(parent, salt, token_ids);
  const int32_t known = Find(key, parent, token_ids);
  if (known != kNone) {
    table[block_idx] = blocks_->Share(known);
    return;
  }
  const int32_t block_id = table[block_idx].block_id();
  blocks_->Keep(block_id);
  Node& node = nodes_[block_id];
  CHECK(node.num_children == 0);
  node.key = key;
  node.parent = parent;
  node.next = std::exchange(BucketOf(key), block_id);
  std::copy(token_ids.begin(), token_ids.end(), node.token_ids.begin());
  if (parent != kNone) ++nodes_[parent].num_children;
  ++num_known_;
  changes_.added.push_back(key);
}

int32_t PrefixCache::Find(uint64_t key, int32_t parent, std::span<const int32_t> token_ids) const {
  int32_t block_id = BucketOf(key);
  while (block_id != kNone) {
    const Node& node = nodes_[block_id];
    if (node.key == key && node.parent == parent &&
        std::equal(token_ids.begin(), token_ids.end(), node.token_ids.begin())) {
      break;
    }
    block_id = node.next;
  }
  return block_id;
}

uint64_t PrefixCache::KeyOf(int32_t parent, uint64_t salt,
                            std::span<const int32_t> token_ids) const {
  return ChainKey(parent == kNone ? RootKey(salt) : nodes_[parent].key, token_ids);
}

void PrefixCache::Evict(int32_t block_id) {
  Node& node = nodes_[block_id];
  CHECK(node.num_children == 0);
  int32_t* link = &BucketOf(node.key);
  while (*link != block_id) link = &nodes_[*link].next;
  *link = node.next;
  if (node.parent != kNone) --nodes_[node.parent].num_children;
  --num_known_;
  // Within one set of changes removing comes first.
  const auto added = std::find(changes_.added.begin(), changes_.added.end(), node.key);
  if (added != changes_.added.end()) {
    changes_.added.erase(added);
  } else {
    changes_.removed.push_back(node.key);
  }
  node = {};
}

void PrefixCache::Clear() {
  for (int32_t block_id = 0; block_id < blocks_->num_blocks(); ++block_id) {
    if (!blocks_->is_kept(block_id)) continue;
    blocks_->Forget(block_id);
    nodes_[block_id] = {};
  }
  std::fill(buckets_.begin(), buckets_.end(), kNone);
  num_known_ = 0;
  changes_ = {.cleared = true};
}

PrefixChanges PrefixCache::TakeChanges() { return std::exchange(changes_, {}); }

absl::Status PrefixCache::CheckIntegrity() const {
  std::vector<int32_t> num_children(nodes_.size());
  std::vector<bool> in_bucket(nodes_.size());
  for (const int32_t head : buckets_) {
    for (int32_t id = head; id != kNone; id = nodes_[id].next) {
      if (in_bucket[id]) return absl::InternalError(absl::StrCat("block ", id, " is known twice"));
      in_bucket[id] = true;
    }
  }
  int32_t num_known = 0;
  for (int32_t id = 0; id < blocks_->num_blocks(); ++id) {
    if (in_bucket[id] != blocks_->is_kept(id)) {
      return absl::InternalError(absl::StrCat("block ", id, in_bucket[id] ? " is" : " is not",
                                              " known, but is", in_bucket[id] ? " not" : "",
                                              " kept"));
    }
    if (!in_bucket[id]) continue;
    ++num_known;
    const int32_t parent = nodes_[id].parent;
    if (parent == kNone) continue;
    ++num_children[parent];
    if (blocks_->num_refs(parent) < blocks_->num_refs(id) || !blocks_->is_kept(parent)) {
      return absl::InternalError(
          absl::StrCat("block ", id, " is held, but block ", parent, " before it is not"));
    }
  }
  std::vector<bool> is_newer(nodes_.size());
  for (const int32_t id : blocks_->IdleBlocks()) {
    const int32_t parent = nodes_[id].parent;
    if (parent != kNone && is_newer[parent]) {
      return absl::InternalError(
          absl::StrCat("block ", id, " would be evicted after block ", parent, " before it"));
    }
    is_newer[id] = true;
  }
  for (int32_t id = 0; id < blocks_->num_blocks(); ++id) {
    if (nodes_[id].num_children == num_children[id]) continue;
    return absl::InternalError(absl::StrCat("block ", id, " counts ", nodes_[id].num_children,
                                            " blocks behind it, not ", num_children[id]));
  }
  if (num_known == num_known_) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(num_known, " blocks are known, not ", num_known_));
}

}  // namespace jevons
