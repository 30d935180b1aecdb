#include "bench/ep_sim_model.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"

namespace jevons::ep_sim {
namespace {

constexpr double kBf16 = 2;
constexpr double kF32 = 4;

// Values of the weights of a layer's parts.
struct Weights {
  double attention = 0;
  double expert = 0;
  double dense = 0;
  double router = 0;
  double head = 0;
};

Weights WeightsOf(const ModelConfig& c) {
  const double h = c.hidden_size;
  const double heads = c.num_attention_heads;
  const double q = heads * c.qk_head_dim();
  Weights s;
  s.attention = (c.q_lora_rank > 0 ? (h + q) * c.q_lora_rank : h * q) + h * c.kv_entry_dim() +
                heads * c.kv_lora_rank * (c.qk_nope_head_dim + c.v_head_dim) +
                heads * c.v_head_dim * h;
  s.expert = 3 * h * c.moe_intermediate_size;
  s.dense = 3 * h * c.intermediate_size;
  s.router = h * c.n_routed_experts;
  s.head = h * c.vocab_size;
  return s;
}

int32_t NumDenseLayers(const ModelConfig& c) {
  return c.n_routed_experts > 0 ? c.first_k_dense_replace : c.num_hidden_layers;
}

double Seconds(const Deployment& d, const Work& work, double rate) {
  return std::max(work.bytes / (d.gpu.read * d.kernels.read_share), work.flops / rate);
}

// A product of `tokens` rows with a weight of `values`.
Work Product(double values, double value_bytes, double tokens) {
  return {.bytes = values * value_bytes, .flops = 2 * values * tokens};
}

Work AttentionWork(const ModelConfig& c, const Deployment& d, const Step& step) {
  const double tokens = step.num_tokens();
  // A prompt's tokens see those before them; the few of a decode step all see the whole context.
  const double seen = static_cast<double>(step.context) + (step.prefill ? step.tokens_per_seq : 0);
  const double pairs =
      tokens * (static_cast<double>(step.context) + (step.prefill ? step.tokens_per_seq / 2.0 : 0));
  const bool absorbed = !step.prefill || d.kernels.absorbed_prefill;
  const double dims = absorbed ? c.kv_entry_dim() + c.kv_lora_rank : c.qk_head_dim() + c.v_head_dim;
  return {.bytes = step.num_seqs * seen * c.kv_entry_dim() * d.kv_value_bytes,
          .flops = 2 * pairs * c.num_attention_heads * dims};
}

// Flops a second while an exchange holds some SMs.
double Rate(const Deployment& d, double rate) {
  if (d.overlap == Overlap::kNone || d.num_ranks == 1) return rate;
  return rate * (1 - static_cast<double>(d.transport.num_sms) / d.gpu.num_sms);
}

// What dense and MoE layers share.
LayerTime AttentionTime(const ModelConfig& c, const Deployment& d, const Step& step) {
  const Weights weights = WeightsOf(c);
  const double tokens = step.num_tokens();
  LayerTime out;
  out.parts[kProjections] = Seconds(d, Product(weights.attention, d.weight_value_bytes, tokens),
                                    Rate(d, d.kernels.linear));
  const double rate = step.prefill ? d.kernels.mla_prefill : d.kernels.mla_decode;
  out.parts[kAttention] =
      d.kernels.mla_floor + Seconds(d, AttentionWork(c, d, step), Rate(d, rate));
  out.parts[kLaunches] = d.kernels.num_launches * d.kernels.boundary;
  // Twice a layer: the f32 residual is read and written, the block's output read, the norm written.
  out.parts[kRows] = Seconds(d, {.bytes = tokens * c.hidden_size * 2 * (2 * kF32 + 2 * kBf16)}, 1);
  return out;
}

// Rows between this rank and those of the same node, and of other nodes, for each token.
struct Fanout {
  double inside = 0;
  double outside = 0;
};

Fanout FanoutOf(const ModelConfig& c, const Deployment& d, Send send) {
  const double ranks = d.num_ranks;
  const double inside = d.ranks_per_node() - 1;
  const double outside = ranks - 1 - inside;
  if (d.sizes == Sizes::kPadded) {
    const double rows =
        send == Send::kPerChoice ? std::min(c.num_experts_per_tok, d.slots_per_rank) : 1;
    return {inside * rows, outside * rows};
  }
  if (send == Send::kPerChoice) {
    const double each = c.num_experts_per_tok / ranks;
    return {inside * each, outside * each};
  }
  const double rank_hit = HitProbability(c, c.n_routed_experts / ranks);
  if (send == Send::kPerRank) return {inside * rank_hit, outside * rank_hit};
  // Between nodes from a GPU to the one in the same place, which hands on or gathers over NVLink.
  const double nodes = d.num_nodes();
  const double handed_on = inside / (inside + 1);
  if (send == Send::kPerNode) {
    return {ranks * rank_hit * handed_on,
            (nodes - 1) * HitProbability(c, c.n_routed_experts / nodes)};
  }
  const double group_hit = HitProbability(c, 1.0 * c.n_routed_experts / c.n_group);
  return {c.num_experts_per_tok * handed_on, c.n_group * group_hit * (nodes - 1) / nodes};
}

Traffic TrafficOf(const ModelConfig& c, const Deployment& d, Send send, double value_bytes,
                  double num_tokens) {
  if (d.num_ranks == 1) return {};
  const Fanout rows = FanoutOf(c, d, send);
  const double uneven = d.sizes == Sizes::kPadded ? 1 : d.imbalance;
  const double bytes = num_tokens * c.hidden_size * value_bytes * uneven;
  const int32_t peers = d.num_ranks - 1;
  return {.nvlink_bytes = rows.inside * bytes,
          .rdma_bytes = rows.outside * bytes,
          .num_messages = send == Send::kPerNode || send == Send::kPerGroup
                              ? d.ranks_per_node() - 1 + d.num_nodes() - 1
                              : peers};
}

std::string Binds(const Deployment& d, const StepTime& time) {
  const auto largest = std::max_element(time.parts.begin(), time.parts.end());
  if (time.exposed > *largest) return d.num_nodes() > 1 ? "network" : "NVLink";
  return std::string(PartName(static_cast<Part>(largest - time.parts.begin())));
}

// Adds `count` layers, each run in `batches` turns of `layer`.
void AddLayers(const LayerTime& layer, double count, double batches, StepTime& out) {
  for (int32_t i = 0; i < kNumParts; ++i) out.parts[i] += count * batches * layer.parts[i];
  out.dispatch += count * batches * layer.dispatch;
  out.combine += count * batches * layer.combine;
}

void AddHead(const ModelConfig& c, const Deployment& d, const Step& step, StepTime& out) {
  const double rows = step.prefill ? step.num_seqs : step.num_tokens();
  out.parts[kHead] += Seconds(d, Product(WeightsOf(c).head, kBf16, rows), d.kernels.head);
  // Logits are written by the head and read once.
  out.parts[kSampler] += Seconds(d, {.bytes = 2 * rows * c.vocab_size * kF32}, 1);
}

}  // namespace

std::string_view PartName(Part part) {
  constexpr std::string_view kNames[] = {"projections", "attention", "dense", "router",
                                         "experts",     "shared",    "rows",  "head",
                                         "sampler",     "launches"};
  return kNames[part];
}

absl::Status Validate(const ModelConfig& c, const Deployment& d, const Step& step) {
  const auto bad = [](const std::string& text) { return absl::InvalidArgumentError(text); };
  if (d.num_ranks < 1) return bad(absl::StrFormat("ranks: at least 1, not %d", d.num_ranks));
  if (d.num_ranks > d.gpu.gpus_per_node && d.num_ranks % d.gpu.gpus_per_node != 0) {
    return bad(
        absl::StrFormat("ranks: whole nodes of %d, not %d", d.gpu.gpus_per_node, d.num_ranks));
  }
  if (d.num_slots() < c.n_routed_experts) {
    return bad(absl::StrFormat("%d ranks with %d slots hold %d experts at most, not %d",
                               d.num_ranks, d.slots_per_rank, d.num_slots(), c.n_routed_experts));
  }
  if (d.dispatch == Send::kPerGroup)
    return bad("a row for each group is a sum: it can only go back");
  const auto by_node = [](Send send) { return send == Send::kPerNode || send == Send::kPerGroup; };
  if (d.sizes == Sizes::kPadded && (by_node(d.dispatch) || by_node(d.combine))) {
    return bad("padded exchanges go from rank to rank, not by node");
  }
  if (d.combine == Send::kPerGroup && c.n_group % d.num_nodes() != 0) {
    return bad(
        absl::StrFormat("%d nodes cannot hold %d whole groups each", d.num_nodes(), c.n_group));
  }
  if (!(d.imbalance >= 1)) {
    return bad(absl::StrFormat("imbalance: at least 1, not %g", d.imbalance));
  }
  if (step.num_seqs < 1 || step.tokens_per_seq < 1 || step.context < 0) {
    return bad(
        absl::StrFormat("a step has at least 1 sequence of 1 token after 0, not %d of %d after %d",
                        step.num_seqs, step.tokens_per_seq, step.context));
  }
  return absl::OkStatus();
}

double HitProbability(const ModelConfig& c, double num_experts) {
  const double group_size = static_cast<double>(c.n_routed_experts) / c.n_group;
  const double kept_size = group_size * c.topk_group;
  const int32_t whole = static_cast<int32_t>(std::min(num_experts / group_size, 1.0 * c.n_group));
  const double rest = std::max(0.0, num_experts - whole * group_size);
  // No choice among m of the kept experts.
  const auto miss = [&](double m) {
    double p = 1;
    for (int32_t i = 0; i < c.num_experts_per_tok; ++i) {
      p *= std::max(0.0, kept_size - m - i) / (kept_size - i);
    }
    return p;
  };
  const auto choose = [](double n, double k) {
    return k < 0 || k > n
               ? 0
               : std::exp(std::lgamma(n + 1) - std::lgamma(k + 1) - std::lgamma(n - k + 1));
  };
  double missed = 0;
  for (int32_t kept = 0; kept <= std::min(whole, c.topk_group); ++kept) {
    const double p = choose(whole, kept) * choose(c.n_group - whole, c.topk_group - kept) /
                     choose(c.n_group, c.topk_group);
    const double also =
        whole < c.n_group ? 1.0 * (c.topk_group - kept) / (c.n_group - whole) : 0;  // the rest
    missed += p * (also * miss(kept * group_size + rest) + (1 - also) * miss(kept * group_size));
  }
  return 1 - missed;
}

double DistinctExperts(const ModelConfig& c, const Deployment& d, double num_tokens) {
  const double slots = d.num_slots();
  const double k = c.num_experts_per_tok;
  if (d.routing == Routing::kBalanced) return std::min(slots, k * num_tokens) / d.num_ranks;
  return d.slots_per_rank * (1 - std::pow(1 - k / slots, num_tokens));
}

Traffic DispatchTraffic(const ModelConfig& c, const Deployment& d, double num_tokens) {
  return TrafficOf(c, d, d.dispatch, d.dispatch_value_bytes, num_tokens);
}

Traffic CombineTraffic(const ModelConfig& c, const Deployment& d, double num_tokens) {
  return TrafficOf(c, d, d.combine, d.combine_value_bytes, num_tokens);
}

double ExchangeSeconds(const Deployment& d, const Traffic& traffic) {
  if (d.num_ranks == 1) return 0;
  return d.transport.base + d.transport.per_message * traffic.num_messages +
         std::max(traffic.nvlink_bytes / d.gpu.nvlink, traffic.rdma_bytes / d.gpu.rdma) /
             d.transport.efficiency;
}

LayerTime MoeLayerTime(const ModelConfig& c, const Deployment& d, const Step& step) {
  const Weights weights = WeightsOf(c);
  const double tokens = step.num_tokens();
  LayerTime out = AttentionTime(c, d, step);
  out.parts[kRouter] = Seconds(d, Product(weights.router, kBf16, tokens), d.kernels.head);
  const double distinct = DistinctExperts(c, d, tokens * d.num_ranks);
  const double rows = tokens * c.num_experts_per_tok * d.imbalance;
  out.parts[kExperts] = Seconds(d,
                                {.bytes = distinct * weights.expert * d.weight_value_bytes,
                                 .flops = 2 * rows * weights.expert},
                                Rate(d, d.kernels.grouped));
  out.parts[kShared] =
      Seconds(d, Product(c.n_shared_experts * weights.expert, d.weight_value_bytes, tokens),
              Rate(d, d.kernels.linear));
  // The combine reads a row for each choice and the shared experts', and writes one.
  out.parts[kRows] +=
      Seconds(d, {.bytes = tokens * c.hidden_size * kBf16 * (c.num_experts_per_tok + 2)}, 1);
  out.dispatch = ExchangeSeconds(d, DispatchTraffic(c, d, tokens));
  if (d.num_ranks > 1 && d.sizes == Sizes::kExact) out.dispatch += d.transport.count;
  out.combine = ExchangeSeconds(d, CombineTraffic(c, d, tokens));
  return out;
}

LayerTime DenseLayerTime(const ModelConfig& c, const Deployment& d, const Step& step) {
  LayerTime out = AttentionTime(c, d, step);
  out.parts[kDense] =
      Seconds(d, Product(WeightsOf(c).dense, d.weight_value_bytes, step.num_tokens()),
              Rate(d, d.kernels.linear));
  return out;
}

double ExposedSeconds(const Deployment& d, const LayerTime& layer) {
  const double fill = d.shared_fills_gaps ? layer.parts[kShared] : 0;
  const auto left = [](double exchange, double cover) { return std::max(0.0, exchange - cover); };
  if (d.overlap == Overlap::kNone) return left(layer.dispatch, fill) + layer.combine;
  const double experts = layer.parts[kExperts] + layer.parts[kShared] - fill;
  double attention = 0;
  for (const Part part : {kProjections, kAttention, kRouter, kRows, kLaunches}) {
    attention += layer.parts[part];
  }
  return left(layer.dispatch, fill + attention) + left(layer.dispatch, fill + experts) +
         left(layer.combine, experts) + left(layer.combine, attention);
}

Memory MemoryOf(const ModelConfig& c, const Deployment& d, const Step& step) {
  const Weights weights = WeightsOf(c);
  const double layers = c.num_hidden_layers;
  const double dense = NumDenseLayers(c);
  const double moe = layers - dense;
  const double tokens = step.num_tokens();
  Memory m;
  m.replicated = (layers * weights.attention + dense * weights.dense +
                  moe * c.n_shared_experts * weights.expert) *
                     d.weight_value_bytes +
                 (moe * weights.router + 2 * weights.head) * kBf16;
  m.experts = moe * d.slots_per_rank * weights.expert * d.weight_value_bytes;
  m.cache = layers * c.kv_entry_dim() * d.kv_value_bytes * step.num_seqs *
            static_cast<double>(step.context + step.tokens_per_seq);
  // Residual, normed row and delta; queries in both forms and attention's output; logits.
  m.activations =
      tokens * (c.hidden_size * (kF32 + 2 * kBf16) +
                c.num_attention_heads * kBf16 *
                    (c.qk_head_dim() + c.kv_entry_dim() + c.kv_lora_rank + c.v_head_dim)) +
      (step.prefill ? step.num_seqs : tokens) * c.vocab_size * kF32;
  // A row of an expert: its input, the product's width, its output.
  const double row = c.hidden_size * (d.dispatch_value_bytes + d.combine_value_bytes) +
                     c.moe_intermediate_size * kBf16;
  const double most = d.num_ranks * std::min(c.num_experts_per_tok, d.slots_per_rank);
  const bool padded = d.sizes == Sizes::kPadded && d.num_ranks > 1;
  m.exchange = tokens * row * (padded ? most : c.num_experts_per_tok * d.imbalance);
  m.limit = d.gpu.memory_bytes * d.memory_share;
  return m;
}

absl::StatusOr<StepTime> Simulate(const ModelConfig& c, const Deployment& deployment,
                                  const Step& step) {
  RETURN_IF_ERROR(Validate(c, deployment, step));
  StepTime out;
  out.memory = MemoryOf(c, deployment, step);
  const Memory& m = out.memory;
  if (m.total() > m.limit) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "%s has %.1f GB for %.1f: %.1f replicated weights, %.1f experts, %.1f cache, "
        "%.1f activations, %.1f exchanges",
        deployment.gpu.name, m.limit / 1e9, m.total() / 1e9, m.replicated / 1e9, m.experts / 1e9,
        m.cache / 1e9, m.activations / 1e9, m.exchange / 1e9));
  }
  Deployment d = deployment;
  if (step.num_seqs < 2 || d.num_ranks == 1) d.overlap = Overlap::kNone;
  const double batches = d.overlap == Overlap::kNone ? 1 : 2;
  Step part = step;
  // Of an odd number the larger half stands for both.
  if (batches == 2) part.num_seqs = (step.num_seqs + 1) / 2;
  const double dense_layers = NumDenseLayers(c);
  const double moe_layers = c.num_hidden_layers - dense_layers;
  AddLayers(DenseLayerTime(c, d, part), dense_layers, batches, out);
  if (moe_layers > 0) {
    const LayerTime moe = MoeLayerTime(c, d, part);
    AddLayers(moe, moe_layers, batches, out);
    out.exposed = moe_layers * ExposedSeconds(d, moe);
  }
  AddHead(c, d, step, out);
  out.seconds = out.exposed;
  for (const double seconds : out.parts) out.seconds += seconds;
  out.binds = Binds(d, out);
  return out;
}

}  // namespace jevons::ep_sim
