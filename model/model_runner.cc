#include "model/model_runner.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace jevons {
namespace {

// Host arrays as views; ops only read them.
template <typename T>
TensorView HostView(std::span<const T> values, DType dtype) {
  return TensorView(const_cast<T*>(values.data()), dtype, {static_cast<int64_t>(values.size())});
}

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

std::vector<KvLayerSpec> KvLayers(const ModelConfig& config) {
  return std::vector<KvLayerSpec>(config.num_hidden_layers,
                                  {.entry_dim = config.kv_entry_dim(), .dtype = DType::kF32});
}

absl::StatusOr<std::unique_ptr<ModelRunner>> ModelRunner::Create(
    const ModelConfig& config, ModelWeights weights, Backend* backend,
    const ModelRunnerOptions& options) {
  auto runner =
      std::unique_ptr<ModelRunner>(new ModelRunner(config, std::move(weights), backend, options));
  runner->softmax_scale_ = static_cast<float>(SoftmaxScale(config));
  std::vector<float> table = RopeTable(config, options.max_positions);
  ASSIGN_OR_RETURN(runner->cos_sin_,
                   backend->Upload(TensorView(table.data(), DType::kF32,
                                              {options.max_positions, config.qk_rope_head_dim})));
  ASSIGN_OR_RETURN(runner->cache_, KvCache::Create(*backend, KvLayers(config), options.num_blocks,
                                                   options.block_tokens));
  RETURN_IF_ERROR(runner->Allocate());
  return runner;
}

absl::StatusOr<DeviceTensor> ModelRunner::NewTensor(DType dtype,
                                                    std::initializer_list<int64_t> shape) {
  DeviceTensor tensor;
  tensor.view = TensorView(nullptr, dtype, shape);
  const int64_t bytes = tensor.view.num_elements() * DTypeBytes(dtype);
  ASSIGN_OR_RETURN(tensor.buffer, backend_->Allocate(bytes));
  tensor.view.data = tensor.buffer->data();
  return tensor;
}

absl::Status ModelRunner::Allocate() {
  const ModelConfig& c = config_;
  const int64_t t = options_.max_tokens;
  const int64_t heads = c.num_attention_heads;
  const int64_t q_dim = heads * c.qk_head_dim();
  const int64_t qkv_dim = (c.q_lora_rank ? c.q_lora_rank : q_dim) + c.kv_entry_dim();
  const int64_t shared_dim = int64_t{c.n_shared_experts} * c.moe_intermediate_size;
  const int64_t mlp_dim = std::max<int64_t>(c.intermediate_size, shared_dim);
  const auto add = [&](DeviceTensor& out, DType dtype,
                       std::initializer_list<int64_t> shape) -> absl::Status {
    ASSIGN_OR_RETURN(out, NewTensor(dtype, shape));
    return absl::OkStatus();
  };
  constexpr DType kF32 = DType::kF32;
  constexpr DType kI32 = DType::kI32;
  RETURN_IF_ERROR(add(work_.x, kF32, {t, c.hidden_size}));
  RETURN_IF_ERROR(add(work_.norm, kF32, {t, c.hidden_size}));
  RETURN_IF_ERROR(add(work_.delta, kF32, {t, c.hidden_size}));
  RETURN_IF_ERROR(add(work_.qkv, kF32, {t, qkv_dim}));
  if (c.q_lora_rank) {
    RETURN_IF_ERROR(add(work_.q_a, kF32, {t, c.q_lora_rank}));
    RETURN_IF_ERROR(add(work_.q, kF32, {t, q_dim}));
  }
  RETURN_IF_ERROR(add(work_.q_latent, kF32, {t, heads, c.kv_entry_dim()}));
  RETURN_IF_ERROR(add(work_.attended, kF32, {t, heads, c.kv_lora_rank}));
  RETURN_IF_ERROR(add(work_.values, kF32, {t, heads * c.v_head_dim}));
  RETURN_IF_ERROR(add(work_.gate_up, kF32, {t, 2 * mlp_dim}));
  RETURN_IF_ERROR(add(work_.act, kF32, {t, mlp_dim}));
  if (c.n_routed_experts > 0) {
    const int64_t k = c.num_experts_per_tok;
    const int64_t m = c.moe_intermediate_size;
    RETURN_IF_ERROR(add(work_.shared, kF32, {t, c.hidden_size}));
    RETURN_IF_ERROR(add(work_.router_logits, kF32, {t, c.n_routed_experts}));
    RETURN_IF_ERROR(add(work_.topk_idx, kI32, {t, k}));
    RETURN_IF_ERROR(add(work_.topk_weights, kF32, {t, k}));
    RETURN_IF_ERROR(add(work_.cu_rows, kI32, {c.n_routed_experts + 1}));
    RETURN_IF_ERROR(add(work_.row_token, kI32, {t * k}));
    RETURN_IF_ERROR(add(work_.token_row, kI32, {t, k}));
    RETURN_IF_ERROR(add(work_.expert_gate_up, kF32, {t * k, 2 * m}));
    RETURN_IF_ERROR(add(work_.expert_act, kF32, {t * k, m}));
    RETURN_IF_ERROR(add(work_.expert_out, kF32, {t * k, c.hidden_size}));
  }
  RETURN_IF_ERROR(add(work_.hidden, kF32, {options_.max_logits_rows, c.hidden_size}));
  return add(work_.logits, kF32, {options_.max_logits_rows, c.vocab_size});
}

absl::Status ModelRunner::Run(const StepInput& input) {
  const int64_t t = static_cast<int64_t>(input.token_ids.size());
  if (t > options_.max_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("a step has at most ", options_.max_tokens, " tokens, given ", t));
  }
  last_num_tokens_ = t;
  if (t == 0) return absl::OkStatus();
  const int64_t num_seqs = static_cast<int64_t>(input.context_lens.size());
  Step step;
  step.num_tokens = t;
  step.positions = HostView(input.positions, DType::kI32);
  step.slot_mapping = HostView(input.slot_mapping, DType::kI64);
  step.cu_seqlens_q = HostView(input.cu_seqlens_q, DType::kI32);
  step.context_lens = HostView(input.context_lens, DType::kI32);
  step.block_tables = TensorView(const_cast<int32_t*>(input.block_tables.data()), DType::kI32,
                                 {num_seqs, input.max_blocks});
  const TensorView x = work_.x.view.Slice(0, t);
  const TensorView norm = work_.norm.view.Slice(0, t);
  const TensorView delta = work_.delta.view.Slice(0, t);
  const float eps = static_cast<float>(config_.rms_norm_eps);
  RETURN_IF_ERROR(backend_->Embed(
      {.ids = HostView(input.token_ids, DType::kI32), .table = weights_.embedding.view, .out = x}));
  // Each block leaves its output in `delta`; the next norm adds it to the residual on its way.
  TensorView pending;
  for (int32_t i = 0; i < config_.num_hidden_layers; ++i) {
    const LayerWeights& layer = weights_.layers[i];
    RETURN_IF_ERROR(backend_->RmsNorm(
        {.x = x, .delta = pending, .weight = layer.input_norm.view, .eps = eps, .out = norm}));
    RETURN_IF_ERROR(Attention(i, step));
    pending = delta;
    RETURN_IF_ERROR(backend_->RmsNorm({.x = x,
                                       .delta = pending,
                                       .weight = layer.post_attention_norm.view,
                                       .eps = eps,
                                       .out = norm}));
    RETURN_IF_ERROR(config_.IsMoeLayer(i) ? Moe(layer.moe, t) : DenseMlp(layer.dense, t, delta));
  }
  return backend_->RmsNorm(
      {.x = x, .delta = pending, .weight = weights_.final_norm.view, .eps = eps, .out = norm});
}

