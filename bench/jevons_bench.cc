// `make bench`: what this machine can do, and how much of it a model gets. See docs/performance.md
// for the method.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "bench/ceilings.h"
#include "bench/model_driver.h"
#include "bench/model_shapes.h"
#include "bench/random_checkpoint.h"
#include "cpu/cpu_backend.h"
#include "model/tensor_specs.h"

namespace jevons {
namespace {

constexpr int32_t kBatch = 8;
constexpr int32_t kDepth = 4096;
constexpr int32_t kPrefill = 512;
constexpr int32_t kDecodeSteps = 8;  // a round
constexpr int32_t kPrefillSteps = 2;

struct Flags {
  std::string json_path = "build/bench.jsonl";
  std::string demo_folder = "tools/demo_model/checkpoint";
  std::string target;  // empty: the best of this machine
  int32_t layers = 9;
  int32_t rounds = 7;
  int32_t threads = 0;
};

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// Rows of the report, printed and written as JSON lines.
class Report {
 public:
  explicit Report(const std::string& path) : file_(std::fopen(path.c_str(), "w")) {
    if (file_ == nullptr) std::fprintf(stderr, "cannot write %s\n", path.c_str());
  }
  ~Report() {
    if (file_ != nullptr) std::fclose(file_);
  }

  // `fraction` below 0: no limit. `detail`: more JSON members, ready made, with a leading comma.
  void Add(const std::string& name, double value, const std::string& unit, double fraction = -1,
           const std::string& detail = "") {
    std::string line =
        absl::StrFormat(R"({"name": "%s", "value": %.6g, "unit": "%s")", name, value, unit);
    if (fraction >= 0) absl::StrAppendFormat(&line, R"(, "fraction_of_limit": %.4f)", fraction);
    line += detail + "}";
    if (file_ != nullptr) std::fprintf(file_, "%s\n", line.c_str());
    const std::string share =
        fraction >= 0 ? absl::StrFormat("%5.1f %% of limit", 100 * fraction) : "";
    std::printf("%-28s %10.2f %-10s %s\n", name.c_str(), value, unit.c_str(), share.c_str());
    std::fflush(stdout);
  }

 private:
  std::FILE* file_;
};

// One kind of step, measured some times a round. The ceilings of a round are its best passes, so the round's best step is
// held against them: a neighbour on the machine then disturbs neither.
struct Case {
  std::string name;
  int32_t num_seqs;
  int32_t num_tokens;
  int32_t depth;
  int32_t steps_per_round;
  std::vector<double> seconds = {};    // of every step
  std::vector<double> fractions = {};  // of each round's best step
  double best_seconds = 0;             // of the last round
  OpTotals totals = {};

