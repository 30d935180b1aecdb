// A layer's routed experts: router, dispatch, gate and up, down, combine, alone and together. How
// many experts a step calls is read back from the device and not computed.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/cuda_cases.h"
#include "bench/cuda_random_backend.h"
#include "ops/cost.h"

namespace jevons {
namespace {

// Published for one H100, whole routed experts of V3 in block FP8, choices spread evenly, in us.
struct Peer {
  int64_t batch;
  double us;
  const char* who;
};
constexpr Peer kV3Peers[] = {
    {1, 142, "SGLang"},     {8, 976, "TRT-LLM"},     {16, 1880, "TRT-LLM"},
    {32, 3697, "TRT-LLM"},  {64, 3725, "TRT-LLM"},   {128, 3781, "TRT-LLM"},
    {256, 3886, "TRT-LLM"}, {1024, 4543, "TRT-LLM"}, {16384, 17820, "SGLang"}};

// Choices of one step, and the rows that follow from them.
struct Routing {
  RouteTopKArgs route;
  DispatchPlan plan;
  double experts = 0;  // distinct ones, measured
};

// One layer's experts and the rows of one batch.
class MoeBench {
 public:
  // `input` is that of the experts.
  MoeBench(CudaBench& bench, std::string name, const ModelConfig& config, bool even,
           ActivationPrecision input)
      : bench_(bench), name_(std::move(name)), c_(config), even_(even), input_(input) {}

  absl::Status Run(DType dtype) {
    ASSIGN_OR_RETURN(backend_, bench_.backend());
    fp8_ = dtype == DType::kF8E4M3;
    const int64_t m = c_.moe_intermediate_size;
    ASSIGN_OR_RETURN(gate_up_, MakeRandomWeight({.num_groups = c_.n_routed_experts,
                                                 .n = 2 * m,
                                                 .k = c_.hidden_size,
                                                 .dtype = dtype,
                                                 .use = WeightUse::kGateUp,
                                                 .input = input_,
                                                 .seed = 1}));
    ASSIGN_OR_RETURN(down_, MakeRandomWeight({.num_groups = c_.n_routed_experts,
                                              .n = c_.hidden_size,
                                              .k = m,
                                              .dtype = dtype,
                                              .input = input_,
                                              .seed = 2}));
    ASSIGN_OR_RETURN(router_,
                     MakeRandomWeight({.n = c_.n_routed_experts, .k = c_.hidden_size, .seed = 3}));
    ASSIGN_OR_RETURN(output_,
                     MakeRandomWeight({.n = c_.hidden_size,
                                       .k = int64_t{c_.num_attention_heads} * c_.v_head_dim,
                                       .dtype = dtype,
                                       .input = input_,
                                       .seed = 4}));
    std::vector<int64_t> batches = {1, 8, 16, 32, 64, 128, 256, 1024, 16384};
    if (bench_.options().quick) batches = {1, 8, 64, 256, 16384};
    if (bench_.options().tiny) batches = {1, 5};
    for (int64_t batch : batches) {
      if (bench_.TimeIsUp()) return absl::OkStatus();
      RETURN_IF_ERROR(RunBatch(batch));
    }
    return absl::OkStatus();
  }

 private:
  // f32 [batch, experts] for the router. Spread evenly, token t wants the experts from t * top_k
  // on.
  absl::StatusOr<TensorView> Logits(CudaTensors& t, int64_t batch, uint64_t seed) {
    const int64_t experts = c_.n_routed_experts;
    Random random(seed);
    std::vector<float> host(batch * experts);
    for (float& value : host) {
      value = static_cast<float>(random.Bits() >> 40) * 0x1p-23f - 1;
    }
    const int64_t first = static_cast<int64_t>(seed) * c_.num_experts_per_tok;
    for (int64_t i = 0; even_ && i < batch * c_.num_experts_per_tok; ++i) {
      host[i / c_.num_experts_per_tok * experts + (first + i) % experts] += 8;
    }
    ASSIGN_OR_RETURN(TensorView flat, t.Copy(DType::kF32, host));
    return TensorView(flat.data, DType::kF32, {batch, experts});
  }

