// Argument checks of the ops of experts.
#include "tests/unit/ops/validate_fixture.h"

namespace jevons {
namespace {

TEST(ValidateMoeTest, RouteTopKGroupsMustFit) {
  std::vector<int32_t> ids(4);
  RouteTopKArgs args;
  args.logits = F32({2, 12});
  args.topk_idx = TensorView(ids.data(), DType::kI32, {2, 2});
  args.topk_weights = F32({2, 2});
  EXPECT_TRUE(Validate(args).ok());
  args.n_group = 5;
  ExpectRefused(Validate(args), "RouteTopK: n_group must divide 12 experts, got 5");
  args.n_group = 12;
  ExpectRefused(Validate(args), "RouteTopK: top_k must be in [1, 1], got 2");
  args.n_group = 4;
  ExpectRefused(Validate(args), "RouteTopK: group_score must be set where n_group > 1");
  args.group_score = GroupScore::kTop2Sum;
  EXPECT_TRUE(Validate(args).ok());
  args.topk_group = 5;
  ExpectRefused(Validate(args), "RouteTopK: topk_group must be in [1, 4], got 5");
}

TEST(ValidateMoeTest, ExpertPlansStayInRange) {
  std::vector<int32_t> ids = {0, 1, -1, 2};
  std::vector<int32_t> cu(4);
  std::vector<int32_t> rows(4);
  std::vector<int32_t> token_rows = {0, 1, -1, 2};
  const DispatchPlan plan = {I32(cu), I32(rows),
                             TensorView(token_rows.data(), DType::kI32, {2, 2})};
  const ExpertDispatchArgs dispatch = {TensorView(ids.data(), DType::kI32, {2, 2}), plan};
  EXPECT_TRUE(Validate(dispatch).ok());
  ids[3] = 3;
  ExpectRefused(Validate(dispatch), "ExpertDispatch: topk_idx[3] must be in [-1, 2], got 3");
  ExpertCombineArgs combine = {F32({3, 8}), plan, F32({2, 2}), {}, F32({2, 8})};
  EXPECT_TRUE(Validate(combine).ok());
  token_rows[1] = 3;
  ExpectRefused(Validate(combine), "ExpertCombine: plan.token_row[1] must be in [-1, 2], got 3");
}

TEST(ValidateMoeTest, ANormBeforeTheRouterFitsItAndItsChoices) {
  const FakeWeight router(1, 4, 8);
  const FakeWeight wide(1, 4, 9);
  std::vector<int32_t> ids(4);
  std::vector<int32_t> cu(5);
  std::vector<int32_t> rows(4);
  const TensorView choices(ids.data(), DType::kI32, {2, 2});
  NormAndRouteArgs args;
  args.norm = {F32({2, 8}), F32({2, 8}), F32({8}), 1e-6f, F32({2, 8})};
  ExpectRefused(Validate(args), "NormAndRoute: router must be given, got nothing");
  args.router = &router;
  args.route.logits = F32({2, 4});
  args.route.topk_idx = choices;
  args.route.topk_weights = F32({2, 2});
  EXPECT_TRUE(Validate(args).ok());
  ids = {7, 7, 7, 7};  // what stands there before the choice does not matter
  args.plan = {I32(cu), I32(rows), choices};
  EXPECT_TRUE(Validate(args).ok());
  args.plan.cu_rows = I32(rows);
  ExpectRefused(Validate(args), "NormAndRoute: plan.cu_rows size must be in [5, 5], got 4");
  args.router = &wide;
  ExpectRefused(Validate(args), "NormAndRoute: router k must be in [8, 8], got 9");
  const FakeWeight rounds(1, 4, 8, WeightUse::kPlain, ActivationPrecision::kFp8);
  args.router = &rounds;
  ExpectRefused(Validate(args), "NormAndRoute: router must not be packed for an input of fp8");
  // A backend that rounds the row needs more of it than that.
  args.router = &router;
  args.plan = {};
  args.norm.delta = {};
  EXPECT_TRUE(Validate(args).ok());
  args.norm.out.dtype = DType::kBF16;
  ExpectRefused(Validate(args, {.activation = DType::kBF16}),
                "NormAndRoute: norm.delta must be f32 [2, *], got nothing");
}

TEST(ValidateMoeTest, ARouterBehindAProductTakesItsRows) {
  const FakeWeight output(1, 8, 6);
  const FakeWeight router(1, 4, 8);
  std::vector<int32_t> ids(4);
  LinearAndRouteArgs args;
  args.linear = {F32({2, 6}), &output, {}, F32({2, 8})};
  args.route.norm = {F32({2, 8}), args.linear.out, F32({8}), 1e-6f, F32({2, 8})};
  args.route.router = &router;
  args.route.route.logits = F32({2, 4});
  args.route.route.topk_idx = TensorView(ids.data(), DType::kI32, {2, 2});
  args.route.route.topk_weights = F32({2, 2});
  EXPECT_TRUE(Validate(args).ok()) << Validate(args);
  args.route.norm.delta.data = storage + 64;
  ExpectRefused(Validate(args), "LinearAndRoute: route.norm.delta must be linear.out");
  args.route.norm.delta = {};
  ExpectRefused(Validate(args), "LinearAndRoute: route.norm.delta must be linear.out");
  args.linear.weight = &router;
  ExpectRefused(Validate(args), "Linear: x must be f32 [*, 8], got f32 [2, 6]");
}

TEST(ValidateMoeTest, ANormAfterACombineTakesItsSum) {
  std::vector<int32_t> token_rows = {0, 1, -1, 2};
  const DispatchPlan plan = {{}, {}, TensorView(token_rows.data(), DType::kI32, {2, 2})};
  CombineAndNormArgs args = {.combine = {F32({3, 8}), plan, F32({2, 2}), {}, F32({2, 8})},
                             .norm = {F32({2, 8}), F32({2, 8}), F32({8}), 1e-6f, F32({2, 8})}};
  EXPECT_TRUE(Validate(args).ok());
  args.norm.delta.data = storage + 64;
  ExpectRefused(Validate(args), "CombineAndNorm: norm.delta must be combine.out");
}

}  // namespace
}  // namespace jevons
