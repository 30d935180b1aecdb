#include "ops/sample.h"

#include <limits>

#include "tests/support/op_test.h"

namespace jevons {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// A call with its memory.
struct SampleStep {
  SampleStep(Random& random, int64_t num_rows, int64_t vocab, int64_t max_top)
      : logits(NormalTensor(random, {num_rows, vocab}, 3, 4)),
        rows(DType::kU8, {num_rows, sizeof(SampleRow)}),
        token(DType::kI32, {num_rows}),
        logprob(DType::kF32, {num_rows}),
        top_ids(DType::kI32, {num_rows, max_top}),
        top_logprobs(DType::kF32, {num_rows, max_top}),
        requests(num_rows) {
    num_valid = static_cast<int32_t>(vocab);
  }

  SampleTokensArgs Args() {
    for (size_t r = 0; r < requests.size(); ++r) {
      std::memcpy(rows.view().row<uint8_t>(static_cast<int64_t>(r)), &requests[r],
                  sizeof(SampleRow));
    }
    return {.logits = logits.view(),
            .num_valid = num_valid,
            .rows = rows.view(),
            .bias = {bias_ids.view(), bias_values.view(), bias_cu.view()},
            .counts = {count_ids.view(), count_values.view(), count_cu.view()},
            .masks = masks.view(),
            .list_scratch = scratch.view(),
            .token = token.view(),
            .logprob = logprob.view(),
            .top_ids = top_ids.view(),
            .top_logprobs = top_logprobs.view()};
  }
  Outputs Run(Backend& backend) {
    const absl::Status status = backend.SampleTokens(Args());
    EXPECT_TRUE(status.ok()) << status;
    const ErrorBound close = [](int64_t, double) { return kSampleTolerance; };
    return {{token, logprob, top_ids, top_logprobs, logits},
            {Exact(), close, Exact(), close, Exact()}};
  }

