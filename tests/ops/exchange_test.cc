#include "ops/exchange.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "ops/moe.h"
#include "tests/support/op_test.h"

namespace jevons {
namespace {

class ExchangeTest : public OpTest {};

struct Case {
  int64_t num_tokens;
  int64_t top_k;
  int32_t num_experts;
  int32_t num_ranks;
  int32_t slots_per_rank;
  bool masked = false;
};

std::vector<Case> Cases() {
  std::vector<Case> out;
  for (int64_t num_tokens : {0, 1, 2, 17, 63, 64, 65, 300}) {
    for (bool masked : {false, true}) {
      out.push_back({num_tokens, 1, 1, 1, 1, masked});
      out.push_back({num_tokens, 4, 12, 1, 12, masked});
      out.push_back({num_tokens, 4, 12, 2, 7, masked});
      out.push_back({num_tokens, 6, 64, 8, 9, masked});
      out.push_back({num_tokens, 8, 256, 40, 8, masked});
      // The emulator is slow.
      if (!kTestsCuda || num_tokens <= 17) out.push_back({num_tokens, 8, 256, 288, 1, masked});
    }
  }
  return out;
}

// The arguments with their memory. Each expert has one slot or two, some tokens have no choice.
struct Sent {
  explicit Sent(const Case& c)
      : top_k(c.top_k),
        per_row(std::min<int64_t>(c.top_k, c.slots_per_rank)),
        capacity(c.masked ? static_cast<int32_t>(c.num_tokens + 3) : 0),
        topk_idx(DType::kI32, {c.num_tokens, c.top_k}),
        slot_table(DType::kI32, {c.num_experts, 4}),
        counts(DType::kI32, {c.num_ranks, 2}),
        choice_counts(DType::kI64, {std::max(c.num_experts - 1, 1)}) {
    const int64_t num_send = c.masked ? int64_t{c.num_ranks} * capacity
                                      : c.num_tokens * std::min<int64_t>(c.top_k, c.num_ranks);
    send_token = TestTensor(DType::kI32, {num_send});
    send_slots = TestTensor(DType::kI32, {num_send, c.top_k});
    return_row = TestTensor(DType::kI32, {c.num_tokens, c.top_k});
    Random random(kOpTestSeed);
    const int32_t num_slots = c.num_ranks * c.slots_per_rank;
    for (int64_t i = 0; i < slot_table.size(); ++i) {
      const int64_t second = (i / 4 * 7 + c.num_experts) % num_slots;
      slot_table.at<int32_t>(i) = static_cast<int32_t>(i % 2 == 0 ? i / 4 : second);
    }
    for (int64_t t = 0; t < c.num_tokens; ++t) {
      // Ascending from a random start: no expert twice.
      const int64_t first = random.Below(c.num_experts);
      for (int64_t j = 0; j < c.top_k; ++j) {
        const bool none = t % 5 == 3 || random.Below(6) == 0;
        topk_idx.at<int32_t>(t * c.top_k + j) =
            none ? -1 : static_cast<int32_t>((first + j * 3) % c.num_experts);
      }
    }
    // What was counted before stays; of more than one expert the last is not counted.
    for (int64_t e = 0; e < choice_counts.size(); ++e) choice_counts.at<int64_t>(e) = e << 33;
    args = {.topk_idx = topk_idx.view(),
            .slot_table = slot_table.view(),
            .num_ranks = c.num_ranks,
            .slots_per_rank = c.slots_per_rank,
            .capacity = capacity,
            .plan = {.counts = counts.view(),
                     .send_token = send_token.view(),
                     .send_slots = send_slots.view(),
                     .return_row = return_row.view()},
            .choice_counts = choice_counts.view()};
  }
  Sent(const Sent&) = delete;
  Sent& operator=(const Sent&) = delete;

  int32_t SlotOf(int64_t t, int64_t j) const {
    const int32_t expert = topk_idx.at<int32_t>(t * top_k + j);
    return expert < 0 ? -1 : slot_table.at<int32_t>(int64_t{expert} * 4 + t % 4);
  }

