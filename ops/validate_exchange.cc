#include <algorithm>

#include "ops/arg_check.h"
#include "ops/validate.h"

namespace jevons {
namespace {

constexpr DType kI32 = DType::kI32;

}  // namespace

absl::Status Validate(const RankDispatchArgs& args, const ArgRules& rules) {
  ArgCheck check("RankDispatch");
  const int64_t num_tokens = Dim(args.topk_idx, 0);
  const int64_t top_k = Dim(args.topk_idx, 1);
  const int64_t num_send = Dim(args.plan.send_token, 0);
  check.InRange("num_ranks", args.num_ranks, 1, 1 << 16);
  check.InRange("slots_per_rank", args.slots_per_rank, 1, 1 << 16);
  check.InRange("capacity", args.capacity, 0, INT32_MAX);
  if (args.capacity > 0) check.InRange("num_tokens", num_tokens, 0, args.capacity);
  check.Tensor("topk_idx", args.topk_idx, kI32, {kAnySize, kAnySize});
  check.Tensor("slot_table", args.slot_table, kI32, {kAnySize, kAnySize});
  check.Tensor("plan.counts", args.plan.counts, kI32, {args.num_ranks, 2});
  check.Tensor("plan.send_token", args.plan.send_token, kI32, {kAnySize});
  check.Tensor("plan.send_slots", args.plan.send_slots, kI32, {num_send, top_k});
  check.Tensor("plan.return_row", args.plan.return_row, kI32, {num_tokens, top_k});
  if (args.choice_counts.present()) {
    check.Tensor("choice_counts", args.choice_counts, DType::kI64, {kAnySize});
  }
  if (!check.ok()) return check.status();
  check.Require(Dim(args.slot_table, 1) > 0, "slot_table must have at least one column");
  const int64_t wanted = args.capacity > 0 ? int64_t{args.num_ranks} * args.capacity
                                           : num_tokens * std::min<int64_t>(top_k, args.num_ranks);
  check.InRange("rows of plan.send_token", num_send, wanted, INT32_MAX);
  if (!check.ok() || !rules.read_indices) return check.status();
  const int64_t num_experts = args.slot_table.dim(0);
  const int64_t width = args.slot_table.dim(1);
  const int64_t num_slots = int64_t{args.num_ranks} * args.slots_per_rank;
  for (int64_t i = 0; i < num_tokens * top_k && check.ok(); ++i) {
    const int32_t expert = args.topk_idx.ptr<int32_t>()[i];
    check.IndexInRange("topk_idx", i, expert, -1, num_experts - 1);
    if (!check.ok() || expert < 0) continue;
    const int64_t at = expert * width + i / top_k % width;
    check.IndexInRange("slot_table", at, args.slot_table.ptr<int32_t>()[at], 0, num_slots - 1);
  }
  return check.status();
}

absl::Status Validate(const ReturnRowsArgs& args, const ArgRules&) {
  ArgCheck check("ReturnRows");
  const int64_t num_rows = Dim(args.token_row, 0);
  const int64_t top_k = Dim(args.token_row, 1);
  check.Tensor("token_row", args.token_row, kI32, {kAnySize, kAnySize});
  check.Tensor("row_idx", args.row_idx, kI32, {kAnySize});
  if (!check.ok()) return check.status();
  const int64_t size = args.row_idx.dim(0);
  if (!args.masked) {
    check.InRange("row_idx size", size, num_rows * top_k, num_rows * top_k);
  } else if (num_rows > 0) {
    check.Require(size % num_rows == 0 && size / num_rows >= 1 && size / num_rows <= top_k,
                  "row_idx must have 1 to top_k entries for each row of token_row");
  }
  return check.status();
}

absl::Status Validate(const PackRowsArgs& args, const ArgRules& rules) {
  ArgCheck check("PackRows");
  check.Tensor("x", args.x, FloatType(args.x, rules), {kAnySize, kAnySize}, Layout::kStrided);
  check.Tensor("row_idx", args.row_idx, kI32, {kAnySize});
  check.Tensor("out", args.out, DType::kU8, {Dim(args.row_idx, 0), PackedRowBytes(Dim(args.x, 1))});
  if (!check.ok() || !rules.read_indices) return check.status();
  for (int64_t i = 0; i < args.row_idx.dim(0); ++i) {
    check.IndexInRange("row_idx", i, args.row_idx.ptr<int32_t>()[i], -1, args.x.dim(0) - 1);
  }
  return check.status();
}

absl::Status Validate(const UnpackRowsArgs& args, const ArgRules& rules) {
  ArgCheck check("UnpackRows");
  check.Output("out", args.out, FloatType(args.out, rules), {kAnySize, kAnySize});
  check.Tensor("x", args.x, DType::kU8, {Dim(args.out, 0), PackedRowBytes(Dim(args.out, 1))});
  return check.status();
}

}  // namespace jevons
