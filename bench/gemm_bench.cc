// Speeds of the CPU matrix products on the layers of DeepSeek-V2-Lite, as shares of what this
// machine reads and multiplies in the same run. Medians; the rows of experts are tokens.
//
//   gemm_bench [filter]      JEVONS_CPU_TARGET and JEVONS_NUM_THREADS are obeyed

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "bench/ceilings.h"
#include "cpu/cpu_backend.h"
#include "ops/cost.h"

namespace jevons {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kTimePerCase(500);
constexpr int64_t kMinPasses = 5;
constexpr int64_t kWarmUpPasses = 2;
// Weights are taken in turns from a set of at least this size, so that no cache holds them.
constexpr int64_t kColdBytes = 512 << 20;

struct Ceilings {
  double read_gbs = 0;
  double fma_gflops = 0;
};

// Exit with the error: a bench has nobody to return it to.
void OrDie(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}
template <typename T>
T OrDie(absl::StatusOr<T> value) {
  OrDie(value.status());
  return *std::move(value);
}

struct Times {
  double median = 0;
  double best = 0;
};

// `call` gets the number of the pass.
Times Measure(const std::function<absl::Status(int64_t)>& call) {
  for (int64_t i = 0; i < kWarmUpPasses; ++i) OrDie(call(i));
  std::vector<double> seconds;
  const auto end = Clock::now() + kTimePerCase;
  for (int64_t i = 0; i < kMinPasses || Clock::now() < end; ++i) {
    const auto begin = Clock::now();
    OrDie(call(kWarmUpPasses + i));
    seconds.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
  }
  std::sort(seconds.begin(), seconds.end());
  return {seconds[seconds.size() / 2], seconds[0]};
}

void Report(const std::string& name, int64_t rows, const Times& times, const OpCost& cost,
            const Ceilings& ceilings) {
  const double gbs = static_cast<double>(cost.bytes) / times.median * 1e-9;
  const double gflops = static_cast<double>(cost.flops) / times.median * 1e-9;
  std::printf(
      "%-22s rows %4lld  %9.1f us (best %9.1f)  %6.1f GB/s %5.1f %%  %7.1f GFLOP/s %5.1f %%\n",
      name.c_str(), static_cast<long long>(rows), times.median * 1e6, times.best * 1e6, gbs,
      100 * gbs / ceilings.read_gbs, gflops, 100 * gflops / ceilings.fma_gflops);
  std::fflush(stdout);
}

class Bench {
 public:
  Bench(Backend& backend, const Ceilings& ceilings, std::string filter)
      : backend_(backend), ceilings_(ceilings), filter_(std::move(filter)) {
    Random random(1);
    for (uint16_t& value : stored_) value = FloatToBf16(static_cast<float>(random.Normal() * 0.02));
  }

  void Linear(const std::string& name, int64_t n, int64_t k, const std::vector<int64_t>& all_rows);
  void Heads(const std::string& name, int64_t n, int64_t k, const std::vector<int64_t>& all_rows);
  // Each token takes `top_k` of `num_experts`.
  void Experts(const std::string& name, int64_t n, int64_t k, int64_t num_experts, int64_t top_k,
               const std::vector<int64_t>& all_tokens);

 private:
  bool Skip(const std::string& name) const { return name.find(filter_) == std::string::npos; }
  // Copies enough to be cold at every use.
  void Pack(int64_t groups, int64_t n, int64_t k);
  const Weight* Turn(int64_t i) const { return weights_[i % weights_.size()].get(); }
  TensorView NewF32(std::initializer_list<int64_t> shape);