  int64_t top_k;
  int64_t per_row;
  int32_t capacity;
  TestTensor topk_idx, slot_table, counts, choice_counts, send_token, send_slots, return_row;
  RankDispatchArgs args;
};

std::string Name(const Case& c) {
  return std::to_string(c.num_tokens) + " tokens, " + std::to_string(c.num_ranks) + " ranks" +
         (c.masked ? ", masked" : "");
}

TEST_F(ExchangeTest, RankDispatchAgreesWithTwin) {
  for (const Case& c : Cases()) {
    SCOPED_TRACE(Name(c));
    CheckAgainstTwin([&](Backend& b) -> Outputs {
      Sent sent(c);
      const absl::Status status = b.RankDispatch(sent.args);
      EXPECT_TRUE(status.ok()) << status;
      return {{sent.counts, sent.send_token, sent.send_slots, sent.return_row, sent.choice_counts},
              {Exact(), Exact(), Exact(), Exact(), Exact()}};
    });
  }
}

TEST_F(ExchangeTest, RankDispatchCountsEachChoiceOnce) {
  Sent sent({65, 4, 12, 2, 7, false});
  TestTensor want = sent.choice_counts;
  for (int64_t i = 0; i < sent.topk_idx.size(); ++i) {
    const int32_t expert = sent.topk_idx.at<int32_t>(i);
    if (expert >= 0 && expert < 11) ++want.at<int64_t>(expert);
  }
  ASSERT_TRUE(one_thread_->RankDispatch(sent.args).ok());
  EXPECT_EQ(sent.choice_counts.ElementBytes(), want.ElementBytes());
  EXPECT_TRUE(sent.choice_counts.GuardsIntact());
  // Absent: all else is as it was.
  sent.args.choice_counts = {};
  ASSERT_TRUE(one_thread_->RankDispatch(sent.args).ok());
  EXPECT_EQ(sent.choice_counts.ElementBytes(), want.ElementBytes());
}

// What a rank does with its rows, for the twin or the backend: the grouped rows in the order of the
// results.
std::vector<int32_t> ResultRows(Backend& b, const Case& c, const Sent& sent, int64_t first_row,
                                int64_t num_rows) {
  TestTensor slots(DType::kI32, {num_rows, c.top_k});
  for (int64_t i = 0; i < slots.size(); ++i) {
    slots.at<int32_t>(i) = sent.send_slots.at<int32_t>(first_row * c.top_k + i);
  }
  TestTensor cu_rows(DType::kI32, {c.slots_per_rank + 1});
  TestTensor row_token(DType::kI32, {num_rows * c.top_k});
  TestTensor token_row(DType::kI32, {num_rows, c.top_k});
  absl::Status status =
      b.ExpertDispatch({slots.view(), {cu_rows.view(), row_token.view(), token_row.view()}});
  EXPECT_TRUE(status.ok()) << status;
  TestTensor row_idx(DType::kI32, {num_rows * (c.masked ? sent.per_row : c.top_k)});
  status =
      b.ReturnRows({.token_row = token_row.view(), .masked = c.masked, .row_idx = row_idx.view()});
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(row_idx.GuardsIntact());
  // Which (row, slot) each result is of.
  std::vector<int32_t> out;
  for (int64_t i = 0; i < row_idx.size(); ++i) {
    const int32_t grouped = row_idx.at<int32_t>(i);
    if (grouped < 0) {
      out.push_back(-1);
      continue;
    }
    int32_t slot = 0;
    while (cu_rows.at<int32_t>(slot + 1) <= grouped) ++slot;
    out.push_back(row_token.at<int32_t>(grouped) * c.slots_per_rank + slot);
  }
  return out;
}

// Every choice finds, at return_row among what all ranks send back, the result of its own token and
// slot.
TEST_F(ExchangeTest, EachChoiceGetsItsOwnResultBack) {
  for (const Case& c : Cases()) {
    SCOPED_TRACE(Name(c));
    Sent sent(c);
    ASSERT_TRUE(one_thread_->RankDispatch(sent.args).ok());
    std::vector<std::pair<int32_t, int32_t>> returned;  // token, slot
    int64_t first_row = 0;
    for (int32_t r = 0; r < c.num_ranks; ++r) {
      if (c.masked) first_row = int64_t{r} * sent.capacity;
      const int64_t num_rows = c.masked ? sent.capacity : sent.counts.at<int32_t>(2 * r);
      const int32_t num_choices = sent.counts.at<int32_t>(2 * r + 1);
      const std::vector<int32_t> rows = ResultRows(*one_thread_, c, sent, first_row, num_rows);
      const int64_t num_back = c.masked ? num_rows * sent.per_row : num_choices;
      for (int64_t i = 0; i < num_back; ++i) {
        if (rows[i] < 0) {
          returned.emplace_back(-1, -1);
          continue;
        }
        const int64_t row = first_row + rows[i] / c.slots_per_rank;
        returned.emplace_back(sent.send_token.at<int32_t>(row),
                              r * c.slots_per_rank + rows[i] % c.slots_per_rank);
      }
      first_row += num_rows;
    }
    for (int64_t t = 0; t < c.num_tokens; ++t) {
      for (int64_t j = 0; j < c.top_k; ++j) {
        const int32_t at = sent.return_row.at<int32_t>(t * c.top_k + j);
        if (sent.SlotOf(t, j) < 0) {
          EXPECT_EQ(at, -1);
          continue;
        }
        ASSERT_GE(at, 0);
        ASSERT_LT(at, static_cast<int32_t>(returned.size()));
        EXPECT_EQ(returned[at].first, t);
        EXPECT_EQ(returned[at].second, sent.SlotOf(t, j));
      }
    }
  }
}

TEST_F(ExchangeTest, ReturnRowsAgreesWithTwin) {
  for (bool masked : {false, true}) {
    for (int64_t num_rows : {0, 1, 5, 64, 257}) {
      CheckAgainstTwin([&](Backend& b) -> Outputs {
        Random random(kOpTestSeed);
        TestTensor token_row(DType::kI32, {num_rows, 4});
        int32_t next = 0;
        // At most three of four: the width where it is masked.
        for (int64_t i = 0; i < token_row.size(); ++i) {
          token_row.at<int32_t>(i) = i % 4 == random.Below(4) || i % 4 == 3 ? -1 : next++;
        }
        TestTensor row_idx(DType::kI32, {num_rows * (masked ? 3 : 4)});
        EXPECT_TRUE(b.ReturnRows({token_row.view(), masked, row_idx.view()}).ok());
        return {{row_idx}, {Exact()}};
      });
    }
  }
}

TEST_F(ExchangeTest, PackRowsAgreesWithTwinAndReadsAsWhatItSays) {
  for (int64_t width : {1, 7, 16, 127, 128, 129, 200, 512}) {
    for (int64_t num_rows : {0, 1, 5, 33}) {
      SCOPED_TRACE(std::to_string(width) + " values, " + std::to_string(num_rows) + " rows");
      CheckAgainstTwin([&](Backend& b) -> Outputs {
        Random random(kOpTestSeed);
        TestTensor x = NormalTensor(random, {9, width}, 8, 3);
        for (int64_t i = 0; i < width; ++i) x.at<float>(i) = 0;       // a row of zeros
        x.at<float>(width) = std::numeric_limits<float>::infinity();  // and one that is not finite
        x.at<float>(2 * width) = -0x1p100f;
        TestTensor row_idx(DType::kI32, {num_rows});
        for (int64_t i = 0; i < num_rows; ++i) {
          row_idx.at<int32_t>(i) = static_cast<int32_t>(random.Below(10)) - 1;
        }
        TestTensor packed(DType::kU8, {num_rows, PackedRowBytes(width)});
        EXPECT_TRUE(b.PackRows({x.view(), row_idx.view(), packed.view()}).ok());
        TestTensor out(DType::kF32, {num_rows, width}, 8);
        EXPECT_TRUE(b.UnpackRows({packed.view(), out.view()}).ok());
        for (int64_t i = 0; i < num_rows; ++i) {
          const int32_t token = row_idx.at<int32_t>(i);
          for (int64_t j = 0; j < width && token != 1; ++j) {
            const double want = token < 0 ? 0 : x.Value(token * width + j);
            double largest = 0;
            for (int64_t k = j / kFp8Group * kFp8Group; k < width && token >= 0; ++k) {
              if (k < (j / kFp8Group + 1) * kFp8Group) {
                largest = std::max(largest, std::abs(x.Value(token * width + k)));
              }
            }
            EXPECT_NEAR(out.Value(i * width + j), want,
                        std::max(std::abs(want) / 16, largest / 448 / 512));
          }
        }
        return {{packed, out}, {Exact(), Exact()}};
      });
    }
  }
}

TEST_F(ExchangeTest, MoreTokensThanTheCapacityAreRefused) {
  Sent sent({5, 2, 8, 2, 4, true});
  sent.args.capacity = 4;
  const absl::Status status = one_thread_->RankDispatch(sent.args);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "RankDispatch: num_tokens must be in [0, 4], got 5");
}

}  // namespace
}  // namespace jevons
