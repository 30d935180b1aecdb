// The ops around a model's experts: from their arguments to the parameters of kernels.
#include "absl/strings/str_cat.h"
#include "cuda/cuda_backend_impl.h"
#include "cuda/exchange.h"
#include "cuda/finish.h"
#include "cuda/kernel_params.h"
#include "cuda/linear_route.h"
#include "cuda/packed_rows.h"
#include "cuda/route.h"
#include "cuda/router.h"

namespace jevons::cuda {
namespace {

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

ExpertCombineParams CombineParams(const ExpertCombineArgs& args) {
  return {.expert_out = args.expert_out.data,
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
}

absl::StatusOr<GemmParams> GroupedProduct(const GroupedGemmArgs& args) {
  ASSIGN_OR_RETURN(const CudaWeight* weight,
                   OwnWeight("GroupedGemm", args.weight, WeightUse::kPlain));
  GemmParams p = Product(*weight, args.x, args.out);
  p.cu_rows = args.cu_rows.ptr<int32_t>();
  p.row_idx = args.row_idx.ptr<int32_t>();
  return p;
}

// From one place in memory to another of another allocation, in elements.
int64_t Distance(const void* from, const void* to, size_t element_bytes) {
  return (reinterpret_cast<intptr_t>(to) - reinterpret_cast<intptr_t>(from)) /
         static_cast<intptr_t>(element_bytes);
}

}  // namespace

absl::Status CudaBackend::GroupedGemm(const GroupedGemmArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  ASSIGN_OR_RETURN(GemmParams p, GroupedProduct(args));
  RETURN_IF_ERROR(RoundInput(*args.weight, EndOfRows(p), p));
  return Launched(LaunchGemm(p, LaunchFacts(), stream_), "GroupedGemm", args.out);
}

absl::Status CudaBackend::RouteTopK(const RouteTopKArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  return Launched(LaunchRouteTopK(RouteParams(args), LaunchFacts(), stream_), "RouteTopK",
                  args.topk_idx);
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
  return Launched(LaunchExpertDispatch(p, LaunchFacts(), stream_), "ExpertDispatch", args.topk_idx);
}

absl::Status CudaBackend::RouteAndDispatch(const RouteTopKArgs& route, const DispatchPlan& plan) {
  RETURN_IF_ERROR(Validate(route, kRules));
  RETURN_IF_ERROR(Validate(ExpertDispatchArgs{route.topk_idx, plan}, kRules));
  const int64_t num_experts = route.logits.dim(1) + route.num_fixed;
  if (plan.cu_rows.dim(0) != num_experts + 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "RouteAndDispatch: plan.cu_rows must have an entry more than there are experts, ",
        num_experts, ", got ", plan.cu_rows.ToString()));
  }
  return ChooseAndDispatch(RouteParams(route), route, plan);
}

absl::Status CudaBackend::ChooseAndDispatch(const RouteTopKParams& params,
                                            const RouteTopKArgs& route, const DispatchPlan& plan) {
  if (params.num_tokens < 1 || params.num_tokens > kMaxFusedTokens) {
    RETURN_IF_ERROR(
        Launched(LaunchRouteTopK(params, LaunchFacts(), stream_), "RouteTopK", route.topk_idx));
    return ExpertDispatch({route.topk_idx, plan});
  }
  ASSIGN_OR_RETURN(int32_t* const counters, BlockCounters());
  const RouteAndDispatchParams p = {.route = params,
                                    .cu_rows = plan.cu_rows.ptr<int32_t>(),
                                    .row_token = plan.row_token.ptr<int32_t>(),
                                    .token_row = plan.token_row.ptr<int32_t>(),
                                    .num_done = counters};
  return Launched(LaunchRouteAndDispatch(p, LaunchFacts(), stream_), "RouteAndDispatch",
                  route.topk_idx);
}

absl::StatusOr<RouterParams> CudaBackend::NormAndRouteParams(const NormAndRouteArgs& args,
                                                             const CudaWeight& router) {
  ASSIGN_OR_RETURN(int32_t* const counters, BlockCounters());
  const RouterParams p = {.norm = NormParams(args.norm),
                          .weight = router.data(),
                          .layout = router.layout(),
                          .route = RouteParams(args.route),
                          .cu_rows = args.plan.cu_rows.ptr<int32_t>(),
                          .row_token = args.plan.row_token.ptr<int32_t>(),
                          .token_row = args.plan.token_row.ptr<int32_t>(),
                          .counters = counters};
  RETURN_IF_ERROR(Reserve(router_scratch_, RouterScratchBytes(p.norm.num_tokens, p.norm.out_stride,
                                                              p.route.logits_stride)));
  return p;
}

absl::Status CudaBackend::NormAndRoute(const NormAndRouteArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  ASSIGN_OR_RETURN(const CudaWeight* weight,
                   OwnWeight("NormAndRoute", args.router, WeightUse::kPlain));
  ASSIGN_OR_RETURN(const RouterParams p, NormAndRouteParams(args, *weight));
  if (ChooseRouter(p, facts_).threads == 0) return NormThenRoute(p, *weight, args);
  return Launched(LaunchRouter(p, LaunchFacts(), stream_), "NormAndRoute", args.norm.out);
}

