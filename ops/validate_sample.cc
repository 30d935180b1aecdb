#include "ops/arg_check.h"
#include "ops/validate.h"

namespace jevons {
namespace {

// Entries of a list of all rows; 0 where there is none.
int64_t CheckList(ArgCheck& check, std::string_view name, const SampleList& list, DType value_type,
                  int64_t num_rows, const ArgRules& rules) {
  if (!list.ids.present()) return 0;
  const int64_t num_entries = list.ids.rank == 1 ? list.ids.dim(0) : kAnySize;
  check.Tensor(name, list.ids, DType::kI32, {num_entries});
  check.Tensor(name, list.values, value_type, {num_entries});
  check.Tensor(name, list.cu, DType::kI32, {num_rows + 1});
  if (!check.ok() || !rules.read_indices) return num_entries;
  const int32_t* cu = list.cu.ptr<int32_t>();
  check.IndexInRange(name, 0, cu[0], 0, 0);
  for (int64_t r = 0; r < num_rows; ++r) {
    check.IndexInRange(name, r + 1, cu[r + 1], cu[r], num_entries);
  }
  return num_entries;
}

}  // namespace

absl::Status Validate(const SampleTokensArgs& args, const ArgRules& rules) {
  ArgCheck check("SampleTokens");
  const int64_t num_rows = args.token.rank == 1 ? args.token.dim(0) : kAnySize;
  check.Tensor("logits", args.logits, DType::kF32, {num_rows, kAnySize}, Layout::kStrided);
  check.Tensor("rows", args.rows, DType::kU8, {num_rows, sizeof(SampleRow)});
  check.Tensor("token", args.token, DType::kI32, {num_rows});
  check.Tensor("logprob", args.logprob, DType::kF32, {num_rows});
  check.Tensor("top_ids", args.top_ids, DType::kI32, {num_rows, kAnySize});
  if (!check.ok()) return check.status();
  const int64_t vocab = args.logits.dim(1);
  check.Tensor("top_logprobs", args.top_logprobs, DType::kF32, {num_rows, args.top_ids.dim(1)});
  check.InRange("max_top", args.top_ids.dim(1), 0, kMaxSampleTop);
  check.InRange("vocab", vocab, 1, kMaxSampleVocab);
  check.InRange("num_valid", args.num_valid, 1, vocab);
  check.OptionalTensor("masks", args.masks, DType::kI32, {kAnySize, (vocab + 31) / 32});
  const int64_t entries = CheckList(check, "bias", args.bias, DType::kF32, num_rows, rules) +
                          CheckList(check, "counts", args.counts, DType::kI32, num_rows, rules);
  if (entries > 0) check.Tensor("list_scratch", args.list_scratch, DType::kF32, {entries});
  return check.status();
}

}  // namespace jevons
