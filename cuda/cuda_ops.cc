// From the arguments of an op to the parameters of a kernel.
#include "absl/strings/str_cat.h"
#include "cuda/combine.h"
#include "cuda/cuda_backend_impl.h"
#include "cuda/cuda_error.h"
#include "cuda/cuda_weight.h"
#include "cuda/exchange.h"
#include "cuda/gemm.h"
#include "cuda/mla.h"
#include "cuda/mla_store.h"
#include "cuda/route.h"
#include "cuda/rows.h"
#include "cuda/sample.h"

namespace jevons::cuda {
namespace {

constexpr ArgRules kRules = {.activation = DType::kBF16,
                             .kv_cache = DType::kBF16,
                             .read_indices = false,
                             .gated_workspace = false};

Element ElementOf(DType dtype) {
  if (dtype == DType::kF32) return Element::kF32;
  return dtype == DType::kF16 ? Element::kF16 : Element::kBF16;
}

int32_t Size(const TensorView& view, int i) { return static_cast<int32_t>(view.shape[i]); }

const device::Bf16* Bf16Data(const TensorView& view) { return view.ptr<const device::Bf16>(); }

MlaEntry EntryOf(const TensorView& cache) {
  return cache.dtype == DType::kU8 ? MlaEntry::kFp8 : MlaEntry::kBf16;
}

// An error of a launch names the op and its sizes.
absl::Status Launched(cudaError_t error, const char* op, const TensorView& out) {
  if (error == cudaSuccess) return absl::OkStatus();
  if (error == cudaErrorInvalidValue) {
    return absl::InvalidArgumentError(
        absl::StrCat(op, ": no kernel takes these sizes, output ", out.ToString()));
  }
  return ToStatus(error, absl::StrCat(op, " with output ", out.ToString()));
}

absl::StatusOr<const CudaWeight*> OwnWeight(const char* op, const Weight* weight, WeightUse use) {
  const auto* own = dynamic_cast<const CudaWeight*>(weight);
  if (own == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(op, ": weight must be packed by the CUDA backend"));
  }
  if (own->use() != use) {
    return absl::InvalidArgumentError(absl::StrCat(
        op, ": weight must", use == WeightUse::kGateUp ? "" : " not", " be packed as gate and up"));
  }
  return own;
}

// `before` is scratch for the entries.
template <typename Value>
SampleEntries<Value> Entries(const SampleList& list, float* before) {
  if (!list.ids.present()) return {};
  return {.ids = list.ids.ptr<int32_t>(),
          .values = list.values.ptr<Value>(),
          .cu = list.cu.ptr<int32_t>(),
          .before = before,
          .num_entries = Size(list.ids, 0)};
}

RouteTopKParams RouteParams(const RouteTopKArgs& args) {
  return {
      .logits = args.logits.ptr<float>(),
      .bias = args.bias.ptr<float>(),
      .row_limit = args.num_rows.ptr<int32_t>(),
      .topk_idx = args.topk_idx.ptr<int32_t>(),
      .topk_weights = args.topk_weights.ptr<float>(),
      .scoring = args.scoring == RouterScoring::kSigmoid ? Scoring::kSigmoid : Scoring::kSoftmax,
      .group_rating =
          args.group_score == GroupScore::kTop2Sum ? GroupRating::kTop2Sum : GroupRating::kMax,
      .num_tokens = Size(args.logits, 0),
      .num_experts = Size(args.logits, 1),
      .top_k = Size(args.topk_idx, 1) - args.num_fixed,
      .num_fixed = args.num_fixed,
      .n_group = args.n_group,
      .topk_group = args.topk_group,
      .normalize = args.normalize,
      .scale = args.scale,
      .logits_stride = args.logits.stride[0]};
}

// What all matrix products have in common.
GemmParams Product(const CudaWeight& weight, const TensorView& x, const TensorView& out) {
  GemmParams p;
  p.weight = weight.data();
  p.scales = weight.scales();
  p.layout = weight.layout();
  p.num_groups = weight.num_groups();
  p.x = x.data;
  p.x_row_stride = x.stride[0];
  p.num_x_rows = Size(x, 0);
  p.num_rows = Size(out, 0);
  p.out = out.data;
  p.out_type = ElementOf(out.dtype);
  p.out_row_stride = out.stride[0];
  return p;
}

}  // namespace