  TestTensor logits, rows, token, logprob, top_ids, top_logprobs;
  TestTensor bias_ids, bias_values, bias_cu, count_ids, count_values, count_cu, masks, scratch;
  std::vector<SampleRow> requests;
  int32_t num_valid = 0;
};

class SampleTest : public OpTest {};

TEST_F(SampleTest, EveryFilterDrawsTheTwinsToken) {
  const std::vector<SampleRow> settings = {
      {.temperature = 0},
      {.temperature = 1},
      {.temperature = 0.3f, .num_top = 5},
      {.temperature = 1.7f, .top_k = 1},
      {.temperature = 1, .top_k = 40},
      {.temperature = 1, .top_p = 0.9f},
      {.temperature = 1, .top_p = 0.001f, .num_top = 20},
      {.temperature = 1, .min_p = 0.05f},
      {.temperature = 0.8f, .top_k = 50, .top_p = 0.95f, .min_p = 0.01f, .num_top = 1},
      {.mode = SampleMode::kScore, .score_id = 3, .num_top = 2}};
  for (int64_t vocab : {5, 33, 1000, 5003}) {
    SCOPED_TRACE(vocab);
    CheckAgainstTwin([&](Backend& b) {
      Random random(kOpTestSeed);
      SampleStep step(random, static_cast<int64_t>(settings.size()) * 3, vocab, 20);
      for (size_t r = 0; r < step.requests.size(); ++r) {
        SampleRow& row = step.requests[r];
        row = settings[r % settings.size()];
        row.num_top = std::min<int32_t>(row.num_top, static_cast<int32_t>(vocab));
        row.seed = 1000 + r;
        row.token_idx = static_cast<int64_t>(r) * 7;
      }
      return step.Run(b);
    });
  }
}

TEST_F(SampleTest, PenaltiesBiasAndMaskComeBeforeTheFilters) {
  CheckAgainstTwin([&](Backend& b) {
    Random random(kOpTestSeed);
    SampleStep step(random, 4, 300, 4);
    step.bias_ids = IntTensor({7, 299, 1, 2});
    step.bias_values = TestTensor(DType::kF32, {4}).Fill(std::vector<float>{50, -100, 3, 3});
    step.bias_cu = IntTensor({0, 2, 2, 4, 4});
    step.count_ids = IntTensor({5, 6, 7});
    step.count_values = IntTensor({2, 0, 9});
    step.count_cu = IntTensor({0, 0, 3, 3, 3});
    step.scratch = TestTensor(DType::kF32, {7});
    step.masks = TestTensor(DType::kI32, {1, 10});
    step.masks.Fill(std::vector<int32_t>{0, 0, 1 << 5, 0, 0, 0, 0, 0, 3, 0});
    for (int r = 0; r < 4; ++r) {
      step.requests[r] = {.repetition_penalty = 1.5f,
                          .presence_penalty = 0.5f,
                          .frequency_penalty = 0.25f,
                          .mask_row = r == 3 ? 0 : -1,
                          .num_top = 4,
                          .seed = 5u + r};
    }
    return step.Run(b);
  });
}

TEST_F(SampleTest, ARowWithoutAFiniteChoiceIsLostAlone) {
  Random random(kOpTestSeed);
  SampleStep step(random, 5, 70, 1);
  step.logits.view().row<float>(1)[69] = kNan;
  step.logits.view().row<float>(2)[0] = kInf;
  for (int i = 0; i < 70; ++i) step.logits.view().row<float>(3)[i] = -kInf;
  const Outputs out = step.Run(*one_thread_);
  for (int64_t r = 0; r < 5; ++r) {
    const bool lost = r >= 1 && r <= 3;
    EXPECT_EQ(out.tensors[0].at<int32_t>(r) == -1, lost) << r;
    EXPECT_EQ(std::isnan(out.tensors[1].Value(r)), lost) << r;
  }
}

TEST_F(SampleTest, IdsPastTheValidOnesAndRowsOfPaddingDoNotExist) {
  Random random(kOpTestSeed);
  SampleStep step(random, 3, 40, 1);
  step.num_valid = 20;
  for (int64_t r = 0; r < 3; ++r) step.logits.view().row<float>(r)[30] = r == 2 ? kNan : 100;
  step.requests[0].temperature = 0;
  step.requests[1].mode = SampleMode::kSkip;
  step.token.at<int32_t>(1) = 77;
  const Outputs out = step.Run(*one_thread_);
  EXPECT_LT(out.tensors[0].at<int32_t>(0), 20);
  EXPECT_EQ(out.tensors[0].at<int32_t>(1), 77);
  EXPECT_GE(out.tensors[0].at<int32_t>(2), 0);
}

TEST_F(SampleTest, ARowDrawsTheSameAloneAndInABatch) {
  Random random(kOpTestSeed);
  SampleStep batch(random, 9, 500, 3);
  for (int r = 0; r < 9; ++r) {
    batch.requests[r] = {.top_p = 0.9f, .num_top = 3, .seed = 3u * r, .token_idx = r};
  }
  const Outputs want = batch.Run(*one_thread_);
  for (int64_t r = 0; r < 9; ++r) {
    Random other(1);
    SampleStep alone(other, 1, 500, 3);
    std::copy_n(batch.logits.view().row<float>(r), 500, alone.logits.view().ptr<float>());
    alone.requests[0] = batch.requests[r];
    const Outputs got = alone.Run(*two_threads_);
    EXPECT_EQ(got.tensors[0].at<int32_t>(0), want.tensors[0].at<int32_t>(r));
    EXPECT_EQ(got.tensors[1].at<float>(0), want.tensors[1].at<float>(r));
    for (int64_t i = 0; i < 3; ++i) {
      EXPECT_EQ(got.tensors[2].at<int32_t>(i), want.tensors[2].at<int32_t>(3 * r + i));
    }
  }
}

}  // namespace
}  // namespace jevons