  absl::StatusOr<Routing> Route(CudaTensors& t, int64_t batch, uint64_t seed) {
    const int64_t k = c_.num_experts_per_tok;
    Routing out;
    RouteTopKArgs& r = out.route;
    ASSIGN_OR_RETURN(r.logits, Logits(t, batch, seed));
    if (c_.scoring_func == "sigmoid") {
      r.scoring = RouterScoring::kSigmoid;
      r.group_score = GroupScore::kTop2Sum;
      ASSIGN_OR_RETURN(r.bias, t.Random(DType::kF32, {c_.n_routed_experts}, 1e-3f));
    }
    r.n_group = c_.n_group;
    r.topk_group = c_.topk_group;
    r.normalize = c_.norm_topk_prob;
    r.scale = static_cast<float>(c_.routed_scaling_factor);
    ASSIGN_OR_RETURN(r.topk_idx, t.Unset(DType::kI32, {batch, k}));
    ASSIGN_OR_RETURN(r.topk_weights, t.Unset(DType::kF32, {batch, k}));
    ASSIGN_OR_RETURN(out.plan.cu_rows, t.Unset(DType::kI32, {c_.n_routed_experts + 1}));
    ASSIGN_OR_RETURN(out.plan.row_token, t.Unset(DType::kI32, {batch * k}));
    ASSIGN_OR_RETURN(out.plan.token_row, t.Unset(DType::kI32, {batch, k}));
    RETURN_IF_ERROR(backend_->RouteTopK(r));
    RETURN_IF_ERROR(backend_->ExpertDispatch({r.topk_idx, out.plan}));
    std::vector<int32_t> cu(c_.n_routed_experts + 1);
    RETURN_IF_ERROR(backend_->Read(
        TensorView(cu.data(), DType::kI32, {static_cast<int64_t>(cu.size())}), out.plan.cu_rows));
    for (size_t e = 0; e + 1 < cu.size(); ++e) out.experts += cu[e + 1] > cu[e];
    return out;
  }

  absl::Status RunBatch(int64_t batch) {
    CudaTensors t(*backend_);
    // Other experts from call to call, where few of them would stay in the cache.
    const int rotations = bench_.options().tiny ? 2 : batch == 1 ? 8 : batch <= 16 ? 2 : 1;
    routings_.clear();
    double experts = 0;
    for (int i = 0; i < rotations; ++i) {
      ASSIGN_OR_RETURN(Routing routing, Route(t, batch, static_cast<uint64_t>(i)));
      experts += routing.experts / rotations;
      routings_.push_back(routing);
    }
    const int64_t rows = batch * c_.num_experts_per_tok;
    ASSIGN_OR_RETURN(x_, t.Random(DType::kBF16, {batch, c_.hidden_size}));
    ASSIGN_OR_RETURN(act_, t.Random(DType::kBF16, {rows, c_.moe_intermediate_size}));
    ASSIGN_OR_RETURN(expert_out_, t.Random(DType::kBF16, {rows, c_.hidden_size}));
    ASSIGN_OR_RETURN(out_, t.Unset(DType::kF32, {batch, c_.hidden_size}));
    ASSIGN_OR_RETURN(norm_.x, t.Random(DType::kF32, {batch, c_.hidden_size}));
    ASSIGN_OR_RETURN(norm_.weight, t.Random(DType::kF32, {c_.hidden_size}));
    ASSIGN_OR_RETURN(norm_.out, t.Unset(DType::kBF16, {batch, c_.hidden_size}));
    norm_.delta = out_;
    norm_.eps = 1e-6f;
    // Not the routings of the other parts: these choices follow from the rows.
    ASSIGN_OR_RETURN(const Routing own, Route(t, batch, 0));
    routed_ = {.norm = norm_, .router = router_.get(), .route = own.route, .plan = own.plan};
    ASSIGN_OR_RETURN(routed_.norm.delta, t.Random(DType::kF32, {batch, c_.hidden_size}, 1e-3f));
    ASSIGN_OR_RETURN(attended_, t.Random(DType::kBF16, {batch, output_->k()}));
    RETURN_IF_ERROR(MeasureSmall(batch));
    RETURN_IF_ERROR(MeasureWithNorms(batch, experts));
    RETURN_IF_ERROR(MeasureProducts(batch, experts));
    return MeasureWhole(batch, experts);
  }