absl::Status CudaBackend::LinearAndRoute(const LinearAndRouteArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  const LinearArgs& linear = args.linear;
  ASSIGN_OR_RETURN(const CudaWeight* weight,
                   OwnWeight("LinearAndRoute", linear.weight, WeightUse::kPlain));
  ASSIGN_OR_RETURN(const CudaWeight* router,
                   OwnWeight("LinearAndRoute", args.route.router, WeightUse::kPlain));
  ASSIGN_OR_RETURN(const RouterParams route, NormAndRouteParams(args.route, *router));
  LinearRouteParams p = {.product = Product(*weight, linear.x, linear.out), .router = route};
  p.product.bias = linear.bias.ptr<float>();
  const bool rounds = weight->input() != ActivationPrecision::kExact;
  if (rounds || ChooseLinearRoute(p, facts_).gemm.num_blocks == 0) {
    RETURN_IF_ERROR(Linear(linear));
    return NormAndRoute(args.route);
  }
  return Launched(LaunchLinearRoute(p, LaunchFacts(), stream_), "LinearAndRoute",
                  args.route.norm.out);
}

absl::Status CudaBackend::NormThenRoute(const RouterParams& p, const CudaWeight& weight,
                                        const NormAndRouteArgs& args) {
  RmsNormParams norm = p.norm;
  norm.low = router_scratch_->ptr<device::Bf16>();
  float* const logits_low = reinterpret_cast<float*>(
      router_scratch_->ptr<char>() + RouterLowBytes(norm.num_tokens, norm.out_stride));
  RETURN_IF_ERROR(
      Launched(LaunchRmsNorm(norm, LaunchFacts(), stream_), "NormAndRoute", args.norm.out));
  // The rounded rows and what that left are two groups with one weight.
  GemmParams product = Product(weight, args.norm.out, args.route.logits);
  product.num_groups = 2;
  product.one_weight = true;
  product.x_group_stride = Distance(norm.out, norm.low, sizeof(device::Bf16));
  product.out_group_stride = Distance(product.out, logits_low, sizeof(float));
  product.atom = GemmAtom::kMmaSync;
  RETURN_IF_ERROR(
      Launched(LaunchGemm(product, LaunchFacts(), stream_), "NormAndRoute", args.route.logits));
  RouteTopKParams route = p.route;
  route.logits_low = logits_low;
  if (args.plan.cu_rows.present()) return ChooseAndDispatch(route, args.route, args.plan);
  return Launched(LaunchRouteTopK(route, LaunchFacts(), stream_), "NormAndRoute",
                  args.route.topk_idx);
}

absl::Status CudaBackend::ExpertCombine(const ExpertCombineArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  return Launched(LaunchExpertCombine(CombineParams(args), LaunchFacts(), stream_), "ExpertCombine",
                  args.out);
}

absl::Status CudaBackend::CombineAndNorm(const CombineAndNormArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  const cudaError_t error = LaunchCombineAndNorm(CombineParams(args.combine), NormParams(args.norm),
                                                 LaunchFacts(), stream_);
  return Launched(error, "CombineAndNorm", args.norm.out);
}

absl::Status CudaBackend::FinishExperts(const GroupedGemmArgs& down,
                                        const CombineAndNormArgs& end) {
  RETURN_IF_ERROR(Validate(down, kRules));
  RETURN_IF_ERROR(Validate(end, kRules));
  ASSIGN_OR_RETURN(GemmParams product, GroupedProduct(down));
  if (end.combine.expert_out.data != down.out.data) {
    return absl::InvalidArgumentError(
        "FinishExperts: combine.expert_out must be what the product gives");
  }
  ASSIGN_OR_RETURN(int32_t* const counters, BlockCounters());
  RETURN_IF_ERROR(RoundInput(*down.weight, EndOfRows(product), product));
  const FinishParams p = {.product = product,
                          .combine = CombineParams(end.combine),
                          .norm = NormParams(end.norm),
                          .meeting = counters};
  if (ChooseFinish(p, facts_).gemm.num_blocks == 0) {
    RETURN_IF_ERROR(
        Launched(LaunchGemm(product, LaunchFacts(), stream_), "FinishExperts", down.out));
    return CombineAndNorm(end);
  }
  return Launched(LaunchFinish(p, LaunchFacts(), stream_), "FinishExperts", end.norm.out);
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
  return Launched(LaunchRankDispatch(p, LaunchFacts(), stream_), "RankDispatch", args.topk_idx);
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
  return Launched(LaunchReturnRows(p, LaunchFacts(), stream_), "ReturnRows", args.row_idx);
}

absl::Status CudaBackend::PackRows(const PackRowsArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  const PackRowsParams p = {.x = args.x.data,
                            .row_idx = args.row_idx.ptr<int32_t>(),
                            .out = args.out.ptr<uint8_t>(),
                            .num_rows = Size(args.out, 0),
                            .num_source_rows = Size(args.x, 0),
                            .width = Size(args.x, 1),
                            .x_stride = args.x.stride[0]};
  return Launched(LaunchPackRows(p, LaunchFacts(), stream_), "PackRows", args.out);
}

absl::Status CudaBackend::UnpackRows(const UnpackRowsArgs& args) {
  RETURN_IF_ERROR(Validate(args, kRules));
  const UnpackRowsParams p = {.x = args.x.ptr<uint8_t>(),
                              .out = args.out.data,
                              .num_rows = Size(args.out, 0),
                              .width = Size(args.out, 1),
                              .out_stride = args.out.stride[0]};
  return Launched(LaunchUnpackRows(p, LaunchFacts(), stream_), "UnpackRows", args.out);
}

}  // namespace jevons::cuda