absl::Status CudaBackend::Embed(const EmbedArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  const EmbedParams p = {.ids = args.ids.ptr<int32_t>(),
                         .drawn = args.drawn.ptr<int32_t>(),
                         .table = args.table.data,
                         .table_type = ElementOf(args.table.dtype),
                         .out = args.out.ptr<float>(),
                         .num_tokens = Size(args.ids, 0),
                         .num_drawn = args.drawn.present() ? Size(args.drawn, 0) : 0,
                         .vocab = Size(args.table, 0),
                         .hidden = Size(args.table, 1),
                         .table_stride = args.table.stride[0],
                         .out_stride = args.out.stride[0]};
  return Launched(LaunchEmbed(p, facts_, stream_), "Embed", args.out);
}

absl::Status CudaBackend::RmsNorm(const RmsNormArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  const RmsNormParams p = {.x = args.x.data,
                           .delta = args.delta.data,
                           .weight = args.weight.ptr<float>(),
                           .out = args.out.data,
                           .x_type = ElementOf(args.x.dtype),
                           .delta_type = ElementOf(args.delta.dtype),
                           .out_type = ElementOf(args.out.dtype),
                           .eps = args.eps,
                           .num_tokens = Size(args.x, 0),
                           .hidden = Size(args.x, 1),
                           .x_stride = args.x.stride[0],
                           .delta_stride = args.delta.stride[0],
                           .out_stride = args.out.stride[0]};
  return Launched(LaunchRmsNorm(p, facts_, stream_), "RmsNorm", args.out);
}

absl::Status CudaBackend::SiluMul(const SiluMulArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  const SiluMulParams p = {.gate_up = args.gate_up.data,
                           .out = args.out.data,
                           .row_limit = nullptr,
                           .in_type = ElementOf(args.gate_up.dtype),
                           .out_type = ElementOf(args.out.dtype),
                           .num_rows = Size(args.out, 0),
                           .width = Size(args.out, 1),
                           .in_stride = args.gate_up.stride[0],
                           .out_stride = args.out.stride[0]};
  return Launched(LaunchSiluMul(p, facts_, stream_), "SiluMul", args.out);
}

absl::Status CudaBackend::Rope(const RopeArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  const RopeParams p = {.x = args.x.data,
                        .positions = args.positions.ptr<int32_t>(),
                        .cos_sin = args.cos_sin.ptr<float>(),
                        .out = args.out.data,
                        .in_type = ElementOf(args.x.dtype),
                        .out_type = ElementOf(args.out.dtype),
                        .num_tokens = Size(args.x, 0),
                        .num_heads = Size(args.x, 1),
                        .d = Size(args.x, 2),
                        .max_positions = Size(args.cos_sin, 0),
                        .x_stride = args.x.stride[0],
                        .x_head_stride = args.x.stride[1],
                        .out_stride = args.out.stride[0],
                        .out_head_stride = args.out.stride[1]};
  return Launched(LaunchRope(p, facts_, stream_), "Rope", args.out);
}

absl::Status CudaBackend::GatherRows(const GatherRowsArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  const GatherRowsParams p = {.x = args.x.data,
                              .row_idx = args.row_idx.ptr<int32_t>(),
                              .out = args.out.data,
                              .type = ElementOf(args.x.dtype),
                              .num_rows = Size(args.out, 0),
                              .num_source_rows = Size(args.x, 0),
                              .width = Size(args.x, 1),
                              .x_stride = args.x.stride[0],
                              .out_stride = args.out.stride[0]};
  return Launched(LaunchGatherRows(p, facts_, stream_), "GatherRows", args.out);
}

