// The ops around the products, and the dense products, at serving shapes.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "bench/cuda_cases.h"
#include "bench/cuda_random_backend.h"
#include "cuda/cuda_backend.h"
#include "ops/cost.h"

namespace jevons {
namespace {

// Copies of a weight that are used in turns: together more than any cache holds.
constexpr int64_t kColdBytes = 192 << 20;
constexpr int64_t kMostCopies = 64;

std::vector<int64_t> Batches(const CudaBench& bench, std::vector<int64_t> all) {
  if (bench.options().tiny) return {1, 3};
  if (bench.options().quick) return {all.front(), all[all.size() / 2], all.back()};
  return all;
}

BenchRow RowOf(const std::string& name, int64_t batch, const OpCost& cost) {
  BenchRow row;
  row.name = absl::StrCat(name, "_b", batch);
  row.bytes = static_cast<double>(cost.bytes);
  row.flops = static_cast<double>(cost.flops);
  return row;
}

absl::Status RunNorm(CudaBench& bench, const std::string& name, const ModelConfig& c,
                     int64_t batch) {
  ASSIGN_OR_RETURN(Backend * backend, bench.backend());
  CudaTensors t(*backend);
  RmsNormArgs args;
  ASSIGN_OR_RETURN(args.x, t.Random(DType::kF32, {batch, c.hidden_size}));
  ASSIGN_OR_RETURN(args.delta, t.Random(DType::kF32, {batch, c.hidden_size}, 1e-3f));
  ASSIGN_OR_RETURN(args.weight, t.Random(DType::kF32, {c.hidden_size}));
  ASSIGN_OR_RETURN(args.out, t.Unset(DType::kBF16, {batch, c.hidden_size}));
  args.eps = 1e-6f;
  return bench.Measure(RowOf(name + "/rmsnorm", batch, Cost(args)), 1, args.out,
                       [&](int) { return backend->RmsNorm(args); });
}

// Copies of a weight that together are cold.
absl::StatusOr<std::vector<std::unique_ptr<Weight>>> ColdWeights(const CudaBench& bench,
                                                                 int64_t groups, int64_t n,
                                                                 int64_t k, DType dtype,
                                                                 WeightUse use) {
  const int64_t bytes = groups * n * k * DTypeBytes(dtype);
  const int64_t copies =
      bench.options().tiny ? 2 : std::clamp<int64_t>(kColdBytes / bytes + 1, 1, kMostCopies);
  std::vector<std::unique_ptr<Weight>> out;
  for (int64_t i = 0; i < copies; ++i) {
    ASSIGN_OR_RETURN(out.emplace_back(),
                     MakeRandomWeight({.num_groups = static_cast<int32_t>(groups),
                                       .n = n,
                                       .k = k,
                                       .dtype = dtype,
                                       .use = use,
                                       .seed = static_cast<uint64_t>(i)}));
  }
  return out;
}

// Rotation and new entries alone, then with the product between them, as a model has them.
absl::Status RunPrepare(CudaBench& bench, const std::string& name, const ModelConfig& c,
                        int64_t batch) {
  ASSIGN_OR_RETURN(Backend * backend, bench.backend());
  CudaTensors t(*backend);
  constexpr int64_t kBlock = 64;
  std::vector<int32_t> positions(batch);
  std::vector<int64_t> slots(batch);
  for (int64_t i = 0; i < batch; ++i) {
    positions[i] = static_cast<int32_t>(i);
    slots[i] = i / kBlock * kBlock + (i * 37) % kBlock;
  }
  const int64_t heads = c.num_attention_heads;
  ASSIGN_OR_RETURN(const auto uk, ColdWeights(bench, heads, c.kv_lora_rank, c.qk_nope_head_dim,
                                              DType::kBF16, WeightUse::kPlain));
  MlaPrepareArgs args;
  MlaStoreKvArgs& store = args.store;
  ASSIGN_OR_RETURN(store.kv, t.Random(DType::kBF16, {batch, c.kv_entry_dim()}));
  ASSIGN_OR_RETURN(store.norm_weight, t.Random(DType::kF32, {c.kv_lora_rank}));
  ASSIGN_OR_RETURN(store.positions, t.Copy(DType::kI32, positions));
  ASSIGN_OR_RETURN(store.cos_sin, t.Random(DType::kF32, {batch, c.qk_rope_head_dim}));
  ASSIGN_OR_RETURN(store.slot_mapping, t.Copy(DType::kI64, slots));
  ASSIGN_OR_RETURN(store.cache,
                   t.Unset(DType::kBF16, {batch / kBlock + 1, kBlock, c.kv_entry_dim()}));
  store.eps = 1e-6f;
  ASSIGN_OR_RETURN(args.q, t.Random(DType::kBF16, {batch, heads, c.qk_head_dim()}));
  ASSIGN_OR_RETURN(args.out, t.Unset(DType::kBF16, {batch, heads, c.kv_entry_dim()}));
  args.uk = uk[0].get();
  const RopeArgs rope = args.rotation();
  RETURN_IF_ERROR(bench.Measure(RowOf(name + "/rope", batch, Cost(rope)), 1, rope.out,
                                [&](int) { return backend->Rope(rope); }));
  RETURN_IF_ERROR(bench.Measure(RowOf(name + "/store_kv", batch, Cost(store)), 1, store.cache,
                                [&](int) { return backend->MlaStoreKv(store); }));
  return bench.Measure(RowOf(name + "/mla_prepare", batch, Cost(args)), static_cast<int>(uk.size()),
                       args.out, [&](int i) {
                         args.uk = uk[i].get();
                         return backend->MlaPrepare(args);
                       });
}

absl::Status RunEmbed(CudaBench& bench, const std::string& name, const ModelConfig& c,
                      int64_t batch) {
  ASSIGN_OR_RETURN(Backend * backend, bench.backend());
  CudaTensors t(*backend);
  Random random(1);
  std::vector<int32_t> ids(batch);
  for (int32_t& id : ids) id = static_cast<int32_t>(random.Below(c.vocab_size));
  EmbedArgs args;
  ASSIGN_OR_RETURN(args.ids, t.Copy(DType::kI32, ids));
  ASSIGN_OR_RETURN(args.table, t.Random(DType::kBF16, {c.vocab_size, c.hidden_size}));
  ASSIGN_OR_RETURN(args.out, t.Unset(DType::kF32, {batch, c.hidden_size}));
  return bench.Measure(RowOf(name + "/embed", batch, Cost(args)), 1, args.out,
                       [&](int) { return backend->Embed(args); });
}

// Greedy, and with top_p, which looks at a row more often.
absl::Status RunSample(CudaBench& bench, const std::string& name, const ModelConfig& c,
                       int64_t batch) {
  ASSIGN_OR_RETURN(Backend * backend, bench.backend());
  CudaTensors t(*backend);
  SampleTokensArgs args;
  args.num_valid = c.vocab_size;
  ASSIGN_OR_RETURN(args.logits, t.Random(DType::kF32, {batch, c.vocab_size}, 3));
  ASSIGN_OR_RETURN(args.token, t.Unset(DType::kI32, {batch}));
  ASSIGN_OR_RETURN(args.logprob, t.Unset(DType::kF32, {batch}));
  ASSIGN_OR_RETURN(const TensorView top_ids, t.Unset(DType::kI32, {batch}));
  ASSIGN_OR_RETURN(const TensorView top_logprobs, t.Unset(DType::kF32, {batch}));
  args.top_ids = TensorView(top_ids.data, DType::kI32, {batch, 1});
  args.top_logprobs = TensorView(top_logprobs.data, DType::kF32, {batch, 1});
  for (const bool greedy : {true, false}) {
    SampleRow row;
    row.temperature = greedy ? 0 : 1;
    row.top_p = greedy ? 1 : 0.95f;
    const std::vector<SampleRow> rows(batch, row);
    const auto* bytes = reinterpret_cast<const uint8_t*>(rows.data());
    const std::vector<uint8_t> flat(bytes, bytes + batch * sizeof(SampleRow));
    ASSIGN_OR_RETURN(args.rows, t.Copy(DType::kU8, flat));
    args.rows = TensorView(args.rows.data, DType::kU8, {batch, sizeof(SampleRow)});
    const OpCost cost = {4 * batch * c.vocab_size, 0};
    RETURN_IF_ERROR(bench.Measure(
        RowOf(absl::StrCat(name, "/sample", greedy ? "_greedy" : "_top_p"), batch, cost), 1,
        args.logprob, [&](int) { return backend->SampleTokens(args); }));
  }
  return absl::OkStatus();
}

absl::Status RunRows(CudaBench& bench, const std::string& name, const ModelConfig& c) {
  for (int64_t batch : Batches(bench, {1, 64, 256, 8192})) {
    if (bench.TimeIsUp()) return absl::OkStatus();
    RETURN_IF_ERROR(RunNorm(bench, name, c, batch));
    RETURN_IF_ERROR(RunPrepare(bench, name, c, batch));
    RETURN_IF_ERROR(RunEmbed(bench, name, c, batch));
    // A step has few rows of logits.
    if (batch <= 256) RETURN_IF_ERROR(RunSample(bench, name, c, batch));
  }
  return absl::OkStatus();
}

enum class Product { kLinear, kGatedUp, kHeads };

struct LinearShape {
  const char* name;
  Product product;
  int64_t groups;
  int64_t n;
  int64_t k;
  bool has_fp8;  // published FP8 checkpoints keep it in FP8
  double peer_b1_us = 0;
  const char* peer = "";
};

std::vector<LinearShape> Shapes(const ModelConfig& c) {
  const int64_t h = c.hidden_size;
  const int64_t heads = c.num_attention_heads;
  const int64_t q = heads * c.qk_head_dim();
  const bool compressed = c.q_lora_rank > 0;
  const int64_t shared = int64_t{c.n_shared_experts} * c.moe_intermediate_size;
  const int64_t qkv = (compressed ? c.q_lora_rank : q) + c.kv_entry_dim();
  std::vector<LinearShape> out = {{"qkv_a", Product::kLinear, 1, qkv, h, true}};
  if (compressed) out.push_back({"q_b", Product::kLinear, 1, q, c.q_lora_rank, true});
  out.push_back({"uk", Product::kHeads, heads, c.kv_lora_rank, c.qk_nope_head_dim, false});
  out.push_back({"uv", Product::kHeads, heads, c.v_head_dim, c.kv_lora_rank, false});
  LinearShape o = {"o", Product::kLinear, 1, h, heads * c.v_head_dim, true};
  // Published for an H100: bf16 2048 x 2048 and 16384 x 7168, one row.
  o.peer_b1_us = h == 2048 ? 6.7 : h == 7168 ? 78 : 0;
  o.peer = "cuBLAS bf16";
  out.push_back(o);
  out.push_back({"router", Product::kLinear, 1, c.n_routed_experts, h, false});
  out.push_back({"shared_up", Product::kGatedUp, 1, 2 * shared, h, true});
  out.push_back({"shared_down", Product::kLinear, 1, h, shared, true});
  out.push_back({"dense_up", Product::kGatedUp, 1, 2 * int64_t{c.intermediate_size}, h, true});
  out.push_back({"dense_down", Product::kLinear, 1, h, c.intermediate_size, true});
  out.push_back({"head", Product::kLinear, 1, c.vocab_size, h, false});
  return out;
}

struct ProductRun {
  std::string name;
  Backend* backend = nullptr;
  int64_t batch = 0;
  bool fp8 = false;
};

absl::Status MeasureProduct(CudaBench& bench, const ProductRun& run, const LinearShape& shape,
                            const std::vector<std::unique_ptr<Weight>>& weights) {
  Backend* const backend = run.backend;
  const int64_t batch = run.batch;
  CudaTensors t(*backend);
  const bool heads = shape.product == Product::kHeads;
  const bool gated = shape.product == Product::kGatedUp;
  // A router and a head give f32, as does what is added to the residual.
  const std::string kind = shape.name;
  const bool f32 = !heads && !gated && kind != "qkv_a" && kind != "q_b";
  const DType type = f32 ? DType::kF32 : DType::kBF16;
  const int64_t n = gated ? shape.n / 2 : shape.n;
  TensorView x, out;
  ASSIGN_OR_RETURN(x, t.Random(DType::kBF16, {batch, shape.groups * shape.k}));
  ASSIGN_OR_RETURN(out, t.Unset(type, {batch, shape.groups * n}));
  BenchRow row;
  row.name = run.name;
  row.bytes = static_cast<double>(weights[0]->bytes() + 2 * x.num_elements() +
                                  DTypeBytes(type) * out.num_elements());
  row.flops = 2.0 * static_cast<double>(batch * shape.groups * shape.n * shape.k);
  row.fp8 = run.fp8;
  if (batch == 1 && !run.fp8) {
    row.peer_us = shape.peer_b1_us;
    row.peer = shape.peer;
  }
  const TensorView x_heads = x.SplitLast(shape.k);
  const TensorView out_heads = out.SplitLast(n);
  const auto op = [&](int i) -> absl::Status {
    const Weight* weight = weights[i].get();
    if (heads) return backend->HeadLinear({.x = x_heads, .weight = weight, .out = out_heads});
    if (!gated) return backend->Linear({.x = x, .weight = weight, .bias = {}, .out = out});
    GatedUpArgs args;
    args.x = x;
    args.weight = weight;
    args.out = out;
    return backend->GatedUp(args);
  };
  return bench.MeasureOn(*backend, row, static_cast<int>(weights.size()), out, op);
}

std::string RowName(const std::string& name, const LinearShape& shape, int64_t batch) {
  return absl::StrCat(name, "/", shape.name, "_b", batch);
}

absl::Status RunLinear(CudaBench& bench, const std::string& name, const ModelConfig& c,
                       DType dtype) {
  const bool fp8 = dtype == DType::kF8E4M3;
  ASSIGN_OR_RETURN(Backend * backend, bench.backend());
  for (const LinearShape& shape : Shapes(c)) {
    if (fp8 && !shape.has_fp8) continue;
    const WeightUse use =
        shape.product == Product::kGatedUp ? WeightUse::kGateUp : WeightUse::kPlain;
    ASSIGN_OR_RETURN(const auto weights,
                     ColdWeights(bench, shape.groups, shape.n, shape.k, dtype, use));
    for (int64_t batch : Batches(bench, {1, 8, 64, 256, 4096})) {
      if (bench.TimeIsUp()) return absl::OkStatus();
      if (batch > 256 && std::string(shape.name) == "head") continue;
      RETURN_IF_ERROR(MeasureProduct(bench, {RowName(name, shape, batch), backend, batch, fp8},
                                     shape, weights));
    }
  }
  return absl::OkStatus();
}

// Those that --cublaslt-rows would give to cuBLASLt, by our kernel and by it: with what it takes to
// unpack the weight.
absl::Status RunCublasLt(CudaBench& bench, const std::string& name, const ModelConfig& c) {
  const int64_t fewest = FewestCublasLtRows(bench.options());
  const auto made =
      CreateCudaBackend({.early_launches = false, .cublaslt_rows = static_cast<int32_t>(fewest)});
  if (absl::IsUnavailable(made.status()) || absl::IsUnimplemented(made.status())) {
    bench.report().Text(name, absl::StrCat("left out: ", made.status().message()));
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(made.status());
  ASSIGN_OR_RETURN(Backend * ours, bench.backend());
  for (const LinearShape& shape : Shapes(c)) {
    // Neither a router nor a head meets so many rows in a product of its own.
    const std::string kind = shape.name;
    if (shape.product != Product::kLinear || kind == "router" || kind == "head") continue;
    ASSIGN_OR_RETURN(const auto weights, ColdWeights(bench, shape.groups, shape.n, shape.k,
                                                     DType::kBF16, WeightUse::kPlain));
    for (int64_t batch : Batches(bench, {fewest, 512, 1024, 2048, 4096, 8192})) {
      for (Backend* backend : {ours, made->get()}) {
        if (bench.TimeIsUp()) return absl::OkStatus();
        const std::string row =
            RowName(name, shape, batch) + (backend == ours ? "_ours" : "_cublaslt");
        RETURN_IF_ERROR(MeasureProduct(bench, {row, backend, batch}, shape, weights));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<CudaCase> RowCases() {
  return {
      {"v2lite/rows", "norm, rope, cache entries, queries, embedding, sampling, hidden size 2048",
       [](CudaBench& b) { return RunRows(b, "v2lite/rows", V2LiteConfig(b.options().tiny)); }},
      {"v3/rows", "the same for hidden size 7168 and 128 heads",
       [](CudaBench& b) { return RunRows(b, "v3/rows", V3Config(b.options().tiny)); }}};
}

std::vector<CudaCase> LinearCases() {
  std::vector<CudaCase> out;
  for (const bool v3 : {false, true}) {
    for (const DType dtype : {DType::kBF16, DType::kF8E4M3}) {
      const std::string name =
          absl::StrCat(v3 ? "v3" : "v2lite", "/linear_", dtype == DType::kBF16 ? "bf16" : "fp8");
      out.push_back(
          {name, "dense products, rows 1 to 4096, weights out of cache", [=](CudaBench& b) {
             const bool tiny = b.options().tiny;
             return RunLinear(b, name, v3 ? V3Config(tiny) : V2LiteConfig(tiny), dtype);
           }});
    }
  }
  return out;
}

std::vector<CudaCase> CublasLtCases() {
  std::vector<CudaCase> out;
  for (const bool v3 : {false, true}) {
    const std::string name = absl::StrCat(v3 ? "v3" : "v2lite", "/cublaslt_bf16");
    out.push_back({name, "dense products, rows 256 to 8192, by our kernel and by cuBLASLt",
                   [=](CudaBench& b) {
                     const bool tiny = b.options().tiny;
                     return RunCublasLt(b, name, v3 ? V3Config(tiny) : V2LiteConfig(tiny));
                   }});
  }
  return out;
}

}  // namespace jevons
