// A product with norm, router, choice and dispatch of its rows, against the two ops that it is.
#include <limits>
#include <string>

#include "tests/ops/routed.h"

namespace jevons {
namespace {

struct Case {
  RouterCase route;
  int64_t k;  // of the product
};

// Fewer strips of experts than blocks that share them, as many, and more: there one has more slices
// than warps and a short last one. Without a plan; more than 8 experts a lane.
const Case kCases[] = {
    {{64, 7, 2}, 16},
    {{65, 64, 6, RouterScoring::kSoftmax, 1, 2}, 300},
    {{520, 72, 4, RouterScoring::kSigmoid, 4, 1}, 70},
    {{1100, 16, 3, RouterScoring::kSoftmax, 1, 0, false}, 40},
    {{2100, 72, 2}, 24},
    {{72, 300, 8, RouterScoring::kSigmoid, 1, 1}, 130},
};

std::string NameOf(const Case& c, int64_t num_tokens, DType dtype) {
  return std::to_string(num_tokens) + " tokens, " + std::to_string(c.k) + " -> " +
         std::to_string(c.route.hidden) + " " + std::string(DTypeName(dtype)) + " -> " +
         std::to_string(c.route.num_experts) + " experts";
}

// The rows in front of the product, and all that follows.
struct Step {
  Step(const Case& c, Random& random, int64_t num_tokens)
      : x(NormalTensor(random, {num_tokens, c.k}, 8)),
        bias(NormalTensor(random, {c.route.hidden})),
        routed(c.route, random, num_tokens) {
    routed.delta = TestTensor(DType::kF32, {num_tokens, c.route.hidden}, 4);
  }
  LinearAndRouteArgs args(const Case& c, const Weight* weight, const Weight* router, int64_t begin,
                          int64_t count) const {
    const NormAndRouteArgs route = routed.args(c.route, router, begin, count);
    return {.linear = {.x = x.view().Slice(begin, count),
                       .weight = weight,
                       .bias = c.k % 4 == 0 ? bias.view() : TensorView(),
                       .out = route.norm.delta},
            .route = route};
  }
  TestTensor x, bias;
  Routed routed;
};

void ExpectSameRows(const Routed& a, const Routed& b) {
  ExpectSameBits(a.x, b.x);
  ExpectSameBits(a.delta, b.delta);
  ExpectSameBits(a.out, b.out);
  ExpectSameBits(a.logits, b.logits);
  ExpectSameBits(a.ids, b.ids);
  ExpectSameBits(a.weights, b.weights);
}

void ExpectSameStep(const Routed& a, const Routed& b) {
  ExpectSameRows(a, b);
  ExpectSameBits(a.cu_rows, b.cu_rows);
  ExpectSameBits(a.row_token, b.row_token);
  ExpectSameBits(a.token_row, b.token_row);
  for (const TestTensor* t : {&a.x, &a.delta, &a.out, &a.logits, &a.ids, &a.weights, &a.cu_rows,
                              &a.row_token, &a.token_row}) {
    EXPECT_TRUE(t->GuardsIntact());
  }
}

class LinearRouteTest : public OpTest {
 protected:
  // Both weights of a case.
  struct Weights {
    std::unique_ptr<Weight> linear, router;
  };
  Weights PackBoth(Backend& backend, const Case& c, DType dtype) {
    Random random(kOpTestSeed);
    auto linear = SmallWeight(random, dtype, 1, c.route.hidden, c.k).Pack(backend);
    return {
        std::move(linear),
        SmallWeight(random, DType::kBF16, 1, c.route.num_experts, c.route.hidden).Pack(backend)};
  }
};

TEST_F(LinearRouteTest, HasTheBitsOfItsTwoOps) {
  for (const Case& c : kCases) {
    for (DType dtype : {DType::kBF16, DType::kF8E4M3}) {
      for (Backend* b : {one_thread_.get(), reference_.get()}) {
        const Weights weights = PackBoth(*b, c, dtype);
        for (int64_t num_tokens : {0, 1, 8, 9, 17}) {
          SCOPED_TRACE(NameOf(c, num_tokens, dtype));
          Random random(kOpTestSeed);
          const Step at_once(c, random, num_tokens);
          const Step apart = at_once;
          const auto args = [&](const Step& step) {
            return step.args(c, weights.linear.get(), weights.router.get(), 0, num_tokens);
          };
          const absl::Status status = b->LinearAndRoute(args(at_once));
          ASSERT_TRUE(status.ok()) << status;
          ASSERT_TRUE(b->Linear(args(apart).linear).ok());
          ASSERT_TRUE(b->NormAndRoute(args(apart).route).ok());
          ExpectSameStep(at_once.routed, apart.routed);
        }
      }
    }
  }
}

TEST_F(LinearRouteTest, OfATokenIsTheSameAloneAndInABatch) {
  for (const Case& c : kCases) {
    constexpr int64_t kTokens = 36;
    SCOPED_TRACE(NameOf(c, kTokens, DType::kF8E4M3));
    const Weights weights = PackBoth(*one_thread_, c, DType::kF8E4M3);
    Random random(kOpTestSeed);
    const Step batch(c, random, kTokens);
    const Step parts = batch;
    const auto run = [&](const Step& step, int64_t begin, int64_t count) {
      return one_thread_->LinearAndRoute(
          step.args(c, weights.linear.get(), weights.router.get(), begin, count));
    };
    ASSERT_TRUE(run(batch, 0, kTokens).ok());
    int64_t begin = 0;
    for (int64_t count : {1, 8, 2, 9, 16}) {
      ASSERT_TRUE(run(parts, begin, count).ok());
      begin += count;
    }
    ASSERT_EQ(begin, kTokens);
    ExpectSameRows(batch.routed, parts.routed);
  }
}

TEST_F(LinearRouteTest, LosesOnlyTheRowWithNan) {
  const Case& c = kCases[2];
  for (int64_t num_tokens : {5, 12, 20}) {
    const Weights weights = PackBoth(*one_thread_, c, DType::kBF16);
    Random random(kOpTestSeed);
    Step step(c, random, num_tokens);
    step.x.at<float>(2 * c.k + 3) = std::numeric_limits<float>::quiet_NaN();
    const absl::Status status = one_thread_->LinearAndRoute(
        step.args(c, weights.linear.get(), weights.router.get(), 0, num_tokens));
    ASSERT_TRUE(status.ok()) << status;
    const Routed& got = step.routed;
    for (const TestTensor* t : {&got.x, &got.delta, &got.out, &got.logits}) {
      const int64_t width = t->view().dim(1);
      for (int64_t i = 0; i < t->size(); ++i) {
        EXPECT_EQ(std::isnan(t->Value(i)), i / width == 2) << i;
      }
    }
    const int64_t width = c.route.top_k + c.route.num_fixed;
    for (int64_t i = 0; i < got.weights.size(); ++i) {
      EXPECT_EQ(std::isnan(got.weights.Value(i)), i / width == 2 && i % width < c.route.top_k) << i;
    }
  }
}

}  // namespace
}  // namespace jevons
