#include "scheduler/prefix_cache.h"

#include <numeric>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/scheduler/scheduler_fixture.h"

namespace jevons {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::UnorderedElementsAreArray;

std::vector<int32_t> Tokens(int32_t count, int32_t first = 0) {
  std::vector<int32_t> out(static_cast<size_t>(count));
  std::iota(out.begin(), out.end(), first);
  return out;
}

std::vector<int32_t> Ids(const BlockTable& table) {
  std::vector<int32_t> out;
  for (const BlockRef& block : table) out.push_back(block.block_id());
  return out;
}

class PrefixCacheTest : public testing::Test {
 protected:
  BlockTable Take(int32_t num_blocks) {
    BlockTable table;
    for (int32_t i = 0; i < num_blocks; ++i) table.push_back(*blocks_.Allocate());
    return table;
  }
  // A sequence of these tokens has been computed.
  BlockTable Compute(const std::vector<int32_t>& tokens, uint64_t salt = 0) {
    BlockTable table;
    cache_.Match(tokens, salt, table);
    const size_t num_known = table.size();
    for (size_t i = num_known; i < tokens.size() / kBlock; ++i) {
      table.push_back(*blocks_.Allocate());
      cache_.Insert(std::span(tokens).subspan(i * kBlock, kBlock), salt, i, table);
    }
    return table;
  }
  BlockTable Match(const std::vector<int32_t>& tokens, uint64_t salt = 0) {
    BlockTable table;
    cache_.Match(tokens, salt, table);
    return table;
  }
  void TearDown() override {
    EXPECT_TRUE(cache_.CheckIntegrity().ok()) << cache_.CheckIntegrity();
    EXPECT_TRUE(blocks_.CheckIntegrity().ok()) << blocks_.CheckIntegrity();
  }

