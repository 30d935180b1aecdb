#include "absl/strings/str_cat.h"
#include "ops/arg_check.h"
#include "ops/validate.h"

namespace jevons {
namespace {

constexpr DType kF32 = DType::kF32;
constexpr DType kI32 = DType::kI32;

void CheckPlan(ArgCheck& check, const DispatchPlan& plan, int64_t num_tokens, int64_t top_k) {
  check.Tensor("plan.cu_rows", plan.cu_rows, kI32, {kAnySize});
  check.Tensor("plan.row_token", plan.row_token, kI32, {num_tokens * top_k});
  check.Tensor("plan.token_row", plan.token_row, kI32, {num_tokens, top_k});
  if (check.ok()) check.InRange("plan.cu_rows size", plan.cu_rows.dim(0), 2, INT32_MAX);
}

bool SamePlace(const TensorView& a, const TensorView& b) {
  return a.data == b.data && a.dtype == b.dtype && a.shape == b.shape && a.stride == b.stride;
}

}  // namespace

absl::Status Validate(const RouteTopKArgs& args, const ArgRules& rules) {
  ArgCheck check("RouteTopK");
  const int64_t num_tokens = Dim(args.logits, 0);
  const int64_t n_experts = Dim(args.logits, 1);
  check.Tensor("logits", args.logits, kF32, {kAnySize, kAnySize}, Layout::kStrided);
  check.OptionalTensor("bias", args.bias, kF32, {n_experts});
  check.OptionalTensor("num_rows", args.num_rows, kI32, {1});
  check.Tensor("topk_idx", args.topk_idx, kI32, {num_tokens, kAnySize});
  check.Tensor("topk_weights", args.topk_weights, kF32, {num_tokens, Dim(args.topk_idx, 1)});
  if (!check.ok()) return check.status();
  check.InRange("n_experts", n_experts, 1, INT32_MAX);
  check.InRange("n_group", args.n_group, 1, n_experts);
  check.InRange("topk_group", args.topk_group, 1, args.n_group);
  if (!check.ok()) return check.status();
  if (n_experts % args.n_group != 0) {
    check.Require(false,
                  absl::StrCat("n_group must divide ", n_experts, " experts, got ", args.n_group));
  }
  const int64_t group_size = n_experts / args.n_group;
  check.InRange("num_fixed", args.num_fixed, 0, args.topk_idx.dim(1) - 1);
  check.InRange("top_k", args.topk_idx.dim(1) - args.num_fixed, 1, args.topk_group * group_size);
  if (args.n_group == 1) return check.status();
  check.Require(args.group_score != GroupScore::kNone, "group_score must be set where n_group > 1");
  if (args.group_score == GroupScore::kTop2Sum) {
    check.InRange("experts of a group", group_size, 2, INT32_MAX);
  }
  return check.status();
}

absl::Status Validate(const ExpertDispatchArgs& args, const ArgRules& rules) {
  ArgCheck check("ExpertDispatch");
  const int64_t num_tokens = Dim(args.topk_idx, 0);
  const int64_t top_k = Dim(args.topk_idx, 1);
  check.Tensor("topk_idx", args.topk_idx, kI32, {kAnySize, kAnySize});
  if (check.ok()) check.InRange("num_tokens * top_k", num_tokens * top_k, 0, INT32_MAX);
  CheckPlan(check, args.plan, num_tokens, top_k);
  if (!check.ok() || !rules.read_indices) return check.status();
  const int64_t num_experts = args.plan.cu_rows.dim(0) - 1;
  for (int64_t i = 0; i < num_tokens * top_k; ++i) {
    check.IndexInRange("topk_idx", i, args.topk_idx.ptr<int32_t>()[i], -1, num_experts - 1);
  }
  return check.status();
}

absl::Status Validate(const ExpertCombineArgs& args, const ArgRules& rules) {
  ArgCheck check("ExpertCombine");
  const int64_t num_tokens = Dim(args.topk_weights, 0);
  const int64_t top_k = Dim(args.topk_weights, 1);
  const int64_t hidden = Dim(args.expert_out, 1);
  check.Tensor("expert_out", args.expert_out, FloatType(args.expert_out, rules),
               {kAnySize, kAnySize}, Layout::kStrided);
  check.Tensor("topk_weights", args.topk_weights, kF32, {kAnySize, kAnySize});
  check.Tensor("plan.token_row", args.plan.token_row, kI32, {num_tokens, top_k});
  check.OptionalTensor("shared", args.shared, FloatType(args.shared, rules), {num_tokens, hidden},
                       Layout::kStrided);
  check.Output("out", args.out, FloatType(args.out, rules), {num_tokens, hidden});
  if (!check.ok() || !rules.read_indices) return check.status();
  for (int64_t i = 0; i < num_tokens * top_k; ++i) {
    check.IndexInRange("plan.token_row", i, args.plan.token_row.ptr<int32_t>()[i], -1,
                       args.expert_out.dim(0) - 1);
  }
  return check.status();
}

absl::Status Validate(const NormAndRouteArgs& args, const ArgRules& rules) {
  ArgCheck check("NormAndRoute");
  check.Require(args.router != nullptr, "router must be given, got nothing");
  if (!check.ok()) return check.status();
  RETURN_IF_ERROR(Validate(args.norm, rules));
  RETURN_IF_ERROR(Validate(args.route, rules));
  const int64_t num_tokens = args.norm.x.dim(0);
  check.InRange("router groups", args.router->num_groups(), 1, 1);
  check.Require(args.router->input() == ActivationPrecision::kExact,
                "router must not be packed for an input of fp8");
  check.InRange("router k", args.router->k(), args.norm.x.dim(1), args.norm.x.dim(1));
  check.Output("route.logits", args.route.logits, kF32, {num_tokens, args.router->n()});
  check.Tensor("norm.out", args.norm.out, rules.activation, {num_tokens, kAnySize},
               Layout::kStrided);
  if (rules.activation != kF32) {
    check.Tensor("norm.x", args.norm.x, kF32, {num_tokens, kAnySize}, Layout::kStrided);
    check.Tensor("norm.delta", args.norm.delta, kF32, {num_tokens, kAnySize}, Layout::kStrided);
  }
  if (!check.ok() || !args.plan.cu_rows.present()) return check.status();
  // The choices are not there yet.
  ArgRules unread = rules;
  unread.read_indices = false;
  RETURN_IF_ERROR(Validate(ExpertDispatchArgs{args.route.topk_idx, args.plan}, unread));
  const int64_t num_experts = args.router->n() + args.route.num_fixed;
  check.InRange("plan.cu_rows size", args.plan.cu_rows.dim(0), num_experts + 1, num_experts + 1);
  return check.status();
}

absl::Status Validate(const LinearAndRouteArgs& args, const ArgRules& rules) {
  RETURN_IF_ERROR(Validate(args.linear, rules));
  RETURN_IF_ERROR(Validate(args.route, rules));
  ArgCheck check("LinearAndRoute");
  check.Require(SamePlace(args.route.norm.delta, args.linear.out),
                "route.norm.delta must be linear.out");
  return check.status();
}

absl::Status Validate(const CombineAndNormArgs& args, const ArgRules& rules) {
  RETURN_IF_ERROR(Validate(args.combine, rules));
  RETURN_IF_ERROR(Validate(args.norm, rules));
  ArgCheck check("CombineAndNorm");
  check.Tensor("combine.out", args.combine.out, kF32, {kAnySize, kAnySize}, Layout::kStrided);
  check.Require(SamePlace(args.norm.delta, args.combine.out), "norm.delta must be combine.out");
  return check.status();
}

}  // namespace jevons
