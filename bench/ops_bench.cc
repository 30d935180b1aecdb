// Speeds of the ops of the CPU backend that are not matrix products (gemm_bench has those), for the
// shapes of DeepSeek-V2-Lite, as shares of what this machine reads and multiplies in the same run.
// A share above 100 % of the reads says that the data was in cache, where a step has it too.
//
//   ops_bench [filter]      JEVONS_CPU_TARGET and JEVONS_NUM_THREADS are obeyed

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "base/random.h"
#include "bench/ceilings.h"
#include "cpu/cpu_backend.h"
#include "ops/cost.h"

namespace jevons {
namespace {

constexpr int64_t kHidden = 2048;
constexpr int64_t kHeads = 16;
constexpr int64_t kLatent = 512;
constexpr int64_t kRope = 64;
constexpr int64_t kNope = 128;
constexpr int64_t kExperts = 64;
constexpr int64_t kTopK = 6;
constexpr int64_t kExpertWidth = 1408;
constexpr int64_t kLayers = 27;
constexpr int64_t kBlockSize = 64;
constexpr double kMinSeconds = 0.3;
constexpr int kMinRuns = 7;

void CheckOk(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}

// Tensors with random content, freed at the end of a case.
class Tensors {
 public:
  explicit Tensors(Backend& backend) : backend_(backend) {}

  TensorView Zeros(DType dtype, std::vector<int64_t> shape) {
    int64_t bytes = DTypeBytes(dtype);
    for (int64_t size : shape) bytes *= size;
    auto buffer = backend_.Allocate(bytes);
    CheckOk(buffer.status());
    void* data = (*buffer)->data();
    buffers_.push_back(*std::move(buffer));
    switch (shape.size()) {
      case 1:
        return TensorView(data, dtype, {shape[0]});
      case 2:
        return TensorView(data, dtype, {shape[0], shape[1]});
      default:
        return TensorView(data, dtype, {shape[0], shape[1], shape[2]});
    }
  }
  TensorView Random(std::vector<int64_t> shape) {
    const TensorView view = Zeros(DType::kF32, std::move(shape));
    for (int64_t i = 0; i < view.num_elements(); ++i) {
      view.ptr<float>()[i] = static_cast<float>(random_.Bits() >> 40) * 0x1p-23f - 1;
    }
    return view;
  }
  TensorView Integers(int64_t count, const std::function<int64_t(int64_t)>& value) {
    const TensorView view = Zeros(DType::kI32, {count});
    for (int64_t i = 0; i < count; ++i) view.ptr<int32_t>()[i] = static_cast<int32_t>(value(i));
    return view;
  }

 private:
  Backend& backend_;
  jevons::Random random_{1};
  std::vector<std::unique_ptr<Buffer>> buffers_;
};

struct Ceilings {
  double read_gbs;
  double fma_gflops;
};

class OpsBench {
 public:
  OpsBench(Backend& backend, const Ceilings& ceilings, std::string filter)
      : backend_(backend), ceilings_(ceilings), filter_(std::move(filter)) {}

  void Rows(int64_t num_tokens) {
    Tensors t(backend_);
    const std::string suffix = " tokens " + std::to_string(num_tokens);
    const TensorView x = t.Random({num_tokens, kHidden});
    const TensorView delta = t.Random({num_tokens, kHidden});
    const TensorView out = t.Random({num_tokens, kHidden});
    const RmsNormArgs norm = {x, delta, t.Random({kHidden}), 1e-6f, out};
    Report("RmsNorm" + suffix, Cost(norm), [&](int) { return backend_.RmsNorm(norm); });
    const SiluMulArgs silu = {t.Random({num_tokens * kTopK, 2 * kExpertWidth}),
                              t.Random({num_tokens * kTopK, kExpertWidth})};
    Report("SiluMul" + suffix, Cost(silu), [&](int) { return backend_.SiluMul(silu); });
    const TensorView positions = t.Integers(num_tokens, [](int64_t i) { return i; });
    const TensorView cos_sin = t.Random({num_tokens, kRope});
    const TensorView q = t.Random({num_tokens, kHeads, kNope + kRope}).Columns(kNope, kRope);
    const TensorView rotated =
        t.Random({num_tokens, kHeads, kLatent + kRope}).Columns(kLatent, kRope);
    const RopeArgs rope = {q, positions, cos_sin, rotated};
    Report("Rope" + suffix, Cost(rope), [&](int) { return backend_.Rope(rope); });
    const EmbedArgs embed = {t.Integers(num_tokens, [](int64_t i) { return i * 37 % 1000; }),
                             t.Zeros(DType::kBF16, {1000, kHidden}), out};
    Report("Embed" + suffix, Cost(embed), [&](int) { return backend_.Embed(embed); });
    StoreKv(t, suffix, positions, cos_sin);
    Experts(t, suffix, num_tokens, out);
  }

  void Attention(const std::string& name, int64_t num_seqs, int64_t context, int64_t num_queries) {
    Tensors t(backend_);
    const int64_t blocks = (context + kBlockSize - 1) / kBlockSize;
    // As many caches as a model has layers, so that one call finds little of its own in L3.
    const int64_t layers = num_seqs * context > 20000 ? 4 : kLayers;
    const TensorView cache = t.Random({layers * num_seqs * blocks, kBlockSize, kLatent + kRope});
    const TensorView tables = t.Zeros(DType::kI32, {num_seqs, blocks});
    for (int64_t i = 0; i < num_seqs * blocks; ++i)
      tables.ptr<int32_t>()[i] = static_cast<int32_t>(i);
    MlaAttentionArgs args;
    args.q = t.Random({num_seqs * num_queries, kHeads, kLatent + kRope});
    args.block_tables = tables;
    args.cu_seqlens_q = t.Integers(num_seqs + 1, [&](int64_t i) { return i * num_queries; });
    args.context_lens = t.Integers(num_seqs, [&](int64_t) { return context; });
    args.scale = 0.1147f;
    args.out = t.Random({num_seqs * num_queries, kHeads, kLatent});
    Report("MlaAttention " + name, Cost(args), [&](int run) {
      args.cache = cache.Slice(run % layers * num_seqs * blocks, num_seqs * blocks);
      return backend_.MlaAttention(args);
    });
  }