  Backend& backend_;
  Ceilings ceilings_;
  std::string filter_;
  std::vector<uint16_t> stored_ = std::vector<uint16_t>(32 << 20);
  std::vector<std::unique_ptr<Weight>> weights_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
};

void Bench::Pack(int64_t groups, int64_t n, int64_t k) {
  weights_.clear();
  buffers_.clear();
  const auto size = static_cast<int64_t>(stored_.size());
  // A matrix larger than the stored values is stacked of parts.
  const int64_t part_rows = std::min(n, size / k / 32 * 32);
  WeightSpec spec;
  for (int64_t g = 0; g < groups; ++g) {
    std::vector<WeightPart> parts;
    for (int64_t row = 0; row < n; row += part_rows) {
      const int64_t rows = std::min(part_rows, n - row);
      parts.push_back({TensorView(stored_.data(), DType::kBF16, {rows, k}), {}});
    }
    spec.groups.push_back(std::move(parts));
  }
  for (int64_t bytes = 0; bytes < kColdBytes; bytes += weights_.back()->bytes()) {
    weights_.push_back(OrDie(backend_.PackWeight(spec)));
  }
}

TensorView Bench::NewF32(std::initializer_list<int64_t> shape) {
  TensorView view(nullptr, DType::kF32, shape);
  buffers_.push_back(OrDie(backend_.Allocate(std::max<int64_t>(view.num_elements() * 4, 4))));
  view.data = buffers_.back()->data();
  Random random(buffers_.size());
  for (int64_t i = 0; i < view.num_elements(); ++i) {
    view.ptr<float>()[i] = static_cast<float>(random.Uniform() - 0.5);
  }
  return view;
}

void Bench::Linear(const std::string& name, int64_t n, int64_t k,
                   const std::vector<int64_t>& all_rows) {
  if (Skip(name)) return;
  Pack(1, n, k);
  for (int64_t rows : all_rows) {
    LinearArgs args;
    args.x = NewF32({rows, k});
    args.out = NewF32({rows, n});
    const Times times = Measure([&](int64_t i) {
      args.weight = Turn(i);
      return backend_.Linear(args);
    });
    Report(name, rows, times, Cost(args), ceilings_);
  }
}

void Bench::Heads(const std::string& name, int64_t n, int64_t k,
                  const std::vector<int64_t>& all_rows) {
  if (Skip(name)) return;
  constexpr int64_t kHeads = 16;
  Pack(kHeads, n, k);
  for (int64_t rows : all_rows) {
    HeadLinearArgs args;
    args.x = NewF32({rows, kHeads, k});
    args.out = NewF32({rows, kHeads, n});
    const Times times = Measure([&](int64_t i) {
      args.weight = Turn(i);
      return backend_.HeadLinear(args);
    });
    Report(name, rows, times, Cost(args), ceilings_);
  }
}

void Bench::Experts(const std::string& name, int64_t n, int64_t k, int64_t num_experts,
                    int64_t top_k, const std::vector<int64_t>& all_tokens) {
  if (Skip(name)) return;
  Pack(num_experts, n, k);
  Random random(7);
  for (int64_t tokens : all_tokens) {
    std::vector<std::vector<int32_t>> rows_of(num_experts);
    for (int64_t t = 0; t < tokens; ++t) {
      // Distinct experts: an arithmetic progression with an odd step.
      const int64_t first = random.Below(num_experts);
      const int64_t step = 2 * random.Below(num_experts / 2) + 1;
      for (int64_t j = 0; j < top_k; ++j) {
        rows_of[(first + j * step) % num_experts].push_back(static_cast<int32_t>(t));
      }
    }
    std::vector<int32_t> cu_rows = {0};
    std::vector<int32_t> row_idx;
    for (const std::vector<int32_t>& rows : rows_of) {
      row_idx.insert(row_idx.end(), rows.begin(), rows.end());
      cu_rows.push_back(static_cast<int32_t>(row_idx.size()));
    }
    GroupedGemmArgs args;
    args.x = NewF32({tokens, k});
    args.out = NewF32({tokens * top_k, n});
    args.cu_rows = TensorView(cu_rows.data(), DType::kI32, {num_experts + 1});
    args.row_idx = TensorView(row_idx.data(), DType::kI32, {tokens * top_k});
    const Times times = Measure([&](int64_t i) {
      args.weight = Turn(i);
      return backend_.GroupedGemm(args);
    });
    Report(name, tokens, times, Cost(args), ceilings_);
  }
}

int Main(const std::string& filter) {
  CpuBackendOptions options;
  const char* target = std::getenv("JEVONS_CPU_TARGET");
  const char* threads = std::getenv("JEVONS_NUM_THREADS");
  options.target = OrDie(ParseCpuTarget(target != nullptr ? target : ""));
  options.num_threads = threads != nullptr ? std::atoi(threads) : 0;
  const std::unique_ptr<Backend> backend = OrDie(CreateCpuBackend(options));

  Ceilings ceilings;
  {
    ThreadPool pool(options.num_threads > 0 ? options.num_threads : UsableCpus());
    ceilings.read_gbs = MeasureReadBandwidth(pool);
    ceilings.fma_gflops = MeasureFmaRate(pool);
  }
  std::printf("%s: read %.1f GB/s, fp32 multiply-add %.1f GFLOP/s\n",
              backend->Description().c_str(), ceilings.read_gbs, ceilings.fma_gflops);

  Bench bench(*backend, ceilings, filter);
  const std::vector<int64_t> rows = {1, 2, 4, 8, 16, 64, 512};
  bench.Linear("q_proj 3072x2048", 3072, 2048, rows);
  bench.Linear("kv_a 576x2048", 576, 2048, rows);
  bench.Linear("o_proj 2048x2048", 2048, 2048, rows);
  bench.Linear("dense_up 21888x2048", 21888, 2048, rows);
  bench.Linear("dense_down 2048x10944", 2048, 10944, rows);
  bench.Linear("head 102400x2048", 102400, 2048, {1, 8});
  bench.Heads("w_uk 16x512x128", 512, 128, rows);
  bench.Heads("w_uv 16x128x512", 128, 512, rows);
  const std::vector<int64_t> tokens = {1, 2, 4, 8, 32, 512};
  bench.Experts("experts_up 2816x2048", 2816, 2048, 64, 6, tokens);
  bench.Experts("experts_down 2048x1408", 2048, 1408, 64, 6, tokens);
  return 0;
}

}  // namespace
}  // namespace jevons

int main(int argc, char** argv) { return jevons::Main(argc > 1 ? argv[1] : ""); }
