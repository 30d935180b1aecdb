#include "scheduler/block_manager.h"

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace jevons {

BlockRef::BlockRef(BlockRef&& other) noexcept
    : manager_(std::exchange(other.manager_, nullptr)),
      block_id_(std::exchange(other.block_id_, -1)) {}

BlockRef& BlockRef::operator=(BlockRef&& other) noexcept {
  if (this == &other) return *this;
  Reset();
  manager_ = std::exchange(other.manager_, nullptr);
  block_id_ = std::exchange(other.block_id_, -1);
  return *this;
}

void BlockRef::Reset() {
  if (manager_ == nullptr) return;
  manager_->Release(block_id_);
  manager_ = nullptr;
  block_id_ = -1;
}

BlockManager::BlockManager(int32_t num_blocks) {
  CHECK(num_blocks >= 0);
  blocks_.resize(static_cast<size_t>(num_blocks));
  free_.reserve(blocks_.size());
  for (int32_t block_id = num_blocks - 1; block_id >= 0; --block_id) free_.push_back(block_id);
}

std::optional<BlockRef> BlockManager::Allocate() {
  int32_t block_id = oldest_idle_;
  if (!free_.empty()) {
    block_id = free_.back();
    free_.pop_back();
  } else if (block_id >= 0) {
    RemoveIdle(block_id);
    blocks_[block_id].is_kept = false;
    evicted_(block_id);
  } else {
    return std::nullopt;
  }
  blocks_[block_id].num_refs = 1;
  return BlockRef(this, block_id);
}

BlockRef BlockManager::Share(int32_t block_id) {
  Block& block = blocks_[block_id];
  CHECK(block.num_refs > 0 || block.is_kept);
  if (block.num_refs == 0) RemoveIdle(block_id);
  ++block.num_refs;
  return BlockRef(this, block_id);
}

void BlockManager::Keep(int32_t block_id) {
  Block& block = blocks_[block_id];
  CHECK(block.num_refs > 0 && !block.is_kept);
  block.is_kept = true;
}

void BlockManager::Forget(int32_t block_id) {
  Block& block = blocks_[block_id];
  CHECK(block.is_kept);
  if (block.num_refs == 0) {
    RemoveIdle(block_id);
    free_.push_back(block_id);
  }
  block.is_kept = false;
}

void BlockManager::Release(int32_t block_id) {
  Block& block = blocks_[block_id];
  CHECK(block.num_refs > 0);
  if (--block.num_refs > 0) return;
  if (block.is_kept) {
    AddIdle(block_id);
  } else {
    free_.push_back(block_id);
  }
}

void BlockManager::AddIdle(int32_t block_id) {
  Block& block = blocks_[block_id];
  block.older = newest_idle_;
  block.newer = -1;
  (newest_idle_ < 0 ? oldest_idle_ : blocks_[newest_idle_].newer) = block_id;
  newest_idle_ = block_id;
  ++num_idle_;
}

void BlockManager::RemoveIdle(int32_t block_id) {
  const Block& block = blocks_[block_id];
  (block.older < 0 ? oldest_idle_ : blocks_[block.older].newer) = block.newer;
  (block.newer < 0 ? newest_idle_ : blocks_[block.newer].older) = block.older;
  --num_idle_;
}

std::vector<int32_t> BlockManager::IdleBlocks() const {
  std::vector<int32_t> out;
  for (int32_t id = oldest_idle_; id >= 0 && out.size() <= blocks_.size(); id = blocks_[id].newer) {
    out.push_back(id);
  }
  return out;
}

absl::Status BlockManager::CheckIntegrity() const {
  std::vector<bool> seen(blocks_.size());
  for (const int32_t block_id : free_) {
    if (block_id < 0 || block_id >= num_blocks()) {
      return absl::InternalError(
          absl::StrCat("free block ", block_id, " is outside [0, ", num_blocks(), ")"));
    }
    if (blocks_[block_id].num_refs != 0 || blocks_[block_id].is_kept) {
      return absl::InternalError(absl::StrCat("block ", block_id, " is free, but has ",
                                              blocks_[block_id].num_refs, " references",
                                              blocks_[block_id].is_kept ? " and is kept" : ""));
    }
    if (seen[block_id]) {
      return absl::InternalError(absl::StrCat("block ", block_id, " is free twice"));
    }
    seen[block_id] = true;
  }
  const std::vector<int32_t> idle = IdleBlocks();
  if (static_cast<int32_t>(idle.size()) != num_idle_) {
    return absl::InternalError(
        absl::StrCat(idle.size(), " blocks are in the list of idle ones, not ", num_idle_));
  }
  for (const int32_t block_id : idle) {
    if (!is_idle(blocks_[block_id]) || seen[block_id]) {
      return absl::InternalError(
          absl::StrCat("block ", block_id, " is in the list of idle ones, but is not idle"));
    }
    seen[block_id] = true;
  }
  for (int32_t block_id = 0; block_id < num_blocks(); ++block_id) {
    if (blocks_[block_id].num_refs == 0 && !seen[block_id]) {
      return absl::InternalError(
          absl::StrCat("block ", block_id, " is neither free nor referenced: it is lost"));
    }
  }
  return absl::OkStatus();
}

}  // namespace jevons