absl::Status CudaBackend::Linear(const LinearArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  ASSIGN_OR_RETURN(const CudaWeight* weight, OwnWeight("Linear", args.weight, WeightUse::kPlain));
  GemmParams p = Product(*weight, args.x, args.out);
  p.bias = args.bias.ptr<float>();
  return Launched(LaunchGemm(p, facts_, stream_), "Linear", args.out);
}

absl::Status CudaBackend::HeadLinear(const HeadLinearArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  ASSIGN_OR_RETURN(const CudaWeight* weight,
                   OwnWeight("HeadLinear", args.weight, WeightUse::kPlain));
  GemmParams p = Product(*weight, args.x, args.out);
  p.x_group_stride = args.x.stride[1];
  p.out_group_stride = args.out.stride[1];
  return Launched(LaunchGemm(p, facts_, stream_), "HeadLinear", args.out);
}

absl::Status CudaBackend::GroupedGemm(const GroupedGemmArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  ASSIGN_OR_RETURN(const CudaWeight* weight,
                   OwnWeight("GroupedGemm", args.weight, WeightUse::kPlain));
  GemmParams p = Product(*weight, args.x, args.out);
  p.cu_rows = args.cu_rows.ptr<int32_t>();
  p.row_idx = args.row_idx.ptr<int32_t>();
  return Launched(LaunchGemm(p, facts_, stream_), "GroupedGemm", args.out);
}

absl::Status CudaBackend::GatedUp(const GatedUpArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  ASSIGN_OR_RETURN(const CudaWeight* weight, OwnWeight("GatedUp", args.weight, WeightUse::kGateUp));
  GemmParams p = Product(*weight, args.x, args.out);
  p.cu_rows = args.cu_rows.ptr<int32_t>();
  p.row_idx = args.row_idx.ptr<int32_t>();
  p.epilogue = GemmEpilogue::kSiluMul;
  return Launched(LaunchGemm(p, facts_, stream_), "GatedUp", args.out);
}

absl::Status CudaBackend::MlaStoreKv(const MlaStoreKvArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  if (args.kv.dtype != DType::kBF16) {
    return absl::InvalidArgumentError(
        absl::StrCat("MlaStoreKv: kv must be bf16, got ", args.kv.ToString()));
  }
  const MlaStoreKvParams p = {.kv = Bf16Data(args.kv),
                              .norm_weight = args.norm_weight.ptr<float>(),
                              .positions = args.positions.ptr<int32_t>(),
                              .cos_sin = args.cos_sin.ptr<float>(),
                              .slots = args.slot_mapping.ptr<int64_t>(),
                              .cache = args.cache.data,
                              .eps = args.eps,
                              .entry = EntryOf(args.cache),
                              .num_tokens = Size(args.kv, 0),
                              .latent = Size(args.norm_weight, 0),
                              .rope = Size(args.kv, 1) - Size(args.norm_weight, 0),
                              .max_positions = Size(args.cos_sin, 0),
                              .num_slots = args.cache.dim(0) * args.cache.dim(1),
                              .kv_stride = args.kv.stride[0]};
  return Launched(LaunchMlaStoreKv(p, facts_, stream_), "MlaStoreKv", args.kv);
}

