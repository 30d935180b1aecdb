#include "ops/cost.h"

namespace jevons {
namespace {

int64_t Bytes(const TensorView& view) {
  return view.present() ? view.num_elements() * DTypeBytes(view.dtype) : 0;
}

// Of a latent cache.
int64_t EntryBytes(const TensorView& cache) { return cache.dim(2) * DTypeBytes(cache.dtype); }

}  // namespace

OpCost Cost(const EmbedArgs& args) {
  const int64_t table_bytes = args.out.num_elements() * DTypeBytes(args.table.dtype);
  return {Bytes(args.ids) + table_bytes + Bytes(args.out), 0};
}

OpCost Cost(const RmsNormArgs& args) {
  // x is read, and written too where there is a delta.
  const int64_t with_delta = args.delta.present() ? Bytes(args.delta) + Bytes(args.x) : 0;
  const int64_t flops = (args.delta.present() ? 5 : 4) * args.x.num_elements();
  return {Bytes(args.x) + with_delta + Bytes(args.weight) + Bytes(args.out), flops};
}

OpCost Cost(const SiluMulArgs& args) {
  return {Bytes(args.gate_up) + Bytes(args.out), 4 * args.out.num_elements()};
}

OpCost Cost(const RopeArgs& args) {
  const int64_t table_bytes = args.positions.num_elements() * args.cos_sin.dim(1) * 4;
  return {Bytes(args.x) + Bytes(args.out) + Bytes(args.positions) + table_bytes,
          3 * args.x.num_elements()};
}

OpCost Cost(const GatherRowsArgs& args) { return {2 * Bytes(args.out) + Bytes(args.row_idx), 0}; }

OpCost Cost(const LinearArgs& args) {
  return {Bytes(args.x) + args.weight->bytes() + Bytes(args.bias) + Bytes(args.out),
          2 * args.out.num_elements() * args.weight->k()};
}

OpCost Cost(const HeadLinearArgs& args) {
  return {Bytes(args.x) + args.weight->bytes() + Bytes(args.out),
          2 * args.out.num_elements() * args.weight->k()};
}

OpCost Cost(const GroupedGemmArgs& args) {
  const int32_t num_groups = args.weight->num_groups();
  const int32_t* cu = args.cu_rows.ptr<int32_t>();
  const int64_t num_rows = cu[num_groups];
  int64_t used_groups = 0;
  for (int32_t g = 0; g < num_groups; ++g) used_groups += cu[g + 1] > cu[g];
  const int64_t row_bytes = 4 * (args.weight->n() + args.weight->k());
  return {num_rows * row_bytes + args.weight->bytes() / num_groups * used_groups,
          2 * num_rows * args.weight->n() * args.weight->k()};
}

OpCost Cost(const MlaStoreKvArgs& args) {
  return {Bytes(args.kv) + args.kv.dim(0) * EntryBytes(args.cache) + Bytes(args.norm_weight),
          4 * args.kv.num_elements()};
}

OpCost Cost(const MlaPrepareArgs& args) {
  OpCost cost = Cost(args.store);
  for (const OpCost& step : {Cost(args.product()), Cost(args.rotation())}) {
    cost.bytes += step.bytes;
    cost.flops += step.flops;
  }
  return cost;
}

OpCost Cost(const MlaAttentionArgs& args) {
  const int32_t* cu = args.cu_seqlens_q.ptr<int32_t>();
  const int64_t row_bytes = EntryBytes(args.cache);
  OpCost cost = {Bytes(args.q) + Bytes(args.out), 0};
  for (int64_t s = 0; s < args.context_lens.dim(0); ++s) {
    const int64_t num_queries = cu[s + 1] - cu[s];
    const int64_t context = args.context_lens.ptr<int32_t>()[s];
    if (num_queries == 0) continue;
    // Query i of n sees context - n + i + 1 keys.
    const int64_t pairs = num_queries * context - num_queries * (num_queries - 1) / 2;
    cost.bytes += context * row_bytes;
    cost.flops += 2 * pairs * args.q.dim(1) * (args.q.dim(2) + args.out.dim(2));
  }
  return cost;
}

OpCost Cost(const MlaValuesArgs& args) {
  OpCost cost = Cost(args.attention);
  const OpCost product = Cost(args.product());
  cost.bytes += product.bytes;
  cost.flops += product.flops;
  return cost;
}

OpCost Cost(const RouteTopKArgs& args) {
  return {Bytes(args.logits) + Bytes(args.bias) + Bytes(args.topk_idx) + Bytes(args.topk_weights),
          3 * args.logits.num_elements()};
}

OpCost Cost(const ExpertDispatchArgs& args) {
  return {Bytes(args.topk_idx) + Bytes(args.plan.cu_rows) + Bytes(args.plan.row_token) +
              Bytes(args.plan.token_row),
          0};
}

OpCost Cost(const ExpertCombineArgs& args) {
  const int64_t choices = args.topk_weights.num_elements();
  const int64_t hidden = args.expert_out.dim(1);
  return {4 * choices * hidden + Bytes(args.topk_weights) + Bytes(args.shared) + Bytes(args.out),
          2 * choices * hidden + (args.shared.present() ? args.out.num_elements() : 0)};
}

}  // namespace jevons
