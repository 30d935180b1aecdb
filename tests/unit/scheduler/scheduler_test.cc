#include "scheduler/scheduler.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/allocation_counter.h"
#include "tests/unit/scheduler/scheduler_fixture.h"

namespace jevons {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST_F(SchedulerTest, NothingToDoIsAnEmptyBatch) {
  Make({}, 4);
  const Batch& batch = Schedule();
  EXPECT_TRUE(batch.empty());
  EXPECT_EQ(batch.num_tokens(), 0);
  EXPECT_THAT(batch.cu_seqlens_q, ElementsAre(0));
  scheduler_->Update({});
}

TEST_F(SchedulerTest, FlatArraysDescribeTheStep) {
  Make({.max_num_seqs = 4, .max_num_batched_tokens = 256}, 8);
  Sequence* first = Add(3);
  Sequence* second = Add(kBlock + 2);
  const Batch& batch = Schedule();
  ASSERT_THAT(Plan(batch), ElementsAre(Pair(1, 3), Pair(2, kBlock + 2)));
  EXPECT_TRUE(batch.entries[0].samples && batch.entries[1].samples);
  EXPECT_THAT(batch.cu_seqlens_q, ElementsAre(0, 3, kBlock + 5));
  EXPECT_THAT(batch.context_lens, ElementsAre(3, kBlock + 2));
  EXPECT_EQ(batch.max_blocks, 2);
  const int32_t a = first->block_table[0].block_id();
  const int32_t b = second->block_table[0].block_id();
  const int32_t c = second->block_table[1].block_id();
  EXPECT_THAT(batch.block_tables, ElementsAre(a, 0, b, c));
  ASSERT_EQ(batch.num_tokens(), kBlock + 5);
  for (int32_t i = 0; i < 3; ++i) {
    EXPECT_EQ(batch.token_ids[i], 1000 + i);
    EXPECT_EQ(batch.positions[i], i);
    EXPECT_EQ(batch.slot_mapping[i], int64_t{a} * kBlock + i);
  }
  for (int32_t i = 0; i < kBlock + 2; ++i) {
    EXPECT_EQ(batch.token_ids[3 + i], 2000 + i);
    EXPECT_EQ(batch.positions[3 + i], i);
    EXPECT_EQ(batch.slot_mapping[3 + i], int64_t{i < kBlock ? b : c} * kBlock + i % kBlock);
  }
  Update(batch, 77);
  EXPECT_EQ(first->token_ids.back(), 77);
  EXPECT_EQ(first->num_computed, 3);
  EXPECT_EQ(first->num_new_tokens(), 1);

  const Batch& decode = Schedule();
  EXPECT_THAT(decode.token_ids, ElementsAre(77, 77));
  EXPECT_THAT(decode.positions, ElementsAre(3, kBlock + 2));
  EXPECT_THAT(decode.slot_mapping, ElementsAre(int64_t{a} * kBlock + 3, int64_t{c} * kBlock + 2));
  EXPECT_THAT(decode.context_lens, ElementsAre(4, kBlock + 3));
  EXPECT_THAT(decode.block_tables, ElementsAre(a, 0, b, c));
  Update(decode);
}

TEST_F(SchedulerTest, PromptIsCutToTheBudgetAndSamplesAtItsLastTokenOnly) {
  Make({.max_num_seqs = 2, .max_num_batched_tokens = 100}, 16);
  Sequence* sequence = Add(250);
  for (int32_t expected : {100, 100, 50}) {
    const Batch& batch = Schedule();
    ASSERT_THAT(Plan(batch), ElementsAre(Pair(1, expected)));
    EXPECT_EQ(batch.entries[0].samples, expected == 50);
    Update(batch);
  }
  EXPECT_EQ(sequence->num_tokens(), 251);
}

TEST_F(SchedulerTest, ChunkLimitLeavesRoomForTheNextPrompt) {
  Make({.max_num_seqs = 4, .max_num_batched_tokens = 100, .max_prefill_chunk_tokens = 40}, 16);
  Add(90);
  Add(90);
  Add(90);
  const Batch& batch = Schedule();
  EXPECT_THAT(Plan(batch), ElementsAre(Pair(1, 40), Pair(2, 40), Pair(3, 20)));
  Update(batch);
}

TEST_F(SchedulerTest, DecodeGoesOnWhileAnOlderPromptTakesTheBudget) {
  Make({.max_num_seqs = 4, .max_num_batched_tokens = 64, .max_prefill_chunk_tokens = 60}, 32);
  Add(600);
  Add(4);
  Add(100);
  Step();
  for (int i = 0; i < 5; ++i) {
    const Batch& batch = Schedule();
    ASSERT_GE(batch.entries.size(), 2u);
    EXPECT_EQ(batch.entries[1].sequence->request.id, 2u);
    EXPECT_TRUE(batch.entries[1].samples);
    EXPECT_LE(batch.num_tokens(), 64);
    Update(batch);
  }
}

TEST_F(SchedulerTest, RunningSequencesAreAtMostMaxNumSeqs) {
  Make({.max_num_seqs = 2, .max_num_batched_tokens = 100}, 16);
  for (int i = 0; i < 4; ++i) Add(4);
  Step();
  EXPECT_EQ(scheduler_->num_running(), 2);
  EXPECT_EQ(scheduler_->num_waiting(), 2);
  scheduler_->Finish(sequences_[0].get());
  const Batch& batch = Schedule();
  EXPECT_THAT(Plan(batch), ElementsAre(Pair(2, 1), Pair(3, 4)));
  Update(batch);
}

TEST_F(SchedulerTest, AdmissionWaitsForBlocksForAllTokensPlusOne) {
  Make({.max_num_seqs = 4, .max_num_batched_tokens = 512}, 2);
  Add(10);
  Add(kBlock, 1);  // with its first new token it needs a second block
  Step();
  EXPECT_EQ(scheduler_->num_running(), 1);
  scheduler_->Finish(sequences_[0].get());
  Step();
  EXPECT_EQ(scheduler_->num_running(), 1);
  EXPECT_EQ(scheduler_->num_preemptions(), 0);
}

TEST_F(SchedulerTest, AdmissionLeavesTheBlocksThatRunningPromptsStillNeed) {
  Make({.max_num_seqs = 4, .max_num_batched_tokens = 512, .max_prefill_chunk_tokens = 64}, 10);
  Add(6 * kBlock, 1);
  Add(3 * kBlock,
      1);  // the first holds one block and needs six more: three are left, and this needs four
  for (int i = 0; i < 5; ++i) {
    Step();
    EXPECT_EQ(scheduler_->num_running(), 1);
  }
  EXPECT_EQ(scheduler_->num_preemptions(), 0);
}

TEST_F(SchedulerTest, AShortPromptDoesNotOvertakeTheHeadThatWaitsForBlocks) {
  Make({.max_num_seqs = 4, .max_num_batched_tokens = 512}, 4);
  Add(kBlock + 1);
  Step();
  Add(3 * kBlock);
  Add(1);
  const Batch& batch = Schedule();
  EXPECT_THAT(Plan(batch), ElementsAre(Pair(1, 1)));
  Update(batch);
}

TEST_F(SchedulerTest, YoungestIsPreemptedForAnOlderDecodeAndComesBackFirst) {
  Make({.max_num_seqs = 3, .max_num_batched_tokens = 512}, 3);
  Sequence* oldest = Add(kBlock - 1, 80);
  Add(10, 80);
  Sequence* youngest = Add(11, 80);
  Step();  // a block each; the oldest has 64 tokens, one of them uncomputed
  ASSERT_EQ(blocks_->num_free(), 0);
  Add(5, 80);
  Step();
  const Batch& batch = Schedule();
  EXPECT_THAT(Plan(batch), ElementsAre(Pair(1, 1), Pair(2, 1)));
  EXPECT_EQ(oldest->block_table.size(), 2u);
  EXPECT_EQ(youngest->state, Sequence::State::kWaiting);
  EXPECT_EQ(youngest->num_preemptions, 1);
  EXPECT_EQ(youngest->num_computed, 0);
  EXPECT_TRUE(youngest->block_table.empty());
  EXPECT_EQ(youngest->num_tokens(), 13);
  EXPECT_EQ(scheduler_->num_preemptions(), 1);
  Update(batch);

  scheduler_->Finish(oldest);
  const Batch& again = Schedule();
  EXPECT_THAT(Plan(again), ElementsAre(Pair(2, 1), Pair(3, 13), Pair(4, 5)));
  EXPECT_TRUE(again.entries[1].samples);
  Update(again);
}

TEST_F(SchedulerTest, YoungestThatNeedsABlockPreemptsItself) {
  Make({.max_num_seqs = 3, .max_num_batched_tokens = 512}, 2);
  Add(10, 50);
  Sequence* youngest = Add(kBlock - 2, 10);
  for (int i = 0; i < 3; ++i) Step();  // 64 tokens computed, one more known
  ASSERT_EQ(youngest->num_preemptions, 0);
  Step();
  ASSERT_EQ(youngest->num_preemptions, 1);
  EXPECT_EQ(youngest->state, Sequence::State::kWaiting);
  EXPECT_EQ(blocks_->num_free(), 1);
  scheduler_->Finish(sequences_[0].get());
  const Batch& batch = Schedule();
  EXPECT_THAT(Plan(batch), ElementsAre(Pair(2, kBlock + 1)));
  Update(batch);
}

TEST_F(SchedulerTest, ASkippedSampleAppendsNothingAndFinishesItsSequence) {
  Make({.max_num_seqs = 3, .max_num_batched_tokens = 512}, 4);
  Sequence* skipped = Add(4);
  Sequence* other = Add(5);
  Schedule();
  scheduler_->Update(std::vector<int32_t>{Scheduler::kSkip, 9});
  EXPECT_EQ(skipped->num_tokens(), 4);
  EXPECT_EQ(skipped->num_computed, 4);
  EXPECT_EQ(skipped->state, Sequence::State::kFinished);
  EXPECT_TRUE(skipped->block_table.empty());
  EXPECT_EQ(other->num_tokens(), 6);
  const Batch& batch = Schedule();
  EXPECT_THAT(Plan(batch), ElementsAre(Pair(2, 1)));
  Update(batch);
  scheduler_->Finish(skipped);
  Step();
  EXPECT_EQ(scheduler_->num_running(), 1);
}

TEST_F(SchedulerTest, FinishReturnsBlocksFromEveryState) {
  Make({.max_num_seqs = 1, .max_num_batched_tokens = 16}, 8);
  Sequence* running = Add(40);
  Sequence* waiting = Add(3);
  Step();
  ASSERT_EQ(running->state, Sequence::State::kRunning);
  scheduler_->Finish(waiting);
  EXPECT_EQ(scheduler_->num_waiting(), 0);
  scheduler_->Finish(running);
  scheduler_->Finish(running);
  EXPECT_EQ(running->state, Sequence::State::kFinished);
  EXPECT_EQ(blocks_->num_free(), 8);
  EXPECT_TRUE(Schedule().empty());
}

TEST_F(SchedulerTest, SteadyStateAllocatesNothing) {
  Make({.max_num_seqs = 8, .max_num_batched_tokens = 64}, 64);
  for (int i = 0; i < 8; ++i) Add(20, 300);
  std::vector<int32_t> sampled(8, 5);
  for (int i = 0; i < 150; ++i) Step();
  const int64_t before = NumAllocations();
  for (int i = 0; i < 20; ++i) {
    scheduler_->Schedule();
    scheduler_->Update(sampled);
  }
  scheduler_->Schedule();
  scheduler_->Start();
  for (int i = 0; i < 20; ++i) {
    scheduler_->Schedule();
    scheduler_->Start();
    scheduler_->Update(sampled);
  }
  EXPECT_EQ(NumAllocations(), before);
}

TEST_F(SchedulerTest, IntegrityNamesWhatIsBroken) {
  Make({.max_num_seqs = 4, .max_num_batched_tokens = 512}, 8);
  Sequence* sequence = Add(10);
  Step();
  const auto text = [&] { return std::string(scheduler_->CheckIntegrity().message()); };

  sequence->num_computed = 100;
  EXPECT_THAT(text(), HasSubstr("sequence 1 has 100 computed"));
  sequence->num_computed = 10;
  sequence->state = Sequence::State::kWaiting;
  EXPECT_THAT(text(), HasSubstr("not kRunning"));
  sequence->state = Sequence::State::kRunning;
  sequence->block_table.push_back(*blocks_->Allocate());
  EXPECT_THAT(text(), HasSubstr("2 blocks for 10 tokens, not 1"));
  sequence->block_table.pop_back();
  {
    const BlockRef lost = *blocks_->Allocate();
    EXPECT_THAT(text(), HasSubstr("is in 0 tables, but has 1 references"));
  }
  Sequence* waiting = Add(3);
  waiting->num_computed = 1;
  EXPECT_THAT(text(), HasSubstr("waiting sequence 2 has 1 computed"));
  waiting->num_computed = 0;
  EXPECT_TRUE(scheduler_->CheckIntegrity().ok());
  Schedule();
  sequence->token_ids.back() = 99;
  EXPECT_THAT(text(), HasSubstr("token 0 of the step is not token 10"));
  sequence->token_ids.back() = 7;
  scheduler_->Start();
  sequence->token_ids.back() = UnknownTokenId(1);
  EXPECT_THAT(text(), HasSubstr("token 11 of sequence 1 is not that of step 0"));
  sequence->token_ids.back() = UnknownTokenId(0);
  sequence->num_unknown = 2;
  EXPECT_THAT(text(), HasSubstr("token 10 of sequence 1 is not that of step 0"));
  sequence->num_unknown = 0;
  EXPECT_THAT(text(), HasSubstr("token 12 of sequence 1 is not that of step 0"));
}

using SchedulerDeathTest = SchedulerTest;

TEST_F(SchedulerDeathTest, MisuseIsOurBug) {
  Make({.max_num_seqs = 4, .max_num_batched_tokens = 512}, 2);
  EXPECT_DEATH(Add(2 * kBlock, 1), "CHECK failed");
  Add(4);
  Schedule();
  EXPECT_DEATH(scheduler_->Finish(sequences_.back().get()), "CHECK failed");
  EXPECT_DEATH(scheduler_->Schedule(), "CHECK failed");
  EXPECT_DEATH(scheduler_->Update({}), "CHECK failed");
  EXPECT_DEATH(scheduler_->Update(std::vector<int32_t>{1, 2}), "CHECK failed");
  scheduler_->Start();
  EXPECT_DEATH(scheduler_->Start(), "CHECK failed");
  Schedule();
  // Which of the two is meant?
  EXPECT_DEATH(scheduler_->Update(std::vector<int32_t>{1}), "CHECK failed");
  scheduler_->Start();
  EXPECT_DEATH(scheduler_->Schedule(), "CHECK failed");
}

}  // namespace
}  // namespace jevons