absl::Status CudaBackend::MlaAttention(const MlaAttentionArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  if (args.q.dtype != DType::kBF16 || args.out.dtype != DType::kBF16) {
    return absl::InvalidArgumentError(absl::StrCat("MlaAttention: q and out must be bf16, got ",
                                                   args.q.ToString(), " and ",
                                                   args.out.ToString()));
  }
  const int32_t latent = Size(args.out, 2);
  const int32_t num_slots = MlaNumSlots(facts_);
  RETURN_IF_ERROR(Reserve(attention_scratch_, MlaWorkspaceBytes(latent, num_slots)));
  const MlaAttentionParams p = {.q = Bf16Data(args.q),
                                .cache = args.cache.data,
                                .block_tables = args.block_tables.ptr<int32_t>(),
                                .cu_seqlens_q = args.cu_seqlens_q.ptr<int32_t>(),
                                .context_lens = args.context_lens.ptr<int32_t>(),
                                .out = args.out.ptr<device::Bf16>(),
                                .workspace = attention_scratch_->data(),
                                .scale = args.scale,
                                .entry = EntryOf(args.cache),
                                .num_tokens = Size(args.q, 0),
                                .num_seqs = Size(args.context_lens, 0),
                                .num_heads = Size(args.q, 1),
                                .latent = latent,
                                .rope = Size(args.q, 2) - latent,
                                .num_blocks = Size(args.cache, 0),
                                .block_size = Size(args.cache, 1),
                                .max_blocks = Size(args.block_tables, 1),
                                .num_slots = num_slots,
                                .q_stride = args.q.stride[0],
                                .q_head_stride = args.q.stride[1],
                                .table_stride = args.block_tables.stride[0],
                                .out_stride = args.out.stride[0],
                                .out_head_stride = args.out.stride[1]};
  return Launched(LaunchMlaAttention(p, facts_, stream_), "MlaAttention", args.out);
}

absl::Status CudaBackend::RouteTopK(const RouteTopKArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  return Launched(LaunchRouteTopK(RouteParams(args), facts_, stream_), "RouteTopK", args.topk_idx);
}

absl::Status CudaBackend::ExpertDispatch(const ExpertDispatchArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  const ExpertDispatchParams p = {.topk_idx = args.topk_idx.ptr<int32_t>(),
                                  .cu_rows = args.plan.cu_rows.ptr<int32_t>(),
                                  .row_token = args.plan.row_token.ptr<int32_t>(),
                                  .token_row = args.plan.token_row.ptr<int32_t>(),
                                  .num_tokens = Size(args.topk_idx, 0),
                                  .top_k = Size(args.topk_idx, 1),
                                  .num_experts = Size(args.plan.cu_rows, 0) - 1};
  return Launched(LaunchExpertDispatch(p, facts_, stream_), "ExpertDispatch", args.topk_idx);
}

absl::Status CudaBackend::RouteAndDispatch(const RouteTopKArgs& route, const DispatchPlan& plan) {
  const int64_t num_tokens = route.logits.rank == 2 ? route.logits.dim(0) : 0;
  if (num_tokens < 1 || num_tokens > kMaxFusedTokens) {
    return Backend::RouteAndDispatch(route, plan);
  }
  RETURN_IF_ERROR(Validate(route, kRules));
  RETURN_IF_ERROR(Validate(ExpertDispatchArgs{route.topk_idx, plan}, kRules));
  const int64_t num_experts = route.logits.dim(1) + route.num_fixed;
  if (plan.cu_rows.dim(0) != num_experts + 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "RouteAndDispatch: plan.cu_rows must have an entry more than there are experts, ",
        num_experts, ", got ", plan.cu_rows.ToString()));
  }
  RETURN_IF_ERROR(Reserve(route_counter_, sizeof(int32_t)));
  const RouteAndDispatchParams p = {.route = RouteParams(route),
                                    .cu_rows = plan.cu_rows.ptr<int32_t>(),
                                    .row_token = plan.row_token.ptr<int32_t>(),
                                    .token_row = plan.token_row.ptr<int32_t>(),
                                    .num_done = route_counter_->ptr<int32_t>()};
  return Launched(LaunchRouteAndDispatch(p, facts_, stream_), "RouteAndDispatch", route.topk_idx);
}

