#include "scheduler/block_manager.h"

#include <set>
#include <utility>
#include <vector>

#include "base/random.h"
#include "gtest/gtest.h"

namespace jevons {
namespace {

TEST(BlockManagerTest, GivesEveryBlockOnceAndThenNone) {
  BlockManager blocks(5);
  EXPECT_EQ(blocks.num_blocks(), 5);
  BlockTable table;
  std::set<int32_t> ids;
  for (int i = 0; i < 5; ++i) {
    std::optional<BlockRef> block = blocks.Allocate();
    ASSERT_TRUE(block.has_value());
    EXPECT_TRUE(block->block_id() >= 0 && block->block_id() < 5);
    EXPECT_TRUE(ids.insert(block->block_id()).second);
    table.push_back(*std::move(block));
    EXPECT_EQ(blocks.num_free(), 4 - i);
    EXPECT_TRUE(blocks.CheckIntegrity().ok());
  }
  EXPECT_FALSE(blocks.Allocate().has_value());
  table.clear();
  EXPECT_EQ(blocks.num_free(), 5);
  EXPECT_TRUE(blocks.CheckIntegrity().ok());
}

TEST(BlockManagerTest, TheBlockReturnedLastIsGivenFirst) {
  BlockManager blocks(8);
  BlockTable table;
  for (int i = 0; i < 6; ++i) table.push_back(*blocks.Allocate());
  const int32_t returned = table[2].block_id();
  table[4].Reset();
  table[2].Reset();
  EXPECT_EQ(blocks.Allocate()->block_id(), returned);
}

TEST(BlockManagerTest, DroppingAReferenceReturnsItsBlockOnce) {
  BlockManager blocks(1);
  {
    BlockRef block = *blocks.Allocate();
    EXPECT_EQ(blocks.num_free(), 0);
  }
  EXPECT_EQ(blocks.num_free(), 1);
  BlockRef block = *blocks.Allocate();
  block.Reset();
  block.Reset();
  EXPECT_EQ(block.block_id(), -1);
  EXPECT_EQ(blocks.num_free(), 1);
  EXPECT_TRUE(blocks.CheckIntegrity().ok());
}

TEST(BlockManagerTest, MovingKeepsTheBlockAndEmptiesTheSource) {
  BlockManager blocks(2);
  BlockRef first = *blocks.Allocate();
  const int32_t first_id = first.block_id();
  BlockRef moved(std::move(first));
  EXPECT_EQ(moved.block_id(), first_id);
  EXPECT_EQ(blocks.num_free(), 1);

  BlockRef second = *blocks.Allocate();
  EXPECT_EQ(blocks.num_free(), 0);
  second = std::move(moved);  // its own block goes back
  EXPECT_EQ(second.block_id(), first_id);
  EXPECT_EQ(blocks.num_free(), 1);

  BlockRef& alias = second;
  second = std::move(alias);
  EXPECT_EQ(second.block_id(), first_id);
  EXPECT_EQ(blocks.num_free(), 1);
  EXPECT_TRUE(blocks.CheckIntegrity().ok());
}

TEST(BlockManagerTest, AnEmptyPoolGivesNothing) {
  BlockManager blocks(0);
  EXPECT_FALSE(blocks.Allocate().has_value());
  EXPECT_TRUE(blocks.CheckIntegrity().ok());
}

TEST(BlockManagerTest, FreeAndOwnedMakeTheTotalUnderRandomUse) {
  constexpr uint64_t kSeed = 42;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  BlockManager blocks(37);
  BlockTable table;
  for (int step = 0; step < 5000; ++step) {
    if (random.Below(2) == 0) {
      std::optional<BlockRef> block = blocks.Allocate();
      ASSERT_EQ(block.has_value(), table.size() < 37);
      if (block.has_value()) table.push_back(*std::move(block));
    } else if (!table.empty()) {
      std::swap(table[static_cast<size_t>(random.Below(static_cast<int64_t>(table.size())))],
                table[table.size() - 1]);
      table.pop_back();
    }
    std::set<int32_t> ids;
    for (const BlockRef& block : table) ids.insert(block.block_id());
    ASSERT_EQ(ids.size(), table.size());
    ASSERT_EQ(blocks.num_free() + static_cast<int32_t>(table.size()), 37);
    ASSERT_TRUE(blocks.CheckIntegrity().ok());
  }
}

TEST(BlockManagerTest, BlocksForCountsTheLastPartialBlock) {
  EXPECT_EQ(BlocksFor(0), 0);
  EXPECT_EQ(BlocksFor(1), 1);
  EXPECT_EQ(BlocksFor(kKvBlockTokens), 1);
  EXPECT_EQ(BlocksFor(kKvBlockTokens + 1), 2);
  EXPECT_EQ(BlocksFor(int64_t{1} << 40), (int64_t{1} << 40) / kKvBlockTokens);
}

}  // namespace
}  // namespace jevons
