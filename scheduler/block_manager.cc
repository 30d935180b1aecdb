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
  owned_.resize(static_cast<size_t>(num_blocks));
  free_.reserve(owned_.size());
  for (int32_t block_id = num_blocks - 1; block_id >= 0; --block_id) free_.push_back(block_id);
}

std::optional<BlockRef> BlockManager::Allocate() {
  if (free_.empty()) return std::nullopt;
  const int32_t block_id = free_.back();
  free_.pop_back();
  owned_[block_id] = true;
  return BlockRef(this, block_id);
}

void BlockManager::Release(int32_t block_id) {
  CHECK(owned_[block_id]);
  owned_[block_id] = false;
  free_.push_back(block_id);
}

absl::Status BlockManager::CheckIntegrity() const {
  std::vector<bool> seen(owned_.size());
  for (const int32_t block_id : free_) {
    if (block_id < 0 || block_id >= num_blocks()) {
      return absl::InternalError(
          absl::StrCat("free block ", block_id, " is outside [0, ", num_blocks(), ")"));
    }
    if (owned_[block_id]) {
      return absl::InternalError(absl::StrCat("block ", block_id, " is both free and owned"));
    }
    if (seen[block_id]) {
      return absl::InternalError(absl::StrCat("block ", block_id, " is free twice"));
    }
    seen[block_id] = true;
  }
  for (int32_t block_id = 0; block_id < num_blocks(); ++block_id) {
    if (!owned_[block_id] && !seen[block_id]) {
      return absl::InternalError(
          absl::StrCat("block ", block_id, " is neither free nor owned: it is lost"));
    }
  }
  return absl::OkStatus();
}

}  // namespace jevons