absl::Status CudaBackend::ExpertCombine(const ExpertCombineArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  const ExpertCombineParams p = {.expert_out = args.expert_out.data,
                                 .weights = args.topk_weights.ptr<float>(),
                                 .token_row = args.plan.token_row.ptr<int32_t>(),
                                 .shared = args.shared.data,
                                 .out = args.out.data,
                                 .expert_type = ElementOf(args.expert_out.dtype),
                                 .shared_type = ElementOf(args.shared.dtype),
                                 .out_type = ElementOf(args.out.dtype),
                                 .num_tokens = Size(args.topk_weights, 0),
                                 .num_rows = Size(args.expert_out, 0),
                                 .top_k = Size(args.topk_weights, 1),
                                 .hidden = Size(args.expert_out, 1),
                                 .expert_stride = args.expert_out.stride[0],
                                 .shared_stride = args.shared.stride[0],
                                 .out_stride = args.out.stride[0]};
  return Launched(LaunchExpertCombine(p, facts_, stream_), "ExpertCombine", args.out);
}

absl::Status CudaBackend::RankDispatch(const RankDispatchArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  const RankDispatchParams p = {.topk_idx = args.topk_idx.ptr<int32_t>(),
                                .slot_table = args.slot_table.ptr<int32_t>(),
                                .counts = args.plan.counts.ptr<int32_t>(),
                                .send_token = args.plan.send_token.ptr<int32_t>(),
                                .send_slots = args.plan.send_slots.ptr<int32_t>(),
                                .return_row = args.plan.return_row.ptr<int32_t>(),
                                .choice_counts = args.choice_counts.ptr<uint64_t>(),
                                .num_counted = Size(args.choice_counts, 0),
                                .num_tokens = Size(args.topk_idx, 0),
                                .top_k = Size(args.topk_idx, 1),
                                .num_experts = Size(args.slot_table, 0),
                                .table_width = Size(args.slot_table, 1),
                                .num_ranks = args.num_ranks,
                                .slots_per_rank = args.slots_per_rank,
                                .capacity = args.capacity};
  return Launched(LaunchRankDispatch(p, facts_, stream_), "RankDispatch", args.topk_idx);
}

absl::Status CudaBackend::ReturnRows(const ReturnRowsArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  const int32_t num_rows = Size(args.token_row, 0);
  const bool masked = args.masked && num_rows > 0;
  const ReturnRowsParams p = {.token_row = args.token_row.ptr<int32_t>(),
                              .row_idx = args.row_idx.ptr<int32_t>(),
                              .num_rows = num_rows,
                              .top_k = Size(args.token_row, 1),
                              .masked_width = masked ? Size(args.row_idx, 0) / num_rows : 0};
  return Launched(LaunchReturnRows(p, facts_, stream_), "ReturnRows", args.row_idx);
}

absl::Status CudaBackend::SampleTokens(const SampleTokensArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  float* const scratch = args.list_scratch.ptr<float>();
  const SampleEntries<float> bias = Entries<float>(args.bias, scratch);
  const SampleTokensParams p = {.logits = args.logits.ptr<float>(),
                                .rows = args.rows.ptr<SampleRow>(),
                                .bias = bias,
                                .counts = Entries<int32_t>(args.counts, scratch + bias.num_entries),
                                .masks = args.masks.ptr<uint32_t>(),
                                .token = args.token.ptr<int32_t>(),
                                .logprob = args.logprob.ptr<float>(),
                                .top_ids = args.top_ids.ptr<int32_t>(),
                                .top_logprobs = args.top_logprobs.ptr<float>(),
                                .num_rows = Size(args.token, 0),
                                .num_valid = args.num_valid,
                                .num_masks = args.masks.present() ? Size(args.masks, 0) : 0,
                                .max_top = Size(args.top_ids, 1),
                                .logits_stride = args.logits.stride[0],
                                .mask_words = args.masks.present() ? args.masks.stride[0] : 0};
  return Launched(LaunchSampleTokens(p, facts_, stream_), "SampleTokens", args.logits);
}

}  // namespace jevons::cuda
