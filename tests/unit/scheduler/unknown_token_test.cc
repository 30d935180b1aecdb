// Steps that are planned while the tokens of the one before are not known.
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/scheduler/scheduler_fixture.h"

namespace jevons {
namespace {

using testing::ElementsAre;

using UnknownTokenTest = SchedulerTest;

TEST_F(UnknownTokenTest, AnUnknownTokenIsPlannedAndFilledInLater) {
  Make({.max_num_seqs = 3, .max_num_batched_tokens = 512}, 4);
  Sequence* a = Add(4);
  Sequence* b = Add(5);
  const Batch& first = Schedule();
  scheduler_->Start();
  EXPECT_THAT(a->token_ids, ElementsAre(1000, 1001, 1002, 1003, UnknownTokenId(0)));
  EXPECT_EQ(a->num_computed, 4);
  EXPECT_EQ(b->num_known_new_tokens(), 0);
  const Batch& second = Schedule();
  EXPECT_NE(&first, &second);
  EXPECT_THAT(second.token_ids, ElementsAre(UnknownTokenId(0), UnknownTokenId(1)));
  EXPECT_THAT(second.positions, ElementsAre(4, 5));
  scheduler_->Start();
  EXPECT_TRUE(scheduler_->CheckIntegrity().ok()) << scheduler_->CheckIntegrity();
  scheduler_->Update(std::vector<int32_t>{71, 72});
  EXPECT_THAT(a->token_ids, ElementsAre(1000, 1001, 1002, 1003, 71, UnknownTokenId(0)));
  EXPECT_THAT(Schedule().token_ids, ElementsAre(UnknownTokenId(0), UnknownTokenId(1)));
  scheduler_->Start();
  scheduler_->Update(std::vector<int32_t>{73, 74});
  scheduler_->Update(std::vector<int32_t>{75, 76});
  EXPECT_THAT(a->token_ids, ElementsAre(1000, 1001, 1002, 1003, 71, 73, 75));
  EXPECT_TRUE(scheduler_->CheckIntegrity().ok()) << scheduler_->CheckIntegrity();
}

TEST_F(UnknownTokenTest, NothingIsPlannedPastTheLastTokenThoughItIsUnknown) {
  Make({.max_num_seqs = 3, .max_num_batched_tokens = 512}, 4);
  Sequence* one = Add(4, 1);
  Add(5, 2);
  Schedule();
  scheduler_->Start();
  EXPECT_THAT(Plan(Schedule()), ElementsAre(Pair(2, 1)));
  scheduler_->Start();
  scheduler_->Update(std::vector<int32_t>{7, 8});
  scheduler_->Finish(one);
  EXPECT_TRUE(Schedule().empty());
  scheduler_->Update(std::vector<int32_t>{9});
  EXPECT_EQ(sequences_[1]->num_known_new_tokens(), 2);
  EXPECT_TRUE(scheduler_->CheckIntegrity().ok()) << scheduler_->CheckIntegrity();
}

TEST_F(UnknownTokenTest, WhatASequenceDrewAfterItsEndIsDropped) {
  Make({.max_num_seqs = 3, .max_num_batched_tokens = 512}, 4);
  Sequence* ended = Add(kBlock);
  Sequence* other = Add(5);
  const Batch& first = Schedule();
  scheduler_->Start();
  Schedule();
  scheduler_->Start();
  EXPECT_EQ(blocks_->num_free(), 1);
  scheduler_->Update(std::vector<int32_t>{7, 8});
  scheduler_->Finish(ended);
  EXPECT_EQ(ended->num_new_tokens(), 1);
  EXPECT_EQ(first.entries[0].sequence, ended);
  EXPECT_EQ(blocks_->num_free(), 3);
  scheduler_->Update(std::vector<int32_t>{9, 10});
  EXPECT_EQ(ended->num_tokens(), kBlock + 1);
  EXPECT_EQ(other->token_ids.back(), 10);
  EXPECT_TRUE(scheduler_->CheckIntegrity().ok()) << scheduler_->CheckIntegrity();
}

TEST_F(UnknownTokenTest, APreemptedSequenceStillGetsItsUnknownToken) {
  Make({.max_num_seqs = 2, .max_num_batched_tokens = 512}, 2);
  Add(kBlock - 1, 8);
  Sequence* victim = Add(5, 8);
  Step();
  EXPECT_THAT(Plan(Schedule()), ElementsAre(Pair(1, 1), Pair(2, 1)));
  scheduler_->Start();
  EXPECT_THAT(Plan(Schedule()), ElementsAre(Pair(1, 1)));
  EXPECT_EQ(victim->state, Sequence::State::kWaiting);
  EXPECT_EQ(victim->num_unknown, 1);
  scheduler_->Start();
  scheduler_->Update(std::vector<int32_t>{7, 8});
  EXPECT_EQ(victim->token_ids.back(), 8);
  EXPECT_EQ(victim->num_unknown, 0);
  scheduler_->Finish(sequences_[0].get());
  EXPECT_THAT(Plan(Schedule()), ElementsAre(Pair(2, 7)));
}

// Running ones are computed anew from what they know, in their order; nothing of the steps under way
// comes.
TEST_F(UnknownTokenTest, StartingOverForgetsTheStepsUnderWay) {
  Make({.max_num_seqs = 2, .max_num_batched_tokens = 512}, 8);
  Add(5, 8);
  Add(3, 8);
  Sequence* waiting = Add(4, 8);
  Step();
  Schedule();
  scheduler_->Start();
  Schedule();
  scheduler_->Start();
  scheduler_->StartOver();
  EXPECT_TRUE(scheduler_->CheckIntegrity().ok()) << scheduler_->CheckIntegrity();
  EXPECT_EQ(blocks_->num_free(), blocks_->num_blocks());
  EXPECT_EQ(sequences_[0]->token_ids.size(), 6u);
  EXPECT_EQ(waiting->num_tokens(), 4);
  const Batch& batch = Schedule();
  EXPECT_THAT(Plan(batch), ElementsAre(Pair(1, 6), Pair(2, 4)));
  Update(batch, 9);
  EXPECT_EQ(sequences_[0]->token_ids.back(), 9);
  EXPECT_EQ(sequences_[0]->num_tokens(), 7);
}

}  // namespace
}  // namespace jevons
