#include "model/workspace.h"

#include <algorithm>

#include "model/model_weights.h"

namespace jevons {

namespace {

// What ExpertParallel needs for k choices a token among `groups` slots a rank. Parts of a step have
// places of their own.
void PlanExchange(const ModelRunnerOptions& options, int64_t k, int64_t groups, DType act,
                  int64_t hidden, Workspace& w, std::vector<PlannedTensor>& out) {
  constexpr DType kI32 = DType::kI32;
  const int64_t ranks = options.num_ranks;
  const int64_t parts = options.splits_steps() ? 2 : 1;
  const int64_t t = (options.max_tokens + parts - 1) / parts;
  const int64_t capacity = (options.masked_capacity + parts - 1) / parts;
  const int64_t per_row = std::min(k, groups);
  const int64_t masked = ranks * capacity;
  const int64_t sent = std::max(t * std::min(k, ranks), masked);
  constexpr bool kReceives = true;
  out.push_back({&w.counts, kI32, 2 * ranks, 2, kReceives});
  out.push_back({&w.send_token, kI32, parts * sent, 0});
  out.push_back({&w.send_slots, kI32, parts * sent, k});
  const bool packs = options.exchange_precision == ExchangePrecision::kFp8;
  if (packs) {
    out.push_back({&w.send_x, DType::kU8, parts * sent, PackedRowBytes(hidden)});
    out.push_back(
        {&w.recv_packed, DType::kU8, parts * ranks * t, PackedRowBytes(hidden), kReceives});
  } else {
    out.push_back({&w.send_x, act, parts * sent, hidden});
  }
  out.push_back({&w.return_row, kI32, parts * t, k});
  out.push_back({&w.recv_slots, kI32, parts * ranks * t, k, kReceives});
  out.push_back({&w.recv_x, act, parts * ranks * t, hidden, !packs});
  out.push_back({&w.result_row, kI32, parts * ranks * t * k, 0});
  out.push_back({&w.results, act, parts * ranks * t * per_row, hidden});
  out.push_back({&w.returned, act, parts * std::max(t * k, masked * per_row), hidden, kReceives});
}

}  // namespace

std::string_view ExchangePrecisionName(ExchangePrecision precision) {
  return precision == ExchangePrecision::kFp8 ? "fp8" : "exact";
}

std::string_view ExchangeOverlapName(ExchangeOverlap overlap) {
  switch (overlap) {
    case ExchangeOverlap::kOff:
      return "off";
    case ExchangeOverlap::kShared:
      return "shared";
    case ExchangeOverlap::kBatches:
      return "batches";
  }
  return "unknown";
}

std::vector<PlannedTensor> PlanWorkspace(const ModelConfig& config,
                                         const ModelRunnerOptions& options,
                                         const BackendTraits& traits, Workspace& w) {
  const ModelConfig& c = config;
  const DType act = traits.activation;
  constexpr DType kF32 = DType::kF32;
  constexpr DType kI32 = DType::kI32;
  const int64_t t = options.max_tokens;
  const int64_t heads = c.num_attention_heads;
  const int64_t q_dim = heads * c.qk_head_dim();
  const int64_t qkv_dim = (c.q_lora_rank ? c.q_lora_rank : q_dim) + c.kv_entry_dim();
  const int64_t shared_dim = int64_t{c.n_shared_experts} * c.moe_intermediate_size;
  const int64_t mlp_dim = std::max<int64_t>(c.intermediate_size, shared_dim);
  std::vector<PlannedTensor> out = {{&w.x, kF32, t, c.hidden_size},
                                    {&w.norm, act, t, c.hidden_size},
                                    {&w.delta, kF32, t, c.hidden_size},
                                    {&w.qkv, act, t, qkv_dim},
                                    {&w.q_latent, act, t, heads * c.kv_entry_dim()},
                                    {&w.attended, act, t, heads * c.kv_lora_rank},
                                    {&w.values, act, t, heads * c.v_head_dim},
                                    {&w.act, act, t, mlp_dim}};
  if (c.q_lora_rank) {
    out.push_back({&w.q_a, act, t, c.q_lora_rank});
    out.push_back({&w.q, act, t, q_dim});
  }
  if (!traits.fuses_gated_up) out.push_back({&w.gate_up, kF32, t, 2 * mlp_dim});
  if (c.n_routed_experts > 0) {
    const int32_t grouped = NumGroupedSharedExperts(c, traits);
    const int64_t k = c.num_experts_per_tok + grouped;
    const int64_t m = c.moe_intermediate_size;
    if (grouped == 0) out.push_back({&w.shared, kF32, t, c.hidden_size});
    out.push_back({&w.router_logits, kF32, t, c.n_routed_experts});
    out.push_back({&w.topk_idx, kI32, t, k});
    out.push_back({&w.topk_weights, kF32, t, k});
    // Tokens that this rank's experts may meet, and their choices.
    const bool shares = options.slots_per_rank > 0;
    const int64_t tokens = shares ? options.num_ranks * t : t;
    const int32_t groups = (shares ? options.slots_per_rank : c.n_routed_experts) + grouped;
    const int64_t choices = tokens * std::min<int64_t>(k, groups);
    out.push_back({&w.cu_rows, kI32, groups + 1, 0});
    out.push_back({&w.row_token, kI32, tokens * k, 0});
    out.push_back({&w.token_row, kI32, tokens, k});
    if (!traits.fuses_gated_up) out.push_back({&w.expert_gate_up, kF32, choices, 2 * m});
    out.push_back({&w.expert_act, act, choices, m});
    out.push_back({&w.expert_out, act, choices, c.hidden_size});
    if (shares) PlanExchange(options, k, groups, act, c.hidden_size, w, out);
  }
  const int64_t rows = options.max_logits_rows;
  out.push_back({&w.row_idx, kI32, rows, 0});
  out.push_back({&w.hidden, act, rows, c.hidden_size});
  out.push_back({&w.logits, kF32, rows, c.vocab_size});
  const int64_t seqs = options.max_num_seqs;
  const int64_t of_seqs = 2 * seqs + 1 + seqs * options.max_sequence_blocks();
  const int64_t parts = options.splits_steps() ? 2 : 1;
  out.push_back({&w.step_arrays, DType::kU8, 16 * t + parts * 4 * of_seqs + 4 * (parts - 1), 0});
  return out;
}

int64_t WorkspaceBytes(const ModelConfig& config, const ModelRunnerOptions& options,
                       const BackendTraits& traits) {
  Workspace workspace;
  int64_t bytes = 0;
  for (const PlannedTensor& t : PlanWorkspace(config, options, traits, workspace)) {
    bytes += t.bytes();
  }
  return bytes;
}

}  // namespace jevons
