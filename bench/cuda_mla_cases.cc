// Latent attention over the paged cache: decode at serving batches, prompts as one piece.
#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "bench/cuda_cases.h"
#include "bench/cuda_random_backend.h"

namespace jevons {
namespace {

constexpr int64_t kBlock = 64;
constexpr int64_t kMostValueTokens = 8;  // with W_UV in attention's launch

// Decode: published for one H100, the core alone, bf16 cache, in us.
struct Shape {
  int64_t num_seqs;
  int64_t context;
  int64_t num_queries;  // of each sequence
  double peer_us_16 = 0;
  double peer_us_128 = 0;
};
constexpr Shape kDecode[] = {{1, 1024, 1, 14.7, 17.6},
                             {8, 1024, 1},
                             {1, 16384, 1},
                             {32, 1024, 1, 28.6, 50.6},
                             {64, 1024, 1, 46.7, 55.9},
                             {256, 1024, 1, 121, 187},
                             {64, 4096, 1, 119, 139},
                             {256, 4096, 1, 413, 535},
                             {256, 16384, 1, 1582, 1862}};
// Prompts: peers compute the form with keys and values of each head, of fewer flops; their time for
// the same prompt stands here (544 and 590 TFLOP/s).
constexpr Shape kPrefill[] = {
    {1, 512, 512}, {1, 4096, 4096, 0, 1263}, {1, 8192, 8192}, {1, 16384, 512}};

// `type`: bf16, or u8 for FP8 entries, whose bytes may be any.
absl::Status RunShape(CudaBench& bench, const std::string& name, DType type, int64_t heads,
                      const Shape& shape) {
  ASSIGN_OR_RETURN(Backend * backend, bench.backend());
  CudaTensors t(*backend);
  const int64_t latent = bench.options().tiny ? 64 : 512;
  const int64_t width = latent + 64;
  const int64_t entry =
      type == DType::kU8 ? Fp8Entry{static_cast<int32_t>(latent), 64}.bytes() : width;
  const int64_t blocks_each = (shape.context + kBlock - 1) / kBlock;
  const int64_t blocks = shape.num_seqs * blocks_each;
  // Other caches from call to call, as from layer to layer.
  const double cache_bytes = static_cast<double>(DTypeBytes(type) * blocks * kBlock * entry);
  const int64_t layers =
      bench.options().tiny ? 2
                           : std::clamp<int64_t>(static_cast<int64_t>(256e6 / cache_bytes), 1, 64);
  ASSIGN_OR_RETURN(const TensorView cache, t.Random(type, {layers * blocks, kBlock, entry}));
  std::vector<int32_t> table(blocks);
  std::iota(table.begin(), table.end(), 0);
  Random random(1);
  for (int64_t i = blocks - 1; i > 0; --i) std::swap(table[i], table[random.Below(i + 1)]);
  std::vector<int32_t> cu(shape.num_seqs + 1);
  for (int64_t s = 0; s <= shape.num_seqs; ++s) cu[s] = static_cast<int32_t>(s * shape.num_queries);
  const std::vector<int32_t> lens(shape.num_seqs, static_cast<int32_t>(shape.context));
  const int64_t tokens = shape.num_seqs * shape.num_queries;
  MlaAttentionArgs args;
  ASSIGN_OR_RETURN(args.q, t.Random(DType::kBF16, {tokens, heads, width}));
  ASSIGN_OR_RETURN(const TensorView tables, t.Copy(DType::kI32, table));
  args.block_tables = TensorView(tables.data, DType::kI32, {shape.num_seqs, blocks_each});
  ASSIGN_OR_RETURN(args.cu_seqlens_q, t.Copy(DType::kI32, cu));
  ASSIGN_OR_RETURN(args.context_lens, t.Copy(DType::kI32, lens));
  ASSIGN_OR_RETURN(args.out, t.Unset(DType::kBF16, {tokens, heads, latent}));
  args.scale = 0.1f;
  BenchRow row;
  row.name = absl::StrCat(name, "_", shape.num_seqs, "x", shape.context);
  if (shape.num_queries > 1) absl::StrAppend(&row.name, "_q", shape.num_queries);
  // A cache once, queries and results once; scores and weighted values in the absorbed form.
  row.bytes = static_cast<double>(DTypeBytes(type) * shape.num_seqs * shape.context * entry +
                                  2 * tokens * heads * (width + latent));
  const int64_t n = shape.num_queries;
  const double pairs = static_cast<double>(n * shape.context - n * (n - 1) / 2);
  row.flops = 2 * static_cast<double>(shape.num_seqs) * pairs *
              static_cast<double>(heads * (width + latent));
  const double peer_us = heads == 16 ? shape.peer_us_16 : heads == 128 ? shape.peer_us_128 : 0;
  row.peer_us = type == DType::kBF16 ? peer_us : 0;
  row.peer = n == 1 ? "TRT-LLM on an H100" : "TRT-LLM on an H100, other form";
  RETURN_IF_ERROR(bench.Measure(row, static_cast<int>(layers), args.out, [&](int i) {
    args.cache = cache.Slice(i * blocks, blocks);
    return backend->MlaAttention(args);
  }));
  if (tokens > kMostValueTokens) return absl::OkStatus();
  // The same with its values, in one launch.
  const int64_t v = bench.options().tiny ? 64 : 128;
  std::vector<std::unique_ptr<Weight>> uv;
  for (int64_t i = 0; i < layers; ++i) {
    ASSIGN_OR_RETURN(uv.emplace_back(), MakeRandomWeight({.num_groups = static_cast<int32_t>(heads),
                                                          .n = v,
                                                          .k = latent,
                                                          .seed = static_cast<uint64_t>(i)}));
  }
  ASSIGN_OR_RETURN(const TensorView values, t.Unset(DType::kBF16, {tokens, heads, v}));
  absl::StrAppend(&row.name, "_values");
  row.peer_us = 0;
  row.bytes += static_cast<double>(2 * heads * v * (latent + tokens));
  row.flops += 2 * static_cast<double>(tokens * heads * v * latent);
  return bench.Measure(row, static_cast<int>(layers), values, [&](int i) {
    args.cache = cache.Slice(i * blocks, blocks);
    return backend->MlaValues({args, uv[i].get(), values});
  });
}

absl::Status RunAll(CudaBench& bench, const std::string& name, DType type, int64_t heads,
                    std::vector<Shape> shapes) {
  if (bench.options().tiny) shapes = {{2, 130, shapes[0].num_queries > 1 ? 70 : 1}};
  for (const Shape& shape : shapes) {
    if (bench.TimeIsUp()) return absl::OkStatus();
    if (bench.options().quick && shape.num_seqs * shape.context > 300000) continue;
    RETURN_IF_ERROR(RunShape(bench, name, type, bench.options().tiny ? 2 : heads, shape));
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<CudaCase> MlaCases() {
  std::vector<CudaCase> out;
  for (const int64_t heads : {16, 128}) {
    const std::string model = heads == 16 ? "v2lite" : "v3";
    const auto add = [&](const std::string& name, DType type, std::vector<Shape> shapes,
                         const std::string& what) {
      out.push_back({name, absl::StrCat(heads, " heads, ", what),
                     [=](CudaBench& b) { return RunAll(b, name, type, heads, shapes); }});
    };
    const std::vector<Shape> decode(std::begin(kDecode), std::end(kDecode));
    add(model + "/mla_decode", DType::kBF16, decode, "sequences x tokens of context");
    add(model + "/mla_decode_fp8", DType::kU8, decode, "the same over FP8 entries");
    add(model + "/mla_prefill", DType::kBF16, {std::begin(kPrefill), std::end(kPrefill)},
        "whole prompts and the end of a long one");
  }
  return out;
}

}  // namespace jevons