  absl::Status Measure(BenchRow row, int64_t batch, const char* part, const TensorView& out,
                       absl::FunctionRef<absl::Status(const Routing&)> op) {
    row.name = absl::StrCat(name_, "/", part, "_b", batch);
    return bench_.Measure(row, static_cast<int>(routings_.size()), out,
                          [&](int i) { return op(routings_[i]); });
  }
  static BenchRow RowOf(const OpCost& cost) {
    BenchRow row;
    row.bytes = static_cast<double>(cost.bytes);
    row.flops = static_cast<double>(cost.flops);
    return row;
  }

  absl::Status MeasureSmall(int64_t batch) {
    const Routing& first = routings_[0];
    RETURN_IF_ERROR(Measure(RowOf(Cost(first.route)), batch, "route", first.route.topk_weights,
                            [&](const Routing& r) { return backend_->RouteTopK(r.route); }));
    const auto dispatch = [&](const Routing& r) {
      return backend_->ExpertDispatch({r.route.topk_idx, r.plan});
    };
    const ExpertDispatchArgs args = {first.route.topk_idx, first.plan};
    RETURN_IF_ERROR(Measure(RowOf(Cost(args)), batch, "dispatch", first.plan.cu_rows, dispatch));
    BenchRow row;
    const double rows = static_cast<double>(act_.dim(0));
    row.bytes = (2 * rows + 4.0 * static_cast<double>(batch)) * c_.hidden_size + 8 * rows;
    row.flops = 2 * rows * c_.hidden_size;
    return Measure(row, batch, "combine", out_, [&](const Routing& r) { return Combine(r); });
  }

  // What a step runs around its products.
  absl::Status MeasureWithNorms(int64_t batch, double experts) {
    const double values = static_cast<double>(batch) * c_.hidden_size;
    const double rows = static_cast<double>(act_.dim(0));
    BenchRow route;
    route.bytes = static_cast<double>(router_->bytes()) + values * (4 + 4 + 4 + 2);
    route.flops = 4 * static_cast<double>(batch) * c_.hidden_size * c_.n_routed_experts;
    RETURN_IF_ERROR(Measure(route, batch, "norm_route", norm_.out,
                            [&](const Routing&) { return backend_->NormAndRoute(routed_); }));
    const double attended = static_cast<double>(batch * output_->k());
    BenchRow output = route;
    output.bytes += static_cast<double>(output_->bytes()) + 2 * attended + 4 * values;
    output.flops += 2 * attended * c_.hidden_size;
    output.fp8 = fp8_;
    RETURN_IF_ERROR(Measure(output, batch, "o_norm_route", norm_.out, [&](const Routing&) {
      return backend_->LinearAndRoute(
          {.linear = {attended_, output_.get(), {}, routed_.norm.delta}, .route = routed_});
    }));
    BenchRow end;
    end.bytes = 2 * rows * c_.hidden_size + values * (4 + 4 + 2) + 8 * rows;
    end.flops = 2 * rows * c_.hidden_size + 5 * values;
    const auto combine_and_norm = [&](const Routing& r) {
      return backend_->CombineAndNorm(End(r));
    };
    RETURN_IF_ERROR(Measure(end, batch, "combine_norm", norm_.out, combine_and_norm));
    BenchRow finish = ProductRow(*down_, experts, rows, c_.hidden_size);
    finish.bytes += end.bytes;
    return Measure(finish, batch, "finish", norm_.out,
                   [&](const Routing& r) { return backend_->FinishExperts(DownArgs(r), End(r)); });
  }

  absl::Status Up(const Routing& r) {
    GatedUpArgs args;
    args.x = x_;
    args.cu_rows = r.plan.cu_rows;
    args.row_idx = r.plan.row_token;
    args.weight = gate_up_.get();
    args.out = act_;
    return backend_->GatedUp(args);
  }
  GroupedGemmArgs DownArgs(const Routing& r) const {
    return {.x = act_,
            .cu_rows = r.plan.cu_rows,
            .row_idx = {},
            .weight = down_.get(),
            .out = expert_out_};
  }
  absl::Status Down(const Routing& r) { return backend_->GroupedGemm(DownArgs(r)); }
  CombineAndNormArgs End(const Routing& r) const {
    return {.combine = {.expert_out = expert_out_,
                        .plan = r.plan,
                        .topk_weights = r.route.topk_weights,
                        .shared = {},
                        .out = out_},
            .norm = norm_};
  }
  absl::Status Combine(const Routing& r) { return backend_->ExpertCombine(End(r).combine); }

