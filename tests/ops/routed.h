// What tests of the ops around a router share: weights, and a step's rows,
// choices and plan.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "ops/moe.h"
#include "tests/support/test_weight.h"

namespace jevons {

inline constexpr float kTestEps = 1e-6f;

// Products stay where a sigmoid is not yet 1.
inline TestWeight SmallWeight(Random& random, DType dtype, int64_t groups, int64_t n, int64_t k) {
  return TestWeight(random, dtype, groups, {n}, k, 1 / std::sqrt(static_cast<double>(k)));
}

struct RouterCase {
  int64_t hidden;
  int64_t num_experts;
  int64_t top_k;
  RouterScoring scoring = RouterScoring::kSoftmax;
  int32_t n_group = 1;
  int32_t num_fixed = 0;
  bool dispatch = true;
};

struct Routed {
  Routed(const RouterCase& c, Random& random, int64_t num_tokens)
      : x(NormalTensor(random, {num_tokens, c.hidden}, 8)),
        delta(NormalTensor(random, {num_tokens, c.hidden})),
        norm(NormalTensor(random, {c.hidden})),
        out(DType::kF32, {num_tokens, c.hidden}, 16),
        logits(DType::kF32, {num_tokens, c.num_experts}, 3),
        ids(DType::kI32, {num_tokens, c.top_k + c.num_fixed}),
        weights(DType::kF32, {num_tokens, c.top_k + c.num_fixed}),
        cu_rows(DType::kI32, {c.num_experts + c.num_fixed + 1}),
        row_token(DType::kI32, {num_tokens * (c.top_k + c.num_fixed)}),
        token_row(DType::kI32, {num_tokens, c.top_k + c.num_fixed}) {}

  // For the rows [begin, begin + count).
  NormAndRouteArgs args(const RouterCase& c, const Weight* router, int64_t begin,
                        int64_t count) const {
    NormAndRouteArgs a;
    a.norm = {x.view().Slice(begin, count), delta.view().Slice(begin, count), norm.view(), kTestEps,
              out.view().Slice(begin, count)};
    a.router = router;
    a.route.logits = logits.view().Slice(begin, count);
    a.route.scoring = c.scoring;
    a.route.n_group = c.n_group;
    a.route.topk_group = std::max(c.n_group / 2, 1);
    if (c.n_group > 1) a.route.group_score = GroupScore::kTop2Sum;
    a.route.num_fixed = c.num_fixed;
    a.route.topk_idx = ids.view().Slice(begin, count);
    a.route.topk_weights = weights.view().Slice(begin, count);
    if (c.dispatch) {
      a.plan = {cu_rows.view(), row_token.view().Slice(0, count * (c.top_k + c.num_fixed)),
                token_row.view().Slice(begin, count)};
    }
    return a;
  }
  TestTensor x, delta, norm, out, logits, ids, weights, cu_rows, row_token, token_row;
};

}  // namespace jevons
