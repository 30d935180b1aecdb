#include "ops/moe.h"

#include <limits>
#include <numeric>

#include "nlohmann/json.hpp"
#include "tests/support/op_test.h"
#include "tests/support/test_data.h"

namespace jevons {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

class MoeTest : public OpTest {};

struct RouteCase {
  std::string name;
  int64_t n_experts;
  int64_t top_k;
  RouterScoring scoring;
  GroupScore group_score = GroupScore::kNone;
  int32_t n_group = 1;
  int32_t topk_group = 1;
  bool bias = false;
  bool normalize = false;
  float scale = 1;
};

const RouteCase kRouteCases[] = {
    {"v2lite", 64, 6, RouterScoring::kSoftmax},
    {"v2", 160, 6, RouterScoring::kSoftmax, GroupScore::kMax, 8, 3, false, false, 16},
    {"v3", 256, 8, RouterScoring::kSigmoid, GroupScore::kTop2Sum, 8, 4, true, true, 2.5f},
    {"one", 1, 1, RouterScoring::kSoftmax},
    {"all", 7, 7, RouterScoring::kSigmoid, GroupScore::kNone, 1, 1, true, true, 1},
    {"small groups", 12, 4, RouterScoring::kSigmoid, GroupScore::kTop2Sum, 6, 2, true, false, 1},
    {"groups of one", 9, 2, RouterScoring::kSoftmax, GroupScore::kMax, 9, 2, false, true, 1},
};

enum class Logits { kNormal, kWide, kEqual, kRounded, kSpecial };

void FillLogits(Random& random, Logits kind, RouterScoring scoring, TestTensor& logits) {
  const int64_t n_experts = logits.view().dim(1);
  // Far out many sigmoids are the same float, and a backend with float scores then goes by index.
  const double wide = kTestsCuda && scoring == RouterScoring::kSigmoid ? 2 : 20;
  logits.FillNormal(random, kind == Logits::kWide ? wide : 1);
  for (int64_t i = 0; i < logits.size(); ++i) {
    float& v = logits.at<float>(i);
    if (kind == Logits::kEqual) v = 0.25f;
    if (kind == Logits::kRounded) v = std::round(v * 2) / 2;
    if (kind != Logits::kSpecial) continue;
    const int64_t t = i / n_experts;
    if (t == 1 && i % n_experts == n_experts / 2) v = kNan;
    if (t == 2 && i % n_experts == 0) v = -kInf;
    if (t == 3 && i % n_experts == n_experts - 1) v = kInf;
    if (t == 4) v = -kInf;
  }
}

Outputs RunRoute(Backend& backend, const RouteCase& c, int64_t num_tokens, Logits kind) {
  Random random(kOpTestSeed);
  TestTensor logits(DType::kF32, {num_tokens, c.n_experts}, 3);
  FillLogits(random, kind, c.scoring, logits);
  TestTensor bias = NormalTensor(random, {c.n_experts}, 0, 0.3);
  TestTensor ids(DType::kI32, {num_tokens, c.top_k});
  TestTensor weights(DType::kF32, {num_tokens, c.top_k});
  RouteTopKArgs args;
  args.logits = logits.view();
  if (c.bias) args.bias = bias.view();
  args.scoring = c.scoring;
  args.group_score = c.group_score;
  args.n_group = c.n_group;
  args.topk_group = c.topk_group;
  args.normalize = c.normalize;
  args.scale = c.scale;
  args.topk_idx = ids.view();
  args.topk_weights = weights.view();
  const absl::Status status = backend.RouteTopK(args);
  EXPECT_TRUE(status.ok()) << status;
  return {{ids, weights}, {Exact(), Relative(kRouteTopKTolerance)}};
}

TEST_F(MoeTest, RouteTopKAgreesWithTwin) {
  for (const RouteCase& c : kRouteCases) {
    for (int64_t num_tokens : {0, 1, 5, 15, 16, 17, 40}) {
      for (Logits kind :
           {Logits::kNormal, Logits::kWide, Logits::kEqual, Logits::kRounded, Logits::kSpecial}) {
        SCOPED_TRACE(c.name + " x " + std::to_string(num_tokens));
        CheckAgainstTwin([&](Backend& b) { return RunRoute(b, c, num_tokens, kind); });
      }
    }
  }
}

TEST_F(MoeTest, RouteTopKTakesTheLowerIndexOfEqualScores) {
  const Outputs out = RunRoute(*one_thread_, kRouteCases[0], 5, Logits::kEqual);
  for (int64_t i = 0; i < out.tensors[0].size(); ++i) EXPECT_EQ(out.tensors[0].Value(i), i % 6);
}

TEST_F(MoeTest, RouteTopKLosesOnlyTheRowWithNan) {
  const Outputs out = RunRoute(*one_thread_, kRouteCases[2], 5, Logits::kSpecial);
  for (int64_t j = 0; j < 8; ++j) {
    EXPECT_EQ(out.tensors[0].Value(8 + j), j);
    EXPECT_TRUE(std::isnan(out.tensors[1].Value(8 + j)));
    EXPECT_FALSE(std::isnan(out.tensors[1].Value(j)));
    EXPECT_FALSE(std::isnan(out.tensors[1].Value(16 + j)));
  }
}

void CheckRoutingVector(Backend& backend, const nlohmann::json& item) {
  SCOPED_TRACE(item["name"].get<std::string>());
  const auto& config = item["config"];
  const auto values = item["logits"].get<std::vector<float>>();
  const auto want_ids = item["expected_ids_by_choice_score"].get<std::vector<int32_t>>();
  const auto want_weights = item["expected_weights"].get<std::vector<double>>();
  const int64_t n = static_cast<int64_t>(values.size());
  const int64_t top_k = static_cast<int64_t>(want_ids.size());
  TestTensor logits(DType::kF32, {1, n});
  logits.Fill(values);
  TestTensor bias(DType::kF32, {n});
  TestTensor ids(DType::kI32, {1, top_k});
  TestTensor weights(DType::kF32, {1, top_k});
  RouteTopKArgs args;
  args.logits = logits.view();
  if (item.contains("e_score_correction_bias")) {
    args.bias = bias.Fill(item["e_score_correction_bias"].get<std::vector<float>>()).view();
  }
  const std::string method = config["topk_method"];
  args.scoring =
      config["scoring_func"] == "softmax" ? RouterScoring::kSoftmax : RouterScoring::kSigmoid;
  if (method == "group_limited_greedy") args.group_score = GroupScore::kMax;
  if (method == "noaux_tc") args.group_score = GroupScore::kTop2Sum;
  args.n_group = config["n_group"];
  args.topk_group = config["topk_group"];
  args.normalize = config["norm_topk_prob"];
  args.scale = config["scale"];
  args.topk_idx = ids.view();
  args.topk_weights = weights.view();
  ASSERT_TRUE(backend.RouteTopK(args).ok());
  for (int64_t j = 0; j < top_k; ++j) {
    EXPECT_EQ(ids.at<int32_t>(j), want_ids[j]) << j;
    EXPECT_NEAR(weights.at<float>(j), want_weights[j], 1e-6 * std::max(1.0, want_weights[j])) << j;
  }
}

TEST_F(MoeTest, RouteTopKGivesThePublishedCases) {
  const auto cases = nlohmann::json::parse(ReadFile(DataPath("math/moe-routing-cases.json")));
  ASSERT_EQ(cases.size(), 23u);
  for (const auto& item : cases) {
    CheckRoutingVector(*reference_, item);
    CheckRoutingVector(*one_thread_, item);
  }
}

// A plan with its memory.
struct Plan {
  Plan(int64_t num_experts, int64_t num_tokens, int64_t top_k)
      : cu_rows(DType::kI32, {num_experts + 1}),
        row_token(DType::kI32, {num_tokens * top_k}),
        token_row(DType::kI32, {num_tokens, top_k}) {}
  DispatchPlan view() const { return {cu_rows.view(), row_token.view(), token_row.view()}; }
  TestTensor cu_rows;
  TestTensor row_token;
  TestTensor token_row;
};

// With `none` some choices are -1.
TestTensor RandomChoices(Random& random, int64_t num_tokens, int64_t top_k, int64_t num_experts,
                         bool none) {
  TestTensor ids(DType::kI32, {num_tokens, top_k});
  for (int64_t i = 0; i < ids.size(); ++i) {
    ids.at<int32_t>(i) = static_cast<int32_t>(random.Below(num_experts));
    if (none && random.Below(3) == 0) ids.at<int32_t>(i) = -1;
  }
  return ids;
}

TEST_F(MoeTest, ExpertDispatchAgreesWithTwin) {
  for (int64_t num_tokens : {0, 1, 2, 17, 300}) {
    for (int64_t num_experts : {1, 2, 16, 64, 257}) {
      for (int64_t top_k : {1, 6}) {
        for (bool none : {false, true}) {
          CheckAgainstTwin([&](Backend& b) -> Outputs {
            Random random(kOpTestSeed);
            TestTensor ids = RandomChoices(random, num_tokens, top_k, num_experts, none);
            Plan plan(num_experts, num_tokens, top_k);
            EXPECT_TRUE(b.ExpertDispatch({ids.view(), plan.view()}).ok());
            return {{plan.cu_rows, plan.row_token, plan.token_row}, {Exact(), Exact(), Exact()}};
          });
        }
      }
    }
  }
}

TEST_F(MoeTest, RouteAndDispatchWithFixedExpertsDoesWhatTheTwoDoAndRowsOfPaddingChooseNothing) {
  const RouteCase& c = kRouteCases[2];
  for (int32_t num_tokens : {0, 1, 7, 40, 300}) {
    for (int32_t num_rows : {num_tokens, num_tokens / 2}) {
      const int32_t num_fixed = num_rows % 3;
      const int64_t width = c.top_k + num_fixed;
      SCOPED_TRACE(num_rows);
      CheckAgainstTwin([&](Backend& b) -> Outputs {
        Random random(kOpTestSeed);
        TestTensor logits = NormalTensor(random, {num_tokens, c.n_experts}, 3);
        TestTensor limit = IntTensor({num_rows});
        TestTensor ids(DType::kI32, {num_tokens, width});
        TestTensor weights(DType::kF32, {num_tokens, width});
        Plan plan(c.n_experts + num_fixed, num_tokens, width);
        RouteTopKArgs args;
        args.num_fixed = num_fixed;
        args.logits = logits.view();
        args.scoring = c.scoring;
        args.group_score = c.group_score;
        args.n_group = c.n_group;
        args.topk_group = c.topk_group;
        args.num_rows = limit.view();
        args.topk_idx = ids.view();
        args.topk_weights = weights.view();
        const absl::Status status = b.RouteAndDispatch(args, plan.view());
        EXPECT_TRUE(status.ok()) << status;
        for (int64_t i = num_rows * width; i < ids.size(); ++i) {
          EXPECT_EQ(ids.at<int32_t>(i), -1);
        }
        return {{ids, weights, plan.cu_rows, plan.row_token, plan.token_row},
                {Exact(), Relative(kRouteTopKTolerance), Exact(), Exact(), Exact()}};
      });
    }
  }
}

TEST_F(MoeTest, ExpertDispatchGivesEachChoiceOneRowOfItsExpert) {
  Random random(kOpTestSeed);
  TestTensor ids = RandomChoices(random, 100, 4, 9, true);
  Plan plan(9, 100, 4);
  ASSERT_TRUE(two_threads_->ExpertDispatch({ids.view(), plan.view()}).ok());
  std::vector<int> used(400, 0);
  for (int64_t i = 0; i < 400; ++i) {
    const int32_t expert = ids.at<int32_t>(i);
    const int32_t row = plan.token_row.at<int32_t>(i);
    if (expert < 0) {
      EXPECT_EQ(row, -1);
      continue;
    }
    ASSERT_GE(row, plan.cu_rows.at<int32_t>(expert));
    ASSERT_LT(row, plan.cu_rows.at<int32_t>(expert + 1));
    EXPECT_EQ(plan.row_token.at<int32_t>(row), i / 4);
    ++used[row];
  }
  const int64_t total = plan.cu_rows.at<int32_t>(9);
  for (int64_t row = 0; row < 400; ++row) EXPECT_EQ(used[row], row < total ? 1 : 0);
}

struct CombineCase {
  int64_t num_tokens;
  int64_t top_k;
  int64_t hidden;
  bool shared;
  bool none;
};

Outputs RunCombine(Backend& backend, const CombineCase& c) {
  Random random(kOpTestSeed);
  TestTensor ids = RandomChoices(random, c.num_tokens, c.top_k, 8, c.none);
  Plan plan(8, c.num_tokens, c.top_k);
  EXPECT_TRUE(backend.ExpertDispatch({ids.view(), plan.view()}).ok());
  const int64_t used = plan.cu_rows.at<int32_t>(8);
  // Rows past the used ones stay NaN.
  TestTensor expert_out(DType::kF32, {c.num_tokens * c.top_k, c.hidden}, 3);
  for (int64_t i = 0; i < used * c.hidden; ++i) {
    expert_out.at<float>(i) = TestValue(random.Normal());
  }
  TestTensor weights = NormalTensor(random, {c.num_tokens, c.top_k});
  TestTensor shared = NormalTensor(random, {c.num_tokens, c.hidden}, 1);
  TestTensor out(DType::kF32, {c.num_tokens, c.hidden}, 2);
  ExpertCombineArgs args = {expert_out.view(), plan.view(), weights.view(), {}, out.view()};
  if (c.shared) args.shared = shared.view();
  EXPECT_TRUE(backend.ExpertCombine(args).ok());
  const auto bound = [=](int64_t i, double) {
    const int64_t t = i / c.hidden;
    double sum = c.shared ? std::abs(shared.Value(i)) : 0;
    for (int64_t j = 0; j < c.top_k; ++j) {
      const int32_t row = plan.token_row.at<int32_t>(t * c.top_k + j);
      if (row < 0) continue;
      sum += std::abs(weights.Value(t * c.top_k + j) *
                      expert_out.Value(row * c.hidden + i % c.hidden));
    }
    return kExpertCombineTolerance * sum;
  };
  return {{out}, {bound}};
}

TEST_F(MoeTest, ExpertCombineAgreesWithTwinAndSkipsMissingChoices) {
  for (int64_t num_tokens : {0, 1, 3, 40}) {
    for (int64_t hidden : {1, 7, 16, 33, 65, 512}) {
      for (int variant = 0; variant < 4; ++variant) {
        const CombineCase c = {num_tokens, 1 + variant * 2, hidden, variant % 2 == 1, variant >= 2};
        SCOPED_TRACE(std::to_string(num_tokens) + " x " + std::to_string(hidden));
        CheckAgainstTwin([&](Backend& b) { return RunCombine(b, c); });
      }
    }
  }
}

TEST_F(MoeTest, ExpertCombineOfATokenIsTheSameAloneAndInABatch) {
  Random random(kOpTestSeed);
  const int64_t hidden = 100;
  TestTensor expert_out = NormalTensor(random, {60, hidden});
  TestTensor weights = NormalTensor(random, {20, 3});
  TestTensor token_row(DType::kI32, {20, 3});
  for (int64_t i = 0; i < 60; ++i) token_row.at<int32_t>(i) = static_cast<int32_t>(59 - i);
  TestTensor out(DType::kF32, {20, hidden});
  DispatchPlan plan;
  plan.token_row = token_row.view();
  ASSERT_TRUE(
      two_threads_->ExpertCombine({expert_out.view(), plan, weights.view(), {}, out.view()}).ok());
  for (int64_t t = 0; t < 20; ++t) {
    TestTensor alone(DType::kF32, {1, hidden});
    plan.token_row = token_row.view().Slice(t, 1);
    ASSERT_TRUE(
        one_thread_
            ->ExpertCombine({expert_out.view(), plan, weights.view().Slice(t, 1), {}, alone.view()})
            .ok());
    for (int64_t i = 0; i < hidden; ++i) EXPECT_EQ(alone.Value(i), out.Value(t * hidden + i));
  }
}

}  // namespace
}  // namespace jevons
