#include "ops/validate.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "ops/arg_check.h"

namespace jevons {
namespace {

constexpr DType kF32 = DType::kF32;
constexpr DType kI32 = DType::kI32;

void CheckEps(ArgCheck& check, float eps) {
  if (check.ok() && !(eps >= 0 && eps < 1)) {
    check.Require(false, absl::StrCat("eps must be in [0, 1), got ", eps));
  }
}

// The positions, and the table that they choose rows of.
void CheckRotation(ArgCheck& check, const TensorView& positions, const TensorView& cos_sin,
                   int64_t num_tokens, int64_t d, const ArgRules& rules) {
  check.Tensor("positions", positions, kI32, {num_tokens});
  check.Tensor("cos_sin", cos_sin, kF32, {kAnySize, d});
  check.Require(d % 2 == 0, "the rotated width must be even");
  if (!check.ok() || !rules.read_indices) return;
  for (int64_t t = 0; t < num_tokens; ++t) {
    check.IndexInRange("positions", t, positions.ptr<int32_t>()[t], 0, cos_sin.dim(0) - 1);
  }
}

// The latent cache: entries of `width` values of the rule's type, or FP8 entries of as many, of
// which r are latents.
void CheckCache(ArgCheck& check, const TensorView& cache, int64_t r, int64_t width,
                const ArgRules& rules) {
  if (!check.ok()) return;
  if (cache.dtype != DType::kU8) {
    check.Tensor("cache", cache, rules.kv_cache, {kAnySize, kAnySize, width});
    return;
  }
  const Fp8Entry entry = {static_cast<int32_t>(r), static_cast<int32_t>(width - r)};
  check.Tensor("cache", cache, DType::kU8, {kAnySize, kAnySize, entry.bytes()});
  check.Require(reinterpret_cast<uintptr_t>(cache.data) % Fp8Entry::kPart == 0,
                "a cache of FP8 entries must be aligned to 16 bytes");
}

void CheckWeight(ArgCheck& check, const Weight* weight) {
  check.Require(weight != nullptr, "weight must be given, got nothing");
}

// Ascending from 0 to `last`.
void CheckPrefixSums(ArgCheck& check, std::string_view name, const TensorView& cu, int64_t last,
                     const ArgRules& rules) {
  if (!check.ok() || !rules.read_indices) return;
  const int32_t* v = cu.ptr<int32_t>();
  check.IndexInRange(name, 0, v[0], 0, 0);
  for (int64_t i = 1; i < cu.dim(0); ++i) check.IndexInRange(name, i, v[i], v[i - 1], last);
}

// The rows of each group and where they come from.
void CheckGroups(ArgCheck& check, const TensorView& x, const TensorView& cu_rows,
                 const TensorView& row_idx, const Weight& weight, int64_t num_rows,
                 const ArgRules& rules) {
  check.Tensor("cu_rows", cu_rows, kI32, {weight.num_groups() + int64_t{1}});
  check.OptionalTensor("row_idx", row_idx, kI32, {num_rows});
  CheckPrefixSums(check, "cu_rows", cu_rows, num_rows, rules);
  if (!check.ok() || !rules.read_indices) return;
  const int32_t used = cu_rows.ptr<int32_t>()[weight.num_groups()];
  if (!row_idx.present()) return check.InRange("cu_rows[num_groups]", used, 0, x.dim(0));
  for (int32_t i = 0; i < used; ++i) {
    check.IndexInRange("row_idx", i, row_idx.ptr<int32_t>()[i], 0, x.dim(0) - 1);
  }
}

}  // namespace

absl::Status Validate(const EmbedArgs& args, const ArgRules& rules) {
  ArgCheck check("Embed");
  const DType dtype = args.table.dtype;
  check.Require(dtype == kF32 || dtype == DType::kF16 || dtype == DType::kBF16,
                "table must be f32, f16 or bf16");
  check.Tensor("ids", args.ids, kI32, {kAnySize});
  check.Tensor("table", args.table, dtype, {kAnySize, kAnySize}, Layout::kStrided);
  check.Output("out", args.out, FloatType(args.out, rules), {Dim(args.ids, 0), Dim(args.table, 1)});
  check.OptionalTensor("drawn", args.drawn, kI32, {kAnySize});
  return check.status();
}

absl::Status Validate(const RmsNormArgs& args, const ArgRules& rules) {
  ArgCheck check("RmsNorm");
  const int64_t num_tokens = Dim(args.x, 0);
  const int64_t hidden = Dim(args.x, 1);
  check.Tensor("x", args.x, FloatType(args.x, rules), {kAnySize, kAnySize}, Layout::kStrided);
  check.OptionalTensor("delta", args.delta, FloatType(args.delta, rules), {num_tokens, hidden},
                       Layout::kStrided);
  check.Tensor("weight", args.weight, kF32, {hidden});
  check.Output("out", args.out, FloatType(args.out, rules), {num_tokens, hidden});
  CheckEps(check, args.eps);
  return check.status();
}

absl::Status Validate(const SiluMulArgs& args, const ArgRules& rules) {
  ArgCheck check("SiluMul");
  check.Tensor("gate_up", args.gate_up, FloatType(args.gate_up, rules), {kAnySize, kAnySize},
               Layout::kStrided);
  if (check.ok() && args.gate_up.dim(1) % 2 != 0) {
    check.Require(false,
                  absl::StrCat("gate_up must have an even width, got ", args.gate_up.dim(1)));
  }
  check.Output("out", args.out, FloatType(args.out, rules),
               {Dim(args.gate_up, 0), Dim(args.gate_up, 1) / 2});
  return check.status();
}

absl::Status Validate(const RopeArgs& args, const ArgRules& rules) {
  ArgCheck check("Rope");
  const int64_t num_tokens = Dim(args.x, 0);
  check.Tensor("x", args.x, FloatType(args.x, rules), {kAnySize, kAnySize, kAnySize},
               Layout::kStrided);
  check.Output("out", args.out, FloatType(args.out, rules),
               {num_tokens, Dim(args.x, 1), Dim(args.x, 2)});
  CheckRotation(check, args.positions, args.cos_sin, num_tokens, Dim(args.x, 2), rules);
  return check.status();
}

absl::Status Validate(const GatherRowsArgs& args, const ArgRules& rules) {
  ArgCheck check("GatherRows");
  check.Tensor("x", args.x, FloatType(args.x, rules), {kAnySize, kAnySize}, Layout::kStrided);
  check.Tensor("row_idx", args.row_idx, kI32, {kAnySize});
  check.Output("out", args.out, args.x.dtype, {Dim(args.row_idx, 0), Dim(args.x, 1)});
  if (!check.ok() || !rules.read_indices) return check.status();
  for (int64_t i = 0; i < args.row_idx.dim(0); ++i) {
    check.IndexInRange("row_idx", i, args.row_idx.ptr<int32_t>()[i], -1, args.x.dim(0) - 1);
  }
  return check.status();
}

absl::Status Validate(const LinearArgs& args, const ArgRules& rules) {
  ArgCheck check("Linear");
  CheckWeight(check, args.weight);
  if (!check.ok()) return check.status();
  check.InRange("weight groups", args.weight->num_groups(), 1, 1);
  check.Tensor("x", args.x, rules.activation, {kAnySize, args.weight->k()}, Layout::kStrided);
  check.OptionalTensor("bias", args.bias, kF32, {args.weight->n()});
  check.Output("out", args.out, FloatType(args.out, rules), {Dim(args.x, 0), args.weight->n()});
  return check.status();
}

absl::Status Validate(const LinearAndNormArgs& args, const ArgRules& rules) {
  RETURN_IF_ERROR(Validate(args.linear, rules));
  RETURN_IF_ERROR(Validate(args.norm, rules));
  ArgCheck check("LinearAndNorm");
  const TensorView& given = args.linear.out;
  const TensorView& normed = args.norm.x;
  check.InRange("norm.x columns", normed.dim(1), 1, given.dim(1));
  check.Require(normed.data == given.data && normed.dtype == given.dtype &&
                    normed.dim(0) == given.dim(0) && normed.stride[0] == given.stride[0] &&
                    !args.norm.delta.present(),
                "norm.x must be the first columns of linear.out, without a delta");
  return check.status();
}

absl::Status Validate(const HeadLinearArgs& args, const ArgRules& rules) {
  ArgCheck check("HeadLinear");
  CheckWeight(check, args.weight);
  if (!check.ok()) return check.status();
  check.Require(args.weight->input() == ActivationPrecision::kExact,
                "weight must not be packed for an input of fp8");
  const int64_t groups = args.weight->num_groups();
  check.Tensor("x", args.x, rules.activation, {kAnySize, groups, args.weight->k()},
               Layout::kStrided);
  check.Output("out", args.out, FloatType(args.out, rules),
               {Dim(args.x, 0), groups, args.weight->n()});
  return check.status();
}

absl::Status Validate(const GroupedGemmArgs& args, const ArgRules& rules) {
  ArgCheck check("GroupedGemm");
  CheckWeight(check, args.weight);
  if (!check.ok()) return check.status();
  const int64_t num_rows = Dim(args.out, 0);
  check.Tensor("x", args.x, rules.activation, {kAnySize, args.weight->k()}, Layout::kStrided);
  check.Output("out", args.out, FloatType(args.out, rules), {num_rows, args.weight->n()});
  CheckGroups(check, args.x, args.cu_rows, args.row_idx, *args.weight, num_rows, rules);
  return check.status();
}

absl::Status Validate(const GatedUpArgs& args, const ArgRules& rules) {
  ArgCheck check("GatedUp");
  CheckWeight(check, args.weight);
  if (!check.ok()) return check.status();
  const int64_t num_rows = Dim(args.out, 0);
  const int64_t n = args.weight->n();
  check.Require(args.weight->use() == WeightUse::kGateUp, "weight must be packed as gate and up");
  check.Tensor("x", args.x, rules.activation, {kAnySize, args.weight->k()}, Layout::kStrided);
  check.Output("out", args.out, FloatType(args.out, rules), {num_rows, n / 2});
  if (rules.gated_workspace) check.Output("workspace", args.workspace, kF32, {num_rows, n});
  if (args.cu_rows.present()) {
    CheckGroups(check, args.x, args.cu_rows, args.row_idx, *args.weight, num_rows, rules);
    return check.status();
  }
  if (!check.ok()) return check.status();
  check.InRange("weight groups", args.weight->num_groups(), 1, 1);
  check.InRange("x rows", args.x.dim(0), num_rows, num_rows);
  check.Require(!args.row_idx.present(), "row_idx needs cu_rows");
  return check.status();
}

absl::Status Validate(const MlaStoreKvArgs& args, const ArgRules& rules) {
  ArgCheck check("MlaStoreKv");
  const int64_t num_tokens = Dim(args.kv, 0);
  const int64_t width = Dim(args.kv, 1);
  const int64_t r = Dim(args.norm_weight, 0);
  check.Tensor("kv", args.kv, FloatType(args.kv, rules), {kAnySize, kAnySize}, Layout::kStrided);
  check.Tensor("norm_weight", args.norm_weight, kF32, {kAnySize});
  if (check.ok()) check.InRange("norm_weight size", r, 1, width);
  CheckEps(check, args.eps);
  CheckRotation(check, args.positions, args.cos_sin, num_tokens, width - r, rules);
  check.Tensor("slot_mapping", args.slot_mapping, DType::kI64, {num_tokens});
  CheckCache(check, args.cache, r, width, rules);
  if (!check.ok() || !rules.read_indices) return check.status();
  const int64_t num_slots = args.cache.dim(0) * args.cache.dim(1);
  for (int64_t t = 0; t < num_tokens; ++t) {
    check.IndexInRange("slot_mapping", t, args.slot_mapping.ptr<int64_t>()[t], 0, num_slots - 1);
  }
  return check.status();
}

absl::Status Validate(const MlaPrepareArgs& args, const ArgRules& rules) {
  RETURN_IF_ERROR(Validate(args.store, rules));
  ArgCheck check("MlaPrepare");
  CheckWeight(check, args.uk);
  if (!check.ok()) return check.status();
  const int64_t num_tokens = Dim(args.store.kv, 0);
  const int64_t num_heads = args.uk->num_groups();
  const int64_t p = Dim(args.store.cos_sin, 1);
  const int64_t r = Dim(args.store.norm_weight, 0);
  check.InRange("uk rows", args.uk->n(), r, r);
  check.Tensor("q", args.q, rules.activation, {num_tokens, num_heads, args.uk->k() + p},
               Layout::kStrided);
  check.Output("out", args.out, FloatType(args.out, rules), {num_tokens, num_heads, r + p});
  return check.status();
}

absl::Status Validate(const MlaAttentionArgs& args, const ArgRules& rules) {
  ArgCheck check("MlaAttention");
  const int64_t num_seqs = Dim(args.context_lens, 0);
  const int64_t num_tokens = Dim(args.q, 0);
  const int64_t r = Dim(args.out, 2);
  check.Tensor("q", args.q, FloatType(args.q, rules), {kAnySize, kAnySize, kAnySize},
               Layout::kStrided);
  check.Tensor("block_tables", args.block_tables, kI32, {num_seqs, kAnySize}, Layout::kStrided);
  check.Tensor("cu_seqlens_q", args.cu_seqlens_q, kI32, {num_seqs + 1});
  check.Tensor("context_lens", args.context_lens, kI32, {kAnySize});
  check.Output("out", args.out, FloatType(args.out, rules), {num_tokens, Dim(args.q, 1), kAnySize});
  if (check.ok()) check.InRange("out width", r, 1, args.q.dim(2));
  CheckCache(check, args.cache, r, Dim(args.q, 2), rules);
  if (check.ok()) check.InRange("block_size", args.cache.dim(1), 1, INT32_MAX);
  CheckPrefixSums(check, "cu_seqlens_q", args.cu_seqlens_q, num_tokens, rules);
  if (!check.ok() || !rules.read_indices) return check.status();

  const int32_t* cu = args.cu_seqlens_q.ptr<int32_t>();
  const int64_t block_size = args.cache.dim(1);
  check.IndexInRange("cu_seqlens_q", num_seqs, cu[num_seqs], num_tokens, num_tokens);
  for (int64_t s = 0; s < num_seqs && check.ok(); ++s) {
    const int32_t context = args.context_lens.ptr<int32_t>()[s];
    const int32_t num_queries = cu[s + 1] - cu[s];
    if (num_queries == 0) continue;
    check.IndexInRange("context_lens", s, context, num_queries,
                       args.block_tables.dim(1) * block_size);
    if (!check.ok()) break;
    for (int64_t b = 0; b * block_size < context; ++b) {
      check.IndexInRange("block_tables", s, args.block_tables.row<int32_t>(s)[b], 0,
                         args.cache.dim(0) - 1);
    }
  }
  return check.status();
}

absl::Status Validate(const MlaValuesArgs& args, const ArgRules& rules) {
  RETURN_IF_ERROR(Validate(args.attention, rules));
  ArgCheck check("MlaValues");
  CheckWeight(check, args.uv);
  if (!check.ok()) return check.status();
  const TensorView& attended = args.attention.out;
  check.InRange("uv groups", args.uv->num_groups(), attended.dim(1), attended.dim(1));
  check.InRange("uv columns", args.uv->k(), attended.dim(2), attended.dim(2));
  check.Tensor("attention.out", attended, rules.activation, {kAnySize, kAnySize, kAnySize},
               Layout::kStrided);
  check.Output("out", args.out, FloatType(args.out, rules),
               {attended.dim(0), attended.dim(1), args.uv->n()});
  return check.status();
}

absl::Status ValidateCopy(const TensorView& to, const TensorView& from) {
  if (to.dtype == from.dtype && to.num_elements() == from.num_elements() && to.contiguous() &&
      from.contiguous()) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("a copy needs two contiguous tensors of one type and size, got ", to.ToString(),
                   " from ", from.ToString()));
}

absl::Status ValidateReadback(const TensorView& device, int64_t max_bytes) {
  const int64_t bytes = device.num_elements() * DTypeBytes(device.dtype);
  if (device.contiguous() && bytes <= max_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("a readback needs a contiguous tensor of at most ",
                                                 max_bytes, " bytes, got ", device.ToString(),
                                                 " of ", bytes));
}

absl::Status CopyTensor(const TensorView& to, const TensorView& from) {
  RETURN_IF_ERROR(ValidateCopy(to, from));
  const int64_t bytes = from.num_elements() * DTypeBytes(from.dtype);
  if (bytes > 0) std::memcpy(to.data, from.data, static_cast<size_t>(bytes));
  return absl::OkStatus();
}

}  // namespace jevons
