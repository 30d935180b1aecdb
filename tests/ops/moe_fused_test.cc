// Ops around the experts that a backend may do at once: they have the bits of the ops that they
// consist of, or agree with them in the twin.
#include <limits>

#include "tests/ops/routed.h"

namespace jevons {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class MoeFusedTest : public OpTest {
 protected:
  // All results f32: then the sum of a combine is not rounded on its way to the norm either.
  std::vector<Backend*> Backends() const { return {one_thread_.get(), reference_.get()}; }
};

// A combine and a norm with their memory.
struct End {
  End(Random& random, int64_t num_tokens, int64_t top_k, int64_t hidden, bool with_shared)
      : expert_out(NormalTensor(random, {num_tokens * top_k, hidden})),
        token_row(DType::kI32, {num_tokens, top_k}),
        weights(NormalTensor(random, {num_tokens, top_k})),
        shared(NormalTensor(random, {num_tokens, hidden}, 1)),
        sum(DType::kF32, {num_tokens, hidden}),
        x(NormalTensor(random, {num_tokens, hidden}, 3)),
        norm(NormalTensor(random, {hidden})),
        out(DType::kF32, {num_tokens, hidden}, 2),
        has_shared(with_shared) {
    for (int64_t i = 0; i < token_row.size(); ++i) {
      token_row.at<int32_t>(i) =
          random.Below(5) == 0 ? -1 : static_cast<int32_t>(token_row.size() - 1 - i);
    }
  }
  CombineAndNormArgs args() const {
    return {.combine = {expert_out.view(),
                        {{}, {}, token_row.view()},
                        weights.view(),
                        has_shared ? shared.view() : TensorView(),
                        sum.view()},
            .norm = {x.view(), sum.view(), norm.view(), kTestEps, out.view()}};
  }
  TestTensor expert_out, token_row, weights, shared, sum, x, norm, out;
  bool has_shared;
};

void ExpectSameEnd(const End& a, const End& b) {
  ExpectSameBits(a.x, b.x);
  ExpectSameBits(a.out, b.out);
  EXPECT_TRUE(a.x.GuardsIntact() && a.out.GuardsIntact());
}

TEST_F(MoeFusedTest, CombineAndNormHasTheBitsOfBoth) {
  for (int64_t hidden : {1, 7, 64, 65, 520, 4104, 8200}) {
    for (int64_t num_tokens : {0, 1, 3}) {
      SCOPED_TRACE(std::to_string(hidden) + " x " + std::to_string(num_tokens));
      for (Backend* b : Backends()) {
        Random random(kOpTestSeed);
        const End at_once(random, num_tokens, 1 + hidden % 6, hidden, hidden % 2 == 1);
        const End apart = at_once;
        ASSERT_TRUE(b->CombineAndNorm(at_once.args()).ok());
        ASSERT_TRUE(b->ExpertCombine(apart.args().combine).ok());
        ASSERT_TRUE(b->RmsNorm(apart.args().norm).ok());
        ExpectSameEnd(at_once, apart);
      }
    }
  }
}

TEST_F(MoeFusedTest, CombineAndNormAgreesWithTwin) {
  for (int64_t hidden : {65, 520}) {
    CheckAgainstTwin([&](Backend& b) -> Outputs {
      Random random(kOpTestSeed);
      const End end(random, 5, 6, hidden, true);
      EXPECT_TRUE(b.CombineAndNorm(end.args()).ok());
      // Sums of up to seven terms of about 1.
      return {{end.x, end.out}, {Relative(0, 2e-5), Relative(1e-5, 1e-4)}};
    });
  }
}

TEST_F(MoeFusedTest, FinishExpertsHasTheBitsOfItsOps) {
  constexpr int64_t kExperts = 5;
  constexpr int64_t kTopK = 3;
  struct Size {
    int64_t num_tokens;
    int64_t hidden;
    int64_t k;
  };
  const Size sizes[] = {{0, 64, 16}, {1, 72, 300}, {40, 264, 70}};
  for (const Size& size : sizes) {
    for (DType dtype : {DType::kBF16, DType::kF8E4M3}) {
      SCOPED_TRACE(testing::Message()
                   << size.num_tokens << " of " << size.hidden << " " << DTypeName(dtype));
      for (Backend* b : Backends()) {
        Random random(kOpTestSeed);
        const auto weight = SmallWeight(random, dtype, kExperts, size.hidden, size.k).Pack(*b);
        const End at_once(random, size.num_tokens, kTopK, size.hidden, false);
        const End apart = at_once;
        TestTensor act = NormalTensor(random, {size.num_tokens * kTopK, size.k});
        // Rows of the first, of two others, and of none.
        const int32_t n = static_cast<int32_t>(act.view().dim(0));
        const TestTensor cu = IntTensor({0, n / 3, n / 3, n - n / 3, n, n});
        const auto down = [&](const End& end) -> GroupedGemmArgs {
          return {act.view(), cu.view(), {}, weight.get(), end.expert_out.view()};
        };
        const absl::Status status = b->FinishExperts(down(at_once), at_once.args());
        ASSERT_TRUE(status.ok()) << status;
        ASSERT_TRUE(b->GroupedGemm(down(apart)).ok());
        ASSERT_TRUE(b->ExpertCombine(apart.args().combine).ok());
        ASSERT_TRUE(b->RmsNorm(apart.args().norm).ok());
        ExpectSameEnd(at_once, apart);
      }
    }
  }
}

// One row takes more than 8 experts a lane, another more columns than a slice of the sums has.
const RouterCase kRouterCases[] = {
    {64, 7, 2},
    {65, 64, 6, RouterScoring::kSoftmax, 1, 2},
    {520, 72, 4, RouterScoring::kSigmoid, 4, 1},
    {1100, 16, 3, RouterScoring::kSoftmax, 1, 0, false},
    {4104, 20, 2},
    {72, 300, 8, RouterScoring::kSigmoid, 1, 1},
};

// Choices, weights and plan are those of the twin for the logits that are there.
void ExpectChoicesOfLogits(Backend& reference, const RouterCase& c, const Routed& got,
                           const NormAndRouteArgs& args) {
  Routed want = got;
  NormAndRouteArgs twin = want.args(c, nullptr, 0, got.x.view().dim(0));
  twin.route.num_rows = args.route.num_rows;
  ASSERT_TRUE(reference.RouteTopK(twin.route).ok());
  ExpectSameBits(got.ids, want.ids);
  ExpectWithin(got.weights, want.weights, Relative(kRouteTopKTolerance));
  if (!c.dispatch) return;
  ASSERT_TRUE(reference.ExpertDispatch({twin.route.topk_idx, twin.plan}).ok());
  ExpectSameBits(got.cu_rows, want.cu_rows);
  ExpectSameBits(got.row_token, want.row_token);
  ExpectSameBits(got.token_row, want.token_row);
}

Outputs RunRouter(Backend& backend, Backend& reference, const RouterCase& c, int64_t num_tokens,
                  int64_t num_rows) {
  Random random(kOpTestSeed);
  const TestWeight stored = SmallWeight(random, DType::kBF16, 1, c.num_experts, c.hidden);
  const auto router = stored.Pack(backend);
  const Routed r(c, random, num_tokens);
  const TestTensor limit = IntTensor({static_cast<int32_t>(num_rows)});
  NormAndRouteArgs args = r.args(c, router.get(), 0, num_tokens);
  args.route.num_rows = limit.view();
  const absl::Status status = backend.NormAndRoute(args);
  EXPECT_TRUE(status.ok()) << status;
  ExpectChoicesOfLogits(reference, c, r, args);
  // sum_k |w h|, where h is what the twin has in `out`.
  const auto bound = [=, weight = stored.first()](int64_t i, double) {
    if (i / c.num_experts >= num_rows) return std::numeric_limits<double>::infinity();
    double sum = 0;
    for (int64_t k = 0; k < c.hidden; ++k) {
      sum += std::abs(weight.Value(i % c.num_experts * c.hidden + k) *
                      r.out.Value(i / c.num_experts * c.hidden + k));
    }
    return kRouterTolerance * sum;
  };
  const double rounded = Tolerance(kRmsNormTolerance, kBf16Step);
  return {{r.x, r.out, r.logits}, {Exact(), Relative(rounded), bound}};
}

TEST_F(MoeFusedTest, NormAndRouteAgreesWithTwinFromTheRowThatIsNotRounded) {
  for (const RouterCase& c : kRouterCases) {
    for (int64_t num_tokens : {0, 1, 3, 8, 9, 17}) {
      SCOPED_TRACE(std::to_string(c.hidden) + " x " + std::to_string(num_tokens));
      CheckAgainstTwin([&](Backend& b) {
        return RunRouter(b, *reference_, c, num_tokens, num_tokens - num_tokens / 3);
      });
    }
  }
}

TEST_F(MoeFusedTest, NormAndRouteOfEqualTokensGivesOneExpertAllRows) {
  const RouterCase c = {64, 7, 1, RouterScoring::kSoftmax, 1, 1};
  for (int64_t num_tokens : {64, 65}) {
    for (Backend* b : Backends()) {
      SCOPED_TRACE(num_tokens);
      Random random(kOpTestSeed);
      const auto router = SmallWeight(random, DType::kBF16, 1, c.num_experts, c.hidden).Pack(*b);
      Routed r(c, random, num_tokens);
      for (TestTensor* rows : {&r.x, &r.delta}) {
        for (int64_t i = 0; i < rows->size(); ++i) {
          rows->at<float>(i) = rows->at<float>(i % c.hidden);
        }
      }
      const NormAndRouteArgs args = r.args(c, router.get(), 0, num_tokens);
      ASSERT_TRUE(b->NormAndRoute(args).ok());
      ExpectChoicesOfLogits(*reference_, c, r, args);
      const int32_t expert = r.ids.at<int32_t>(0);
      EXPECT_EQ(r.cu_rows.at<int32_t>(expert), 0);
      EXPECT_EQ(r.cu_rows.at<int32_t>(expert + 1), num_tokens);
      EXPECT_EQ(r.cu_rows.at<int32_t>(c.num_experts), num_tokens);
    }
  }
}

// So many tokens have a kernel for each op on a device; parts have one, in sets of all sizes.
TEST_F(MoeFusedTest, NormAndRouteOfATokenIsTheSameAloneAndInABatch) {
  for (const RouterCase& c : kRouterCases) {
    SCOPED_TRACE(c.hidden);
    const int64_t num_tokens = c.hidden <= 1100 ? 257 : 35;
    Random random(kOpTestSeed);
    const auto router =
        SmallWeight(random, DType::kBF16, 1, c.num_experts, c.hidden).Pack(*one_thread_);
    const Routed batch(c, random, num_tokens);
    const Routed parts = batch;
    ASSERT_TRUE(one_thread_->NormAndRoute(batch.args(c, router.get(), 0, num_tokens)).ok());
    int64_t begin = 0;
    for (int64_t count : {1, 8, 2, 7, 17, 9, 16, 64, 65, 5, 63}) {
      if (begin + count > num_tokens) break;
      ASSERT_TRUE(one_thread_->NormAndRoute(parts.args(c, router.get(), begin, count)).ok());
      begin += count;
    }
    ASSERT_EQ(begin, num_tokens);
    ExpectSameBits(batch.x, parts.x);
    ExpectSameBits(batch.out, parts.out);
    ExpectSameBits(batch.logits, parts.logits);
    ExpectSameBits(batch.ids, parts.ids);
    ExpectSameBits(batch.weights, parts.weights);
  }
}

TEST_F(MoeFusedTest, NormAndRouteLosesOnlyTheRowWithNan) {
  const RouterCase& c = kRouterCases[2];
  for (int64_t num_tokens : {5, 12, 33}) {
    Random random(kOpTestSeed);
    const auto router =
        SmallWeight(random, DType::kBF16, 1, c.num_experts, c.hidden).Pack(*one_thread_);
    Routed r(c, random, num_tokens);
    r.x.at<float>(2 * c.hidden + 100) = kNan;
    ASSERT_TRUE(one_thread_->NormAndRoute(r.args(c, router.get(), 0, num_tokens)).ok());
    for (int64_t i = 0; i < r.logits.size(); ++i) {
      EXPECT_EQ(std::isnan(r.logits.Value(i)), i / c.num_experts == 2) << i;
    }
    for (int64_t i = 0; i < r.weights.size(); ++i) {
      const int64_t width = c.top_k + c.num_fixed;
      EXPECT_EQ(std::isnan(r.weights.Value(i)), i / width == 2 && i % width < c.top_k) << i;
    }
  }
}

}  // namespace
}  // namespace jevons