  // Weights of the experts that were called, rows in, rows out.
  BenchRow ProductRow(const Weight& weight, double experts, double rows_in,
                      double width_out) const {
    BenchRow row;
    const double rows = static_cast<double>(act_.dim(0));
    row.bytes = static_cast<double>(weight.bytes()) * experts / c_.n_routed_experts +
                2 * rows_in * static_cast<double>(weight.k()) + 2 * rows * width_out;
    row.flops = 2 * rows * static_cast<double>(weight.n() * weight.k());
    row.fp8 = fp8_;
    row.note = absl::StrFormat("%.1f experts", experts);
    row.detail = absl::StrFormat(", \"experts\": %.2f", experts);
    return row;
  }

  absl::Status MeasureProducts(int64_t batch, double experts) {
    const double rows = static_cast<double>(act_.dim(0));
    const BenchRow up =
        ProductRow(*gate_up_, experts, static_cast<double>(batch), c_.moe_intermediate_size);
    RETURN_IF_ERROR(Measure(up, batch, "gate_up", act_, [&](const Routing& r) { return Up(r); }));
    const BenchRow down = ProductRow(*down_, experts, rows, c_.hidden_size);
    return Measure(down, batch, "down", expert_out_, [&](const Routing& r) { return Down(r); });
  }

  absl::Status MeasureWhole(int64_t batch, double experts) {
    // Intermediate rows need not touch memory: weights, rows in, rows out.
    BenchRow row = ProductRow(*gate_up_, experts, static_cast<double>(batch), 0);
    row.bytes += static_cast<double>(down_->bytes()) * experts / c_.n_routed_experts +
                 4.0 * static_cast<double>(batch) * c_.hidden_size;
    row.flops *= 1.5;
    for (const Peer& peer : kV3Peers) {
      if (!fp8_ || !even_ || c_.n_routed_experts != 256 || peer.batch != batch) continue;
      row.peer_us = peer.us;
      row.peer = absl::StrCat(peer.who, " on an H100");
    }
    return Measure(row, batch, "whole", out_, [&](const Routing& r) -> absl::Status {
      RETURN_IF_ERROR(backend_->RouteTopK(r.route));
      RETURN_IF_ERROR(backend_->ExpertDispatch({r.route.topk_idx, r.plan}));
      RETURN_IF_ERROR(Up(r));
      RETURN_IF_ERROR(Down(r));
      return Combine(r);
    });
  }

  CudaBench& bench_;
  const std::string name_;
  const ModelConfig c_;
  const bool even_;
  const ActivationPrecision input_;
  bool fp8_ = false;
  Backend* backend_ = nullptr;
  std::unique_ptr<Weight> gate_up_, down_, router_, output_;
  std::vector<Routing> routings_;
  TensorView x_, act_, expert_out_, out_, attended_;
  RmsNormArgs norm_;
  NormAndRouteArgs routed_;
};

}  // namespace

std::vector<CudaCase> MoeCases() {
  struct Kind {
    const char* name;
    DType dtype;
    ActivationPrecision input = ActivationPrecision::kExact;
  };
  std::vector<CudaCase> out;
  for (const bool v3 : {false, true}) {
    for (const Kind& kind : {Kind{"bf16", DType::kBF16}, Kind{"fp8", DType::kF8E4M3},
                             Kind{"w8a8", DType::kF8E4M3, ActivationPrecision::kFp8}}) {
      const bool rounds = kind.input == ActivationPrecision::kFp8;
      if (rounds && !v3) continue;
      const std::string name = absl::StrCat(v3 ? "v3" : "v2lite", "/moe_", kind.name);
      const std::string what =
          absl::StrCat("routed experts of one layer, 1 to 16384 tokens, choices ",
                       v3 ? "spread evenly as the peers' are" : "at random",
                       rounds ? ", with --activation-precision fp8" : "");
      out.push_back({name, what, [=](CudaBench& b) {
                       const bool tiny = b.options().tiny;
                       const ModelConfig c = v3 ? V3Config(tiny) : V2LiteConfig(tiny);
                       return MoeBench(b, name, c, v3, kind.input).Run(kind.dtype);
                     }});
    }
  }
  return out;
}

}  // namespace jevons