absl::Status ModelRunner::Attention(int32_t layer_idx, const Step& step) {
  const AttentionWeights& w = weights_.layers[layer_idx].attention;
  const int64_t t = step.num_tokens;
  const int64_t nope = config_.qk_nope_head_dim;
  const int64_t rope = config_.qk_rope_head_dim;
  const int64_t r = config_.kv_lora_rank;
  const TensorView norm = work_.norm.view.Slice(0, t);
  const TensorView qkv = work_.qkv.view.Slice(0, t);
  const int64_t q_cols = qkv.dim(1) - r - rope;
  RETURN_IF_ERROR(backend_->Linear(
      {.x = norm, .weight = w.qkv_a.get(), .bias = w.qkv_a_bias.view, .out = qkv}));
  TensorView q = qkv.Columns(0, q_cols);
  if (config_.q_lora_rank) {
    const TensorView q_a = work_.q_a.view.Slice(0, t);
    RETURN_IF_ERROR(backend_->RmsNorm(
        {.x = q, .delta = {}, .weight = w.q_a_norm.view, .eps = kLatentNormEps, .out = q_a}));
    q = work_.q.view.Slice(0, t);
    RETURN_IF_ERROR(backend_->Linear({.x = q_a, .weight = w.q_b.get(), .bias = {}, .out = q}));
  }
  RETURN_IF_ERROR(backend_->MlaStoreKv({.kv = qkv.Columns(q_cols, r + rope),
                                        .norm_weight = w.kv_a_norm.view,
                                        .eps = kLatentNormEps,
                                        .positions = step.positions,
                                        .cos_sin = cos_sin_.view,
                                        .slot_mapping = step.slot_mapping,
                                        .cache = cache_.layer(layer_idx)}));
  const TensorView q_heads = q.SplitLast(nope + rope);
  const TensorView q_latent = work_.q_latent.view.Slice(0, t);
  RETURN_IF_ERROR(backend_->HeadLinear(
      {.x = q_heads.Columns(0, nope), .weight = w.uk.get(), .out = q_latent.Columns(0, r)}));
  RETURN_IF_ERROR(backend_->Rope({.x = q_heads.Columns(nope, rope),
                                  .positions = step.positions,
                                  .cos_sin = cos_sin_.view,
                                  .out = q_latent.Columns(r, rope)}));
  const TensorView attended = work_.attended.view.Slice(0, t);
  RETURN_IF_ERROR(backend_->MlaAttention({.q = q_latent,
                                          .cache = cache_.layer(layer_idx),
                                          .block_tables = step.block_tables,
                                          .cu_seqlens_q = step.cu_seqlens_q,
                                          .context_lens = step.context_lens,
                                          .scale = softmax_scale_,
                                          .out = attended}));
  const TensorView values = work_.values.view.Slice(0, t);
  RETURN_IF_ERROR(backend_->HeadLinear(
      {.x = attended, .weight = w.uv.get(), .out = values.SplitLast(config_.v_head_dim)}));
  return backend_->Linear({.x = values,
                           .weight = w.o.get(),
                           .bias = w.o_bias.view,
                           .out = work_.delta.view.Slice(0, t)});
}