 private:
  void StoreKv(Tensors& t, const std::string& suffix, const TensorView& positions,
               const TensorView& cos_sin) {
    const int64_t num_tokens = positions.dim(0);
    MlaStoreKvArgs store;
    store.kv = t.Random({num_tokens, kLatent + kRope});
    store.norm_weight = t.Random({kLatent});
    store.eps = 1e-6f;
    store.positions = positions;
    store.cos_sin = cos_sin;
    store.slot_mapping = t.Zeros(DType::kI64, {num_tokens});
    for (int64_t i = 0; i < num_tokens; ++i) store.slot_mapping.ptr<int64_t>()[i] = i;
    store.cache = t.Random({num_tokens / kBlockSize + 1, kBlockSize, kLatent + kRope});
    Report("MlaStoreKv" + suffix, Cost(store), [&](int) { return backend_.MlaStoreKv(store); });
  }

  void Experts(Tensors& t, const std::string& suffix, int64_t num_tokens, const TensorView& out) {
    RouteTopKArgs route;
    route.logits = t.Random({num_tokens, kExperts});
    route.topk_idx = t.Zeros(DType::kI32, {num_tokens, kTopK});
    route.topk_weights = t.Random({num_tokens, kTopK});
    Report("RouteTopK" + suffix, Cost(route), [&](int) { return backend_.RouteTopK(route); });
    const DispatchPlan plan = {t.Zeros(DType::kI32, {kExperts + 1}),
                               t.Zeros(DType::kI32, {num_tokens * kTopK}),
                               t.Zeros(DType::kI32, {num_tokens, kTopK})};
    const ExpertDispatchArgs dispatch = {route.topk_idx, plan};
    Report("ExpertDispatch" + suffix, Cost(dispatch),
           [&](int) { return backend_.ExpertDispatch(dispatch); });
    const ExpertCombineArgs combine = {t.Random({num_tokens * kTopK, kHidden}), plan,
                                       route.topk_weights, t.Random({num_tokens, kHidden}), out};
    Report("ExpertCombine" + suffix, Cost(combine),
           [&](int) { return backend_.ExpertCombine(combine); });
  }

  // Times fn(run) and prints a line.
  void Report(const std::string& name, const OpCost& cost,
              const std::function<absl::Status(int run)>& fn) const;

  Backend& backend_;
  Ceilings ceilings_;
  std::string filter_;
};

void OpsBench::Report(const std::string& name, const OpCost& cost,
                      const std::function<absl::Status(int run)>& fn) const {
  if (name.find(filter_) == std::string::npos) return;
  CheckOk(fn(0));
  std::vector<double> seconds;
  double total = 0;
  for (int run = 0; run < kMinRuns || total < kMinSeconds; ++run) {
    const auto begin = std::chrono::steady_clock::now();
    CheckOk(fn(run));
    const auto end = std::chrono::steady_clock::now();
    seconds.push_back(std::chrono::duration<double>(end - begin).count());
    total += seconds.back();
  }
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  const double spread = seconds[seconds.size() * 3 / 4] - seconds[seconds.size() / 4];
  const double gbs = static_cast<double>(cost.bytes) / median * 1e-9;
  const double gflops = static_cast<double>(cost.flops) / median * 1e-9;
  std::printf("%-34s %10.1f us +-%3.0f %%  %6.1f GB/s (%5.1f %%)  %6.1f GFLOP/s (%5.1f %%)\n",
              name.c_str(), median * 1e6, 50 * spread / median, gbs, 100 * gbs / ceilings_.read_gbs,
              gflops, 100 * gflops / ceilings_.fma_gflops);
  std::fflush(stdout);
}

int Main(const std::string& filter) {
  const char* target_name = std::getenv("JEVONS_CPU_TARGET");
  const char* threads = std::getenv("JEVONS_NUM_THREADS");
  const auto target = ParseCpuTarget(target_name != nullptr ? target_name : "");
  CheckOk(target.status());
  const int num_threads = threads != nullptr ? std::atoi(threads) : UsableCpus();
  const auto backend = CreateCpuBackend({.num_threads = num_threads, .target = *target});
  CheckOk(backend.status());

  Ceilings ceilings;
  {
    ThreadPool pool(num_threads);
    ceilings = {MeasureReadBandwidth(pool), MeasureFmaRate(pool)};
  }
  std::printf("%s: read %.1f GB/s, fp32 multiply-add %.1f GFLOP/s\n",
              (*backend)->Description().c_str(), ceilings.read_gbs, ceilings.fma_gflops);

  OpsBench bench(**backend, ceilings, filter);
  bench.Attention("decode 1 x 4096", 1, 4096, 1);
  bench.Attention("decode 1 x 512", 1, 512, 1);
  bench.Attention("decode 8 x 4096", 8, 4096, 1);
  bench.Attention("prefill 512", 1, 512, 512);
  bench.Attention("prefill 512 after 3584", 1, 4096, 512);
  bench.Attention("prefill 64 after 4032", 1, 4096, 64);
  for (int64_t num_tokens : {1, 8, 512}) bench.Rows(num_tokens);
  return 0;
}

}  // namespace
}  // namespace jevons

int main(int argc, char** argv) { return jevons::Main(argc > 1 ? argv[1] : ""); }
