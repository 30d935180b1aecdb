// What tests of the ops around a router share: weights with what they are made of, and a step's rows,
// choices and plan.
#pragma once

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "ops/moe.h"
#include "tests/support/op_test.h"

namespace jevons {

inline constexpr float kTestEps = 1e-6f;

// A weight with what its parts point to.
struct PackedWeight {
  std::vector<TestTensor> tensors;
  std::unique_ptr<Weight> weight;
};

inline PackedWeight Pack(Backend& backend, Random& random, DType dtype, int64_t groups, int64_t n,
                         int64_t k) {
  PackedWeight out;
  out.tensors.reserve(2 * groups);
  // Products stay where a sigmoid is not yet 1.
  const double sigma = 1 / std::sqrt(static_cast<double>(k));
  WeightSpec spec;
  for (int64_t g = 0; g < groups; ++g) {
    WeightPart part;
    TestTensor& data = out.tensors.emplace_back(dtype, std::vector<int64_t>{n, k});
    part.data = data.FillNormal(random, sigma).view();
    if (dtype == DType::kF8E4M3) {
      TestTensor& scale = out.tensors.emplace_back(
          DType::kF32, std::vector<int64_t>{(n + 127) / 128, (k + 127) / 128});
      part.scale = scale.FillNormal(random, 0.01).view();
    }
    spec.groups.push_back({part});
  }
  auto weight = backend.PackWeight(spec);
  EXPECT_TRUE(weight.ok()) << weight.status();
  out.weight = *std::move(weight);
  return out;
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