absl::Status ModelRunner::DenseMlp(const MlpWeights& mlp, int64_t num_tokens,
                                   const TensorView& out) {
  const TensorView gate_up = work_.gate_up.view.Slice(0, num_tokens).Columns(0, mlp.gate_up->n());
  const TensorView act = work_.act.view.Slice(0, num_tokens).Columns(0, mlp.down->k());
  RETURN_IF_ERROR(backend_->Linear({.x = work_.norm.view.Slice(0, num_tokens),
                                    .weight = mlp.gate_up.get(),
                                    .bias = {},
                                    .out = gate_up}));
  RETURN_IF_ERROR(backend_->SiluMul({.gate_up = gate_up, .out = act}));
  return backend_->Linear({.x = act, .weight = mlp.down.get(), .bias = {}, .out = out});
}

absl::Status ModelRunner::Moe(const MoeWeights& moe, int64_t num_tokens) {
  const TensorView norm = work_.norm.view.Slice(0, num_tokens);
  RouteTopKArgs route = RouterRule(config_);
  route.logits = work_.router_logits.view.Slice(0, num_tokens);
  route.bias = moe.router_bias.view;
  route.topk_idx = work_.topk_idx.view.Slice(0, num_tokens);
  route.topk_weights = work_.topk_weights.view.Slice(0, num_tokens);
  RETURN_IF_ERROR(
      backend_->Linear({.x = norm, .weight = moe.router.get(), .bias = {}, .out = route.logits}));
  RETURN_IF_ERROR(backend_->RouteTopK(route));

  const int64_t num_rows = num_tokens * config_.num_experts_per_tok;
  const DispatchPlan plan = {.cu_rows = work_.cu_rows.view,
                             .row_token = work_.row_token.view.Slice(0, num_rows),
                             .token_row = work_.token_row.view.Slice(0, num_tokens)};
  RETURN_IF_ERROR(backend_->ExpertDispatch({.topk_idx = route.topk_idx, .plan = plan}));
  const TensorView gate_up = work_.expert_gate_up.view.Slice(0, num_rows);
  const TensorView act = work_.expert_act.view.Slice(0, num_rows);
  const TensorView expert_out = work_.expert_out.view.Slice(0, num_rows);
  RETURN_IF_ERROR(backend_->GroupedGemm({.x = norm,
                                         .cu_rows = plan.cu_rows,
                                         .row_idx = plan.row_token,
                                         .weight = moe.experts.gate_up.get(),
                                         .out = gate_up}));
  RETURN_IF_ERROR(backend_->SiluMul({.gate_up = gate_up, .out = act}));
  RETURN_IF_ERROR(backend_->GroupedGemm({.x = act,
                                         .cu_rows = plan.cu_rows,
                                         .row_idx = {},
                                         .weight = moe.experts.down.get(),
                                         .out = expert_out}));
  TensorView shared;
  if (moe.shared.gate_up != nullptr) {
    shared = work_.shared.view.Slice(0, num_tokens);
    RETURN_IF_ERROR(DenseMlp(moe.shared, num_tokens, shared));
  }
  return backend_->ExpertCombine({.expert_out = expert_out,
                                  .plan = plan,
                                  .topk_weights = route.topk_weights,
                                  .shared = shared,
                                  .out = work_.delta.view.Slice(0, num_tokens)});
}

absl::StatusOr<TensorView> ModelRunner::Logits(std::span<const int32_t> rows) {
  const int64_t num_rows = static_cast<int64_t>(rows.size());
  if (num_rows > options_.max_logits_rows) {
    return absl::InvalidArgumentError(
        absl::StrCat("at most ", options_.max_logits_rows, " rows of logits, given ", num_rows));
  }
  const TensorView hidden = work_.hidden.view.Slice(0, num_rows);
  const TensorView logits = work_.logits.view.Slice(0, num_rows);
  if (num_rows == 0) return logits;
  RETURN_IF_ERROR(backend_->GatherRows({.x = work_.norm.view.Slice(0, last_num_tokens_),
                                        .row_idx = HostView(rows, DType::kI32),
                                        .out = hidden}));
  RETURN_IF_ERROR(
      backend_->Linear({.x = hidden, .weight = weights_.head.get(), .bias = {}, .out = logits}));
  return logits;
}

}  // namespace jevons
