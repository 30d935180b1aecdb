// The layers of a ModelRunner.
#include "model/model_runner.h"

namespace jevons {
namespace {

// HFr builds the latent norms with the default epsilon, not with rms_norm_eps.
constexpr float kLatentNormEps = 1e-6f;

RouteTopKArgs RouterRule(const ModelConfig& config) {
  RouteTopKArgs args;
  args.scoring =
      config.scoring_func == "sigmoid" ? RouterScoring::kSigmoid : RouterScoring::kSoftmax;
  args.n_group = config.n_group;
  args.topk_group = config.topk_group;
  args.group_score = config.topk_method == "noaux_tc"               ? GroupScore::kTop2Sum
                     : config.topk_method == "group_limited_greedy" ? GroupScore::kMax
                                                                    : GroupScore::kNone;
  if (config.n_group == 1) args.group_score = GroupScore::kNone;
  args.normalize = config.norm_topk_prob && config.num_experts_per_tok > 1;
  args.scale = static_cast<float>(config.routed_scaling_factor);
  // V2 normalises or scales, V3 does both.
  if (config.model_type == "deepseek_v2" && args.normalize) args.scale = 1;
  return args;
}

}  // namespace

absl::Status ModelRunner::Layers(std::span<const Step> parts) {
  for (const Step& part : parts) {
    RETURN_IF_ERROR(backend_->Embed({.ids = part.token_ids,
                                     .table = weights_.embedding.view,
                                     .out = Rows(work_.x, part),
                                     .drawn = samples() ? sampler_->drawn() : TensorView()}));
    RETURN_IF_ERROR(backend_->RmsNorm(Normed(part, InputNorm(0), {})));
  }
  const int32_t num_layers = config_.num_hidden_layers;
  for (int32_t i = 0; i < num_layers; ++i) {
    for (const Step& part : parts) RETURN_IF_ERROR(BeginLayer(i, part));
    if (!SharesExperts(i)) continue;
    const MlpWeights& experts = weights_.layers[i].moe.experts;
    for (const Step& part : parts) RETURN_IF_ERROR(experts_->Compute(part.part_idx, experts));
  }
  for (const Step& part : parts) RETURN_IF_ERROR(EndLayer(num_layers - 1, part));
  return absl::OkStatus();
}

absl::Status ModelRunner::BeginLayer(int32_t layer_idx, const Step& step) {
  const LayerWeights& layer = weights_.layers[layer_idx];
  const TensorView delta = Rows(work_.delta, step);
  // What other ranks give for the layer before is waited for here, after the other part's experts.
  RETURN_IF_ERROR(EndLayer(layer_idx - 1, step));
  RETURN_IF_ERROR(Attention(layer_idx, step));
  const LinearArgs output = {.x = work_.values.view.Slice(0, step.num_tokens),
                             .weight = layer.attention.o.get(),
                             .bias = layer.attention.o_bias.view,
                             .out = delta};
  const RmsNormArgs before = Normed(step, layer.post_attention_norm, delta);
  if (config_.IsMoeLayer(layer_idx)) return Moe(layer_idx, step, output, before);
  RETURN_IF_ERROR(backend_->Linear(output));
  RETURN_IF_ERROR(backend_->RmsNorm(before));
  RETURN_IF_ERROR(DenseMlp(layer.dense, step, delta));
  return backend_->RmsNorm(NextNorm(layer_idx, step));
}

absl::Status ModelRunner::EndLayer(int32_t layer_idx, const Step& step) {
  if (layer_idx < 0 || !SharesExperts(layer_idx)) return absl::OkStatus();
  RoutedTokens tokens = Routed(weights_.layers[layer_idx].moe, step);
  tokens.norm = NextNorm(layer_idx, step);
  return experts_->Combine(step.part_idx, tokens);
}

// Each block leaves its output in `pending`; the norm adds it to the residual on its way.
RmsNormArgs ModelRunner::Normed(const Step& step, const DeviceTensor& weight,
                                const TensorView& pending) {
  return {.x = Rows(work_.x, step),
          .delta = pending,
          .weight = weight.view,
          .eps = static_cast<float>(config_.rms_norm_eps),
          .out = Rows(work_.norm, step)};
}

absl::Status ModelRunner::Attention(int32_t layer_idx, const Step& step) {
  const AttentionWeights& w = weights_.layers[layer_idx].attention;
  const int64_t t = step.num_tokens;
  const int64_t nope = config_.qk_nope_head_dim;
  const int64_t rope = config_.qk_rope_head_dim;
  const int64_t r = config_.kv_lora_rank;
  const TensorView norm = Rows(work_.norm, step);
  const TensorView qkv = work_.qkv.view.Slice(0, t);
  const int64_t q_cols = qkv.dim(1) - r - rope;
  const LinearArgs qkv_a = {
      .x = norm, .weight = w.qkv_a.get(), .bias = w.qkv_a_bias.view, .out = qkv};
  TensorView q = qkv.Columns(0, q_cols);
  if (config_.q_lora_rank) {
    const TensorView q_a = work_.q_a.view.Slice(0, t);
    RETURN_IF_ERROR(backend_->LinearAndNorm(
        {.linear = qkv_a,
         .norm = {
             .x = q, .delta = {}, .weight = w.q_a_norm.view, .eps = kLatentNormEps, .out = q_a}}));
    q = work_.q.view.Slice(0, t);
    RETURN_IF_ERROR(backend_->Linear({.x = q_a, .weight = w.q_b.get(), .bias = {}, .out = q}));
  } else {
    RETURN_IF_ERROR(backend_->Linear(qkv_a));
  }
  const TensorView q_latent = work_.q_latent.view.Slice(0, t).SplitLast(r + rope);
  RETURN_IF_ERROR(backend_->MlaPrepare({.store = {.kv = qkv.Columns(q_cols, r + rope),
                                                  .norm_weight = w.kv_a_norm.view,
                                                  .eps = kLatentNormEps,
                                                  .positions = step.positions,
                                                  .cos_sin = cos_sin_.view,
                                                  .slot_mapping = step.slot_mapping,
                                                  .cache = cache_.layer(layer_idx)},
                                        .q = q.SplitLast(nope + rope),
                                        .uk = w.uk.get(),
                                        .out = q_latent}));
  const TensorView attended = work_.attended.view.Slice(0, t).SplitLast(r);
  const TensorView values = work_.values.view.Slice(0, t);
  return backend_->MlaValues({.attention = {.q = q_latent,
                                            .cache = cache_.layer(layer_idx),
                                            .block_tables = step.block_tables,
                                            .cu_seqlens_q = step.cu_seqlens_q,
                                            .context_lens = step.context_lens,
                                            .scale = softmax_scale_,
                                            .out = attended},
                              .uv = w.uv.get(),
                              .out = values.SplitLast(config_.v_head_dim)});
}

absl::Status ModelRunner::DenseMlp(const MlpWeights& mlp, const Step& step, const TensorView& out) {
  const int64_t num_tokens = step.num_tokens;
  const TensorView act = work_.act.view.Slice(0, num_tokens).Columns(0, mlp.down->k());
  GatedUpArgs up = {.x = Rows(work_.norm, step),
                    .cu_rows = {},
                    .row_idx = {},
                    .weight = mlp.gate_up.get(),
                    .workspace = {},
                    .out = act};
  if (work_.gate_up.view.present()) {
    up.workspace = work_.gate_up.view.Slice(0, num_tokens).Columns(0, mlp.gate_up->n());
  }
  RETURN_IF_ERROR(backend_->GatedUp(up));
  return backend_->Linear({.x = act, .weight = mlp.down.get(), .bias = {}, .out = out});
}

absl::Status ModelRunner::Moe(int32_t layer_idx, const Step& step, const LinearArgs& output,
                              const RmsNormArgs& before) {
  const MoeWeights& moe = weights_.layers[layer_idx].moe;
  const RoutedTokens tokens = Routed(moe, step);
  RouteTopKArgs route = RouterRule(config_);
  route.logits = work_.router_logits.view.Slice(0, step.num_tokens);
  route.bias = moe.router_bias.view;
  route.num_fixed = NumGroupedSharedExperts(config_, backend_->traits());
  // Rows of padding must not call experts.
  route.num_rows = step.cu_seqlens_q.Slice(step.cu_seqlens_q.dim(0) - 1, 1);
  route.topk_idx = tokens.topk_idx;
  route.topk_weights = tokens.topk_weights;
  DispatchPlan plan;
  if (experts_ == nullptr) {
    plan = {.cu_rows = work_.cu_rows.view,
            .row_token = work_.row_token.view.Slice(0, route.topk_idx.num_elements()),
            .token_row = work_.token_row.view.Slice(0, step.num_tokens)};
  }
  RETURN_IF_ERROR(backend_->LinearAndRoute(
      {.linear = output,
       .route = {.norm = before, .router = moe.router.get(), .route = route, .plan = plan}}));
  if (experts_ != nullptr) RETURN_IF_ERROR(experts_->Send(step.part_idx, layer_idx, tokens));
  // While tokens are on their way.
  if (tokens.shared.present()) RETURN_IF_ERROR(DenseMlp(moe.shared, step, tokens.shared));
  if (experts_ != nullptr) return absl::OkStatus();
  return LocalExperts(moe, plan, tokens, NextNorm(layer_idx, step));
}

RoutedTokens ModelRunner::Routed(const MoeWeights& moe, const Step& step) {
  return {.x = Rows(work_.norm, step),
          .topk_idx = Rows(work_.topk_idx, step),
          .topk_weights = Rows(work_.topk_weights, step),
          .shared = moe.shared.gate_up != nullptr ? Rows(work_.shared, step) : TensorView(),
          .out = Rows(work_.delta, step),
          .norm = {}};
}

absl::Status ModelRunner::LocalExperts(const MoeWeights& moe, const DispatchPlan& plan,
                                       const RoutedTokens& tokens, const RmsNormArgs& after) {
  const int64_t num_rows = tokens.topk_weights.num_elements();
  const TensorView act = work_.expert_act.view.Slice(0, num_rows);
  const TensorView expert_out = work_.expert_out.view.Slice(0, num_rows);
  GatedUpArgs up = {.x = tokens.x,
                    .cu_rows = plan.cu_rows,
                    .row_idx = plan.row_token,
                    .weight = moe.experts.gate_up.get(),
                    .workspace = {},
                    .out = act};
  if (work_.expert_gate_up.view.present()) {
    up.workspace = work_.expert_gate_up.view.Slice(0, num_rows);
  }
  RETURN_IF_ERROR(backend_->GatedUp(up));
  return backend_->FinishExperts({.x = act,
                                  .cu_rows = plan.cu_rows,
                                  .row_idx = {},
                                  .weight = moe.experts.down.get(),
                                  .out = expert_out},
                                 {.combine = {.expert_out = expert_out,
                                              .plan = plan,
                                              .topk_weights = tokens.topk_weights,
                                              .shared = tokens.shared,
                                              .out = tokens.out},
                                  .norm = after});
}

}  // namespace jevons
