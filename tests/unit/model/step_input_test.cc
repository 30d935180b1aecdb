#include "model/step_input.h"

#include <vector>

#include "gtest/gtest.h"

namespace jevons {
namespace {

template <typename T>
std::vector<T> Values(std::span<const T> values) {
  return {values.begin(), values.end()};
}

// Three sequences with 1, 5 and 2 rows behind 9, 0 and 64 tokens.
class StepPartTest : public testing::Test {
 protected:
  StepPartTest() {
    step_.token_ids = ids_;
    step_.positions = positions_;
    step_.slot_mapping = slots_;
    step_.cu_seqlens_q = cu_;
    step_.context_lens = context_;
    step_.block_tables = tables_;
    step_.max_blocks = 2;
  }

  const std::vector<int32_t> ids_ = {10, 20, 21, 22, 23, 24, 30, 31};
  const std::vector<int32_t> positions_ = {9, 0, 1, 2, 3, 4, 64, 65};
  const std::vector<int64_t> slots_ = {9, 64, 65, 66, 67, 68, 192, 193};
  const std::vector<int32_t> cu_ = {0, 1, 6, 8};
  const std::vector<int32_t> context_ = {10, 5, 66};
  const std::vector<int32_t> tables_ = {0, -1, 1, -1, 2, 3};
  StepInput step_;
};

TEST_F(StepPartTest, ASequenceThatIsCutEndsInTheFirstPartAndGoesOnInTheSecond) {
  StepPart first, second;
  const StepInput a = first.Cut(step_, 0, 4);
  const StepInput b = second.Cut(step_, 4, 8);
  EXPECT_EQ(Values(a.token_ids), (std::vector<int32_t>{10, 20, 21, 22}));
  EXPECT_EQ(Values(a.positions), (std::vector<int32_t>{9, 0, 1, 2}));
  EXPECT_EQ(Values(a.slot_mapping), (std::vector<int64_t>{9, 64, 65, 66}));
  EXPECT_EQ(Values(a.cu_seqlens_q), (std::vector<int32_t>{0, 1, 4}));
  EXPECT_EQ(Values(a.context_lens), (std::vector<int32_t>{10, 3}));
  EXPECT_EQ(Values(a.block_tables), (std::vector<int32_t>{0, -1, 1, -1}));
  EXPECT_EQ(Values(b.token_ids), (std::vector<int32_t>{23, 24, 30, 31}));
  EXPECT_EQ(Values(b.cu_seqlens_q), (std::vector<int32_t>{0, 2, 4}));
  EXPECT_EQ(Values(b.context_lens), (std::vector<int32_t>{5, 66}));
  EXPECT_EQ(Values(b.block_tables), (std::vector<int32_t>{1, -1, 2, 3}));
  EXPECT_EQ(b.max_blocks, 2);
}

TEST_F(StepPartTest, ACutBetweenSequencesLeavesThemWhole) {
  StepPart part;
  const StepInput a = part.Cut(step_, 0, 6);
  EXPECT_EQ(Values(a.cu_seqlens_q), (std::vector<int32_t>{0, 1, 6}));
  EXPECT_EQ(Values(a.context_lens), (std::vector<int32_t>{10, 5}));
  const StepInput b = part.Cut(step_, 6, 8);
  EXPECT_EQ(Values(b.cu_seqlens_q), (std::vector<int32_t>{0, 2}));
  EXPECT_EQ(Values(b.context_lens), (std::vector<int32_t>{66}));
  EXPECT_EQ(Values(b.block_tables), (std::vector<int32_t>{2, 3}));
}

TEST_F(StepPartTest, APartBehindTheRowsIsEmpty) {
  StepPart part;
  for (const int64_t begin : {8, 12}) {
    const StepInput empty = part.Cut(step_, begin, 16);
    EXPECT_TRUE(empty.token_ids.empty());
    EXPECT_EQ(Values(empty.cu_seqlens_q), (std::vector<int32_t>{0}));
    EXPECT_TRUE(empty.context_lens.empty());
    EXPECT_TRUE(empty.block_tables.empty());
  }
  const std::vector<int32_t> no_queries = {0};
  EXPECT_TRUE(part.Cut({.cu_seqlens_q = no_queries}, 0, 0).token_ids.empty());
}

}  // namespace
}  // namespace jevons