  double tokens_per_second() const { return num_seqs * num_tokens / Median(seconds); }
};

struct Ceilings {
  double bytes_per_second = 0;
  double flops = 0;
};

// Decode is held against the bytes it must read, prefill against the multiply-adds it must do.
double LeastSeconds(const OpTotals& totals, const Ceilings& ceilings) {
  return std::max((totals.weight_bytes + totals.cache_bytes) / ceilings.bytes_per_second,
                  totals.flops / ceilings.flops);
}

absl::Status Measure(ModelDriver& driver, Case& c, const Ceilings& ceilings) {
  double best_fraction = 0;
  for (int32_t i = 0; i < c.steps_per_round; ++i) {
    ASSIGN_OR_RETURN(const StepTiming timing, driver.Step(c.num_seqs, c.num_tokens, c.depth));
    c.seconds.push_back(timing.seconds);
    c.best_seconds = i == 0 ? timing.seconds : std::min(c.best_seconds, timing.seconds);
    best_fraction = std::max(best_fraction, LeastSeconds(timing.totals, ceilings) / timing.seconds);
    c.totals = timing.totals;
  }
  c.fractions.push_back(best_fraction);
  return absl::OkStatus();
}

absl::Status BenchModel(const std::string& prefix, ModelDriver& driver, int32_t rounds,
                        int32_t depth, ThreadPool& pool, std::vector<Ceilings>& history,
                        Report& report) {
  Case b1{prefix + "decode_b1", 1, 1, 0, kDecodeSteps};
  Case b8{prefix + "decode_b8", kBatch, 1, 0, kDecodeSteps};
  Case prefill{prefix + "prefill_512", 1, kPrefill, 0, kPrefillSteps};
  Case deep{absl::StrFormat("%sdecode_b1_depth%d", prefix, depth), 1, 1, depth, kDecodeSteps};
  std::vector<double> b8_over_b1, deep_over_b1;
  for (Case* c : {&b1, &b8, &prefill, &deep}) {  // warm up
    ASSIGN_OR_RETURN(const StepTiming timing, driver.Step(c->num_seqs, c->num_tokens, c->depth));
    static_cast<void>(timing);
  }
  for (int32_t round = 0; round < rounds; ++round) {
    const Ceilings ceilings = {.bytes_per_second = MeasureReadBandwidth(pool) * 1e9,
                               .flops = MeasureFmaRate(pool) * 1e9};
    history.push_back(ceilings);
    for (Case* c : {&b1, &b8, &deep, &prefill}) RETURN_IF_ERROR(Measure(driver, *c, ceilings));
    b8_over_b1.push_back(kBatch * b1.best_seconds / b8.best_seconds);
    deep_over_b1.push_back(b1.best_seconds / deep.best_seconds);
  }
  for (const Case* c : {&b1, &b8, &prefill, &deep}) {
    report.Add(
        c->name, c->tokens_per_second(), "tok/s", Median(c->fractions),
        absl::StrFormat(R"(, "ms": %.3f, "weight_gb": %.4f, "cache_gb": %.4f, "gflop": %.3f)",
                        1e3 * Median(c->seconds), c->totals.weight_bytes / 1e9,
                        c->totals.cache_bytes / 1e9, c->totals.flops / 1e9));
  }
  report.Add(prefix + "decode_b8_over_b1", Median(b8_over_b1), "ratio");
  report.Add(absl::StrFormat("%sdepth%d_over_depth0", prefix, depth), Median(deep_over_b1),
             "ratio");
  return absl::OkStatus();
}

absl::Status Run(const Flags& flags) {
  const int32_t threads = flags.threads > 0 ? flags.threads : UsableCpus();
  ThreadPool pool(threads);  // of the ceilings; each model's backend has its own
  Report report(flags.json_path);
  std::vector<Ceilings> history;
  ASSIGN_OR_RETURN(const CpuTarget target, ParseCpuTarget(flags.target));
  const auto backend = [&]() {
    return CreateCpuBackend({.num_threads = threads, .target = target});
  };

  ASSIGN_OR_RETURN(const ModelConfig demo_config, LoadModelConfig(flags.demo_folder));
  ASSIGN_OR_RETURN(const auto demo_checkpoint, Checkpoint::Open(flags.demo_folder));
  ASSIGN_OR_RETURN(auto demo_backend, backend());
  std::printf("%s\n", demo_backend->Description().c_str());
  const int32_t demo_depth = demo_config.max_position_embeddings - kPrefill;
  ASSIGN_OR_RETURN(
      auto demo, ModelDriver::Create(demo_config, *demo_checkpoint, std::move(demo_backend), kBatch,
                                     demo_config.max_position_embeddings, kPrefill));
  RETURN_IF_ERROR(BenchModel("demo_", *demo, flags.rounds, demo_depth, pool, history, report));
  demo.reset();

  ModelConfig config = V2LiteShape();
  config.num_hidden_layers = flags.layers;
  ASSIGN_OR_RETURN(auto large_backend, backend());
  std::printf("making a random model of DeepSeek-V2-Lite's dimensions, %d layers\n", flags.layers);
  ASSIGN_OR_RETURN(
      auto large, ModelDriver::Create(config, RandomCheckpoint(config, 1), std::move(large_backend),
                                      kBatch, kDepth + kPrefill, kPrefill));
  history.clear();
  RETURN_IF_ERROR(BenchModel("", *large, flags.rounds, kDepth, pool, history, report));

  std::vector<double> bandwidth, flops;
  for (const Ceilings& c : history) {
    bandwidth.push_back(c.bytes_per_second / 1e9);
    flops.push_back(c.flops / 1e9);
  }
  report.Add("read_bandwidth", Median(bandwidth), "GB/s");
  report.Add("fma_rate", Median(flops), "GFLOP/s");
  return absl::OkStatus();
}

absl::StatusOr<Flags> ParseFlags(int argc, char** argv) {
  Flags flags;
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    if (i + 1 >= argc) return absl::InvalidArgumentError("no value for " + name);
    int32_t* number = name == "--layers"    ? &flags.layers
                      : name == "--rounds"  ? &flags.rounds
                      : name == "--threads" ? &flags.threads
                                            : nullptr;
    if (name == "--json") {
      flags.json_path = argv[i + 1];
    } else if (name == "--demo") {
      flags.demo_folder = argv[i + 1];
    } else if (name == "--target") {
      flags.target = argv[i + 1];
    } else if (number == nullptr || !absl::SimpleAtoi(argv[i + 1], number) || *number < 1) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "%s %s is unknown or out of range; flags: --json PATH --demo DIR --target NAME "
          "--layers N --rounds N --threads N",
          name, argv[i + 1]));
    }
  }
  return flags;
}

}  // namespace
}  // namespace jevons

int main(int argc, char** argv) {
  const auto flags = jevons::ParseFlags(argc, argv);
  const absl::Status status = flags.ok() ? jevons::Run(*flags) : flags.status();
  if (status.ok()) return 0;
  std::fprintf(stderr, "jevons_bench: %s\n", std::string(status.message()).c_str());
  return 1;
}