  BlockManager blocks_{6};
  PrefixCache cache_{&blocks_};
};

TEST_F(PrefixCacheTest, FindsTheLongestPrefixInWholeBlocks) {
  BlockTable computed = Compute(Tokens(3 * kBlock));
  EXPECT_EQ(Ids(Match(Tokens(3 * kBlock))), Ids(computed));
  EXPECT_EQ(Ids(Match(Tokens(5 * kBlock))), Ids(computed));
  EXPECT_EQ(Match(Tokens(3 * kBlock - 1)).size(), 2u);
  EXPECT_THAT(Match(Tokens(kBlock - 1)), IsEmpty());
  std::vector<int32_t> other = Tokens(3 * kBlock);
  ++other[kBlock + 5];
  EXPECT_EQ(Match(other).size(), 1u);
  ++other[0];
  EXPECT_THAT(Match(other), IsEmpty());
}

TEST_F(PrefixCacheTest, ABlockIsNothingWithoutTheOnesBeforeIt) {
  BlockTable computed = Compute(Tokens(2 * kBlock));
  EXPECT_THAT(Match(Tokens(kBlock, kBlock)), IsEmpty());
}

TEST_F(PrefixCacheTest, AnotherSaltSharesNothing) {
  BlockTable computed = Compute(Tokens(kBlock), 1);
  EXPECT_THAT(Match(Tokens(kBlock)), IsEmpty());
  EXPECT_EQ(Match(Tokens(kBlock), 1).size(), 1u);
}

TEST_F(PrefixCacheTest, WhatIsReturnedStaysUntilNothingElseIsFree) {
  Compute(Tokens(2 * kBlock));
  EXPECT_EQ(blocks_.num_free(), 6);
  BlockTable others = Take(4);
  EXPECT_EQ(Match(Tokens(2 * kBlock)).size(), 2u);
  others.push_back(*blocks_.Allocate());
  EXPECT_EQ(Match(Tokens(2 * kBlock)).size(), 1u);
  others.push_back(*blocks_.Allocate());
  EXPECT_THAT(Match(Tokens(2 * kBlock)), IsEmpty());
  EXPECT_FALSE(blocks_.Allocate().has_value());
  EXPECT_EQ(cache_.num_known(), 0);
}

TEST_F(PrefixCacheTest, WhatWasUsedLastIsEvictedLast) {
  Compute(Tokens(2 * kBlock));
  Compute(Tokens(2 * kBlock, 1000));
  Match(Tokens(2 * kBlock));
  BlockTable others = Take(4);
  EXPECT_EQ(Match(Tokens(2 * kBlock)).size(), 2u);
  EXPECT_THAT(Match(Tokens(2 * kBlock, 1000)), IsEmpty());
}

TEST_F(PrefixCacheTest, WhatIsHeldIsNeverEvicted) {
  BlockTable held = Compute(Tokens(2 * kBlock));
  BlockTable others = Take(4);
  EXPECT_FALSE(blocks_.Allocate().has_value());
  EXPECT_EQ(Ids(Match(Tokens(2 * kBlock))), Ids(held));
}

TEST_F(PrefixCacheTest, TheSameComputedTwiceIsHeldOnce) {
  const std::vector<int32_t> tokens = Tokens(2 * kBlock);
  BlockTable second = Take(2);
  BlockTable first = Compute(tokens);
  EXPECT_EQ(blocks_.num_free(), 2);
  for (size_t i = 0; i < 2; ++i) {
    cache_.Insert(std::span(tokens).subspan(i * kBlock, kBlock), 0, i, second);
  }
  EXPECT_EQ(Ids(second), Ids(first));
  EXPECT_EQ(blocks_.num_free(), 4);
  EXPECT_EQ(blocks_.num_refs(first[1].block_id()), 2);
}

TEST_F(PrefixCacheTest, ClearForgetsAllAndTakesNothingFromWhoHoldsIt) {
  BlockTable held = Compute(Tokens(2 * kBlock));
  Compute(Tokens(2 * kBlock, 1000));
  cache_.Clear();
  EXPECT_EQ(blocks_.num_free(), 4);
  EXPECT_THAT(Match(Tokens(2 * kBlock)), IsEmpty());
  EXPECT_EQ(cache_.num_known(), 0);
  held.clear();
  EXPECT_EQ(blocks_.num_free(), 6);
}

TEST_F(PrefixCacheTest, ADigestFollowsTheChanges) {
  const std::vector<int32_t> tokens = Tokens(4 * kBlock);
  PrefixDigest digest;
  Compute(Tokens(3 * kBlock));
  digest.Apply(cache_.TakeChanges());
  const int64_t version = digest.version();
  EXPECT_EQ(digest.NumLeading(PrefixKeys(tokens, 0)), 3);
  EXPECT_EQ(digest.NumLeading(PrefixKeys(tokens, 1)), 0);
  EXPECT_EQ(digest.NumLeading(PrefixKeys(Tokens(4 * kBlock, 1), 0)), 0);
  digest.Apply(cache_.TakeChanges());
  EXPECT_EQ(digest.version(), version);

  Compute(Tokens(2 * kBlock, 1000));  // added and evicted between two looks
  BlockTable others = Take(6);
  others.clear();
  Compute(Tokens(kBlock));
  PrefixDigest far = digest;
  digest.Apply(cache_.TakeChanges());
  EXPECT_EQ(digest.size(), 1u);
  EXPECT_EQ(digest.NumLeading(PrefixKeys(tokens, 0)), 1);
  far.Apply(far.ChangesTo(digest));
  EXPECT_EQ(far.size(), 1u);
  EXPECT_EQ(far.NumLeading(PrefixKeys(tokens, 0)), 1);

  cache_.Clear();
  Compute(Tokens(kBlock, 1000));
  digest.Apply(cache_.TakeChanges());
  EXPECT_EQ(digest.size(), 1u);
  EXPECT_EQ(digest.NumLeading(PrefixKeys(Tokens(kBlock, 1000), 0)), 1);
}

using SchedulerPrefixTest = SchedulerTest;

Request WithPrompt(uint64_t id, int32_t num_prompt) {
  return {.id = id, .prompt_ids = Tokens(num_prompt), .max_new_tokens = 8};
}

TEST_F(SchedulerPrefixTest, OnlyTheRestOfAKnownPromptIsComputed) {
  MakeWithPrefixes({.max_num_seqs = 4, .max_num_batched_tokens = 512}, 16);
  Sequence* first = Add(WithPrompt(1, 3 * kBlock + 10));
  Step();
  Sequence* second = Add(WithPrompt(2, 3 * kBlock + 20));
  const Batch& batch = Schedule();
  EXPECT_THAT(Plan(batch), ElementsAre(Pair(1, 1), Pair(2, 20)));
  EXPECT_EQ(batch.entries[1].first_position, 3 * kBlock);
  EXPECT_EQ(second->num_cached_tokens, 3 * kBlock);
  EXPECT_EQ(first->num_cached_tokens, 0);
  EXPECT_EQ(second->block_table[2].block_id(), first->block_table[2].block_id());
  EXPECT_NE(second->block_table[3].block_id(), first->block_table[3].block_id());
  Update(batch);
}

TEST_F(SchedulerPrefixTest, ABlockIsUnknownUntilItsStepHasEnded) {
  MakeWithPrefixes({.max_num_seqs = 4, .max_num_batched_tokens = 512}, 16);
  Add(WithPrompt(1, 2 * kBlock));
  Schedule();
  scheduler_->Start();
  Add(WithPrompt(2, 2 * kBlock));
  const Batch& batch = Schedule();
  EXPECT_THAT(Plan(batch), ElementsAre(Pair(1, 1), Pair(2, 2 * kBlock)));
  scheduler_->Start();
  scheduler_->Update(std::vector<int32_t>{7});
  EXPECT_EQ(prefixes_->num_known(), 2);
  scheduler_->Update(std::vector<int32_t>{7, 7});
  EXPECT_TRUE(scheduler_->CheckIntegrity().ok()) << scheduler_->CheckIntegrity();
  EXPECT_EQ(prefixes_->num_known(), 2);
  EXPECT_EQ(sequences_[0]->block_table[1].block_id(), sequences_[1]->block_table[1].block_id());
}

TEST_F(SchedulerPrefixTest, TheLastTokenOfAKnownPromptIsComputedAgain) {
  MakeWithPrefixes({.max_num_seqs = 4, .max_num_batched_tokens = 512}, 16);
  Add(WithPrompt(1, 2 * kBlock));
  Step();
  Add(WithPrompt(2, 2 * kBlock));
  const Batch& batch = Schedule();
  EXPECT_THAT(Plan(batch), ElementsAre(Pair(1, 1), Pair(2, kBlock)));
  EXPECT_TRUE(batch.entries[1].samples);
  Update(batch);
}

TEST_F(SchedulerPrefixTest, WhatWasDrawnIsKnownToo) {
  MakeWithPrefixes({.max_num_seqs = 4, .max_num_batched_tokens = 512}, 16);
  Add(WithPrompt(1, 2 * kBlock - 3));
  for (int i = 0; i < 4; ++i) Step();
  EXPECT_EQ(prefixes_->num_known(), 2);
}

TEST_F(SchedulerPrefixTest, APromptThatIsScoredIsComputedWholly) {
  MakeWithPrefixes({.max_num_seqs = 4, .max_num_batched_tokens = 512}, 16);
  Add(WithPrompt(1, 2 * kBlock + 1));
  Step();
  Request request = WithPrompt(2, 2 * kBlock + 1);
  request.reuse = Request::Reuse::kNone;
  Sequence* second = Add(std::move(request));
  const Batch& batch = Schedule();
  EXPECT_THAT(Plan(batch), ElementsAre(Pair(1, 1), Pair(2, 2 * kBlock + 1)));
  Update(batch);
  EXPECT_EQ(second->num_cached_tokens, 0);
}

TEST_F(SchedulerPrefixTest, APreemptedSequenceFindsWhatNobodyNeeded) {
  MakeWithPrefixes({.max_num_seqs = 2, .max_num_batched_tokens = 512}, 6);
  Add(kBlock - 1, 80);
  Sequence* youngest = Add(WithPrompt(2, 4 * kBlock + 5));
  for (int i = 0; i < 3; ++i) Step();
  ASSERT_EQ(youngest->state, Sequence::State::kWaiting);
  scheduler_->Finish(sequences_[0].get());
  const Batch& batch = Schedule();
  ASSERT_EQ(batch.entries.size(), 1u);
  EXPECT_EQ(batch.entries[0].first_position, 4 * kBlock);
  EXPECT_EQ(youngest->num_cached_tokens, 0);
  Update(batch);
}

TEST_F(SchedulerPrefixTest, AFailedStepMakesNothingKnown) {
  MakeWithPrefixes({.max_num_seqs = 4, .max_num_batched_tokens = 100}, 16);
  Sequence* sequence = Add(WithPrompt(1, 3 * kBlock));
  Schedule();
  scheduler_->Fail();
  EXPECT_TRUE(scheduler_->CheckIntegrity().ok()) << scheduler_->CheckIntegrity();
  EXPECT_EQ(sequence->state, Sequence::State::kFinished);
  EXPECT_EQ(prefixes_->num_known(), 0);
  EXPECT_EQ(blocks_->num_free(), 16);
}

TEST_F(SchedulerPrefixTest, AfterALostRowNothingIsKnown) {
  MakeWithPrefixes({.max_num_seqs = 4, .max_num_batched_tokens = 512}, 16);
  Add(WithPrompt(1, 2 * kBlock + 1));
  Add(2 * kBlock + 1);
  Step();
  EXPECT_EQ(prefixes_->num_known(), 4);
  Schedule();
  scheduler_->Update(std::vector<int32_t>{Scheduler::kSkip, 7});
  EXPECT_TRUE(scheduler_->CheckIntegrity().ok()) << scheduler_->CheckIntegrity();
  // Those of the other one, which goes on.
  EXPECT_EQ(prefixes_->num_known(), 2);
  BlockTable table;
  prefixes_->Match(Tokens(2 * kBlock), 0, table);
  EXPECT_THAT(table, IsEmpty());
}

TEST_F(SchedulerPrefixTest, StartingOverForgetsThePrefixes) {
  MakeWithPrefixes({.max_num_seqs = 4, .max_num_batched_tokens = 512}, 16);
  Add(WithPrompt(1, 2 * kBlock + 1));
  Step();
  scheduler_->StartOver();
  EXPECT_EQ(prefixes_->num_known(), 0);
  const Batch& batch = Schedule();
  EXPECT_THAT(Plan(batch), ElementsAre(Pair(1, 2 * kBlock + 2)));
  Update(batch);
}

TEST_F(SchedulerPrefixTest, HeldBlocksCountOnceForAdmission) {
  MakeWithPrefixes({.max_num_seqs = 4, .max_num_batched_tokens = 512}, 6);
  Add(WithPrompt(1, 4 * kBlock + 1));
  Step();
  Add(WithPrompt(2, 4 * kBlock + 1));
  const Batch& batch = Schedule();
  EXPECT_THAT(Plan(batch), ElementsAre(Pair(1, 1), Pair(2, 1)));
  EXPECT_EQ(blocks_->num_free(), 0);
  Update(batch);
}

}  // namespace
}  // namespace jevons
