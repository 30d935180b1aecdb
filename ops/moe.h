// Routing tokens to experts and summing what comes back.
#pragma once

#include "base/tensor_view.h"
#include "ops/elementwise.h"
#include "ops/linear.h"
#include "ops/weight.h"

namespace jevons {

enum class RouterScoring { kSoftmax, kSigmoid };
// How a group of experts is rated when only the best groups may be chosen from.
enum class GroupScore { kNone, kMax, kTop2Sum };

// What    s = softmax or sigmoid of logits; c = s + bias; groups rated by c, all but the best
//         topk_group masked (equal ones by lower index); the top_k largest c, in falling order,
//         equal ones by lower index; weight = s (no bias), divided by (sum + 1e-20) if normalize,
//         times scale
//         The last num_fixed columns are no choice: every token has the experts n_experts,
//         n_experts + 1, ... there, with weight 1 (shared experts, run with the routed ones)
// Shapes  logits [num_tokens, n_experts] f32; bias [n_experts] f32 or absent;
//         topk_idx i32, topk_weights f32 [num_tokens, top_k + num_fixed]
//         num_rows i32 [1] or absent: rows from num_rows[0] on choose nothing (-1, weight 0)
// Edge    a row with a NaN among its c gets topk_idx 0 .. top_k - 1 and NaN weights: that row alone
//         is lost. n_group = 1 has no group step
// Order   fixed
// Error   weights kRouteTopKTolerance relative against fp64; the ids equal but where two choices
//         tie within that
// Source  model-spec 2.5; dropped groups count as -inf
struct RouteTopKArgs {
  TensorView logits;
  TensorView bias;
  RouterScoring scoring = RouterScoring::kSoftmax;
  GroupScore group_score = GroupScore::kNone;
  int32_t n_group = 1;
  int32_t topk_group = 1;
  bool normalize = false;
  float scale = 1;
  int32_t num_fixed = 0;
  TensorView num_rows;
  TensorView topk_idx;
  TensorView topk_weights;
};
inline constexpr double kRouteTopKTolerance = 1e-6;

// Where each (token, choice) went: made by ExpertDispatch, used by GroupedGemm and ExpertCombine.
struct DispatchPlan {
  TensorView cu_rows;    // i32 [num_experts + 1]
  TensorView row_token;  // i32 [num_tokens * top_k]: the token of each grouped row; valid up to
                         // cu_rows[num_experts]
  TensorView token_row;  // i32 [num_tokens, top_k]: the grouped row of each choice, -1 for none
};

// What    groups (token, choice) pairs by expert, within an expert by token, then by choice
// Shapes  topk_idx i32 [num_tokens, top_k], -1 = none; the plan's views are filled
// Edge    what of row_token lies past cu_rows[num_experts] is not written
// Error   exact
struct ExpertDispatchArgs {
  TensorView topk_idx;
  DispatchPlan plan;
};

// What    RmsNorm; route.logits = router h, where h is the normed row before it was rounded to the
//         type of norm.out; RouteTopK; where the plan is there, ExpertDispatch of what was chosen
// Shapes  router [n_experts, hidden], its input kExact; route.logits is written; norm.out as the input of Linear;
//         where h is rounded, norm.x and norm.delta are there in f32
// Edge    as those ops; the logits of rows that choose nothing are undefined
// Order   that of a row's logits depends on hidden alone, as in Linear
// Error   kRouterTolerance * sum_k |w h| against fp64 of the logits; else as those ops
struct NormAndRouteArgs {
  RmsNormArgs norm;
  const Weight* router = nullptr;
  RouteTopKArgs route;
  DispatchPlan plan;  // no view of it, or all
};
inline constexpr double kRouterTolerance = 1e-5;

// What    Linear, then NormAndRoute with what it gives as the norm's delta
// Shapes  route.norm.delta is linear.out
// Edge, Order, Error as those two
struct LinearAndRouteArgs {
  LinearArgs linear;
  NormAndRouteArgs route;
};

// What    out[t] = sum_j topk_weights[t, j] * expert_out[token_row[t, j]] in the order of j,
//         then + shared[t]
// Shapes  expert_out [num_rows, hidden] f32; topk_weights [num_tokens, top_k] f32;
//         shared [num_tokens, hidden] f32 or absent; out [num_tokens, hidden] f32
// Edge    choices with row -1 add nothing
// Order   fixed: the token's own top-k order, shared experts last
// Error   kExpertCombineTolerance of sum |w e| + |shared| against fp64
struct ExpertCombineArgs {
  TensorView expert_out;
  DispatchPlan plan;
  TensorView topk_weights;
  TensorView shared;
  TensorView out;
};
inline constexpr double kExpertCombineTolerance = 1e-6;

// What    ExpertCombine, then RmsNorm with the sum as its delta
// Shapes  norm.delta is combine.out, f32, which may be left as it was
// Edge, Order, Error as those two
struct CombineAndNormArgs {
  ExpertCombineArgs combine;
  RmsNormArgs norm;
};

}  // namespace jevons
